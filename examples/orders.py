"""A small order book. Some of its functions have defects, for `nexo-lsp review` to find."""

import json
import sqlite3


def add_item(name, price, basket=[]):
    """Put an item into a basket and return the basket."""
    basket.append({"name": name, "price": price})
    return basket


def average_price(items):
    """The mean price of the items."""
    total = 0
    for item in items:
        total += item["price"]
    return total / len(items)


def load_orders(path):
    """Read the orders from a JSON file."""
    try:
        file = open(path)
        return json.loads(file.read())
    except:
        pass


def find_customer(connection: sqlite3.Connection, name: str):
    """Look a customer up by name."""
    query = "SELECT id, name FROM customers WHERE name = '" + name + "'"
    return connection.execute(query).fetchone()


def with_tax(price: float, rate: float = 0.19) -> float:
    """The price with tax, rounded to cents."""
    return round(price * (1 + rate), 2)

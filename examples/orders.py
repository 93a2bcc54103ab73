"""A small order book. Most of its functions have a defect, for `nexo-lsp review` to find."""

import os
import sqlite3


def find_customer(connection: sqlite3.Connection, name: str):
    """Look a customer up by name."""
    query = "SELECT id, name FROM customers WHERE name = '" + name + "'"
    return connection.execute(query).fetchone()


def parse_price(text: str):
    """Read a price that somebody typed."""
    try:
        return float(text)
    except Exception:
        pass


def with_tax(price: float, rate: float = 0.19) -> float:
    """The price with tax, rounded to cents."""
    return round(price * (1 + rate), 2)


def archive(folder: str) -> None:
    """Pack the orders of a year."""
    os.system("tar czf orders.tar.gz " + folder)

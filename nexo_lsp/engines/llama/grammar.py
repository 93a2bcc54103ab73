"""From a JSON schema to a llama.cpp grammar (GBNF).

llama-cpp-python's own converter (0.3.36) does not escape backslashes inside literals, so that an `enum` value
with a quotation mark in it gives a grammar that does not parse, and it unrolls `maxLength` into hundreds of
nested groups. This one covers what the project's schemas use, and says clearly what it does not know.

Source of the syntax: `grammars/README.md` of llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

Schema = Mapping[str, Any]

# A JSON string's characters, without those that make a model wander off (control characters are escaped).
_SHARED_RULES = {
    "char": r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?',
}


class UnsupportedSchema(ValueError):
    """A schema that uses a keyword which this converter does not know."""


def grammar(schema_json: str) -> str:
    """The GBNF for a JSON schema given as JSON text; properties come in the schema's own order.

    Supported: `object` (all properties are written), `array` with `minItems` and `maxItems`, `string` with
    `maxLength`, `integer`, `number`, `boolean`, `null`, `enum`, `const`, `anyOf`. Raises `UnsupportedSchema`.
    """
    try:
        schema: object = json.loads(schema_json)
    except json.JSONDecodeError as error:
        raise UnsupportedSchema(f"the schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UnsupportedSchema("the schema is not an object")
    rules = [f"root ::= {_rule(cast('Schema', schema))}"]
    rules += [f"{name} ::= {body}" for name, body in _SHARED_RULES.items()]
    return "\n".join(rules) + "\n"


def _rule(schema: Schema) -> str:
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        return "(" + " | ".join(_literal(json.dumps(value, ensure_ascii=False)) for value in values) + ")"
    if "anyOf" in schema:
        return "(" + " | ".join(_rule(option) for option in schema["anyOf"]) + ")"
    match schema.get("type"):
        case "object":
            return _object(schema)
        case "array":
            return _array(schema)
        case "string":
            return rf'"\"" char{_bounds(schema, "minLength", "maxLength")} "\""'
        case "boolean":
            return '("true" | "false")'
        case "null":
            return '"null"'
        case "integer" | "number" as name:
            return str(name)
        case other:
            raise UnsupportedSchema(f"type {other!r} is not supported")


def _object(schema: Schema) -> str:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    if not properties:
        raise UnsupportedSchema("an object needs properties")
    members = [f"{_literal(json.dumps(name) + ': ')} {_rule(value)}" for name, value in properties.items()]
    return '"{" ' + ' ", " '.join(members) + ' "}"'


def _array(schema: Schema) -> str:
    items = schema.get("items")
    if not isinstance(items, Mapping):
        raise UnsupportedSchema("an array needs items")
    item = _rule(cast("Schema", items))
    least, most = int(schema.get("minItems", 0)), schema.get("maxItems")
    if most is not None and int(most) == 0:
        return '"[]"'
    more = f'(", " {item}){{{max(least - 1, 0)},{"" if most is None else int(most) - 1}}}'
    # "[]" is one literal: models write an empty list as one token, and a grammar that splits it would not
    # stop them, but the common spelling is also the likely one.
    filled = f'"[" {item} {more} "]"'
    return filled if least > 0 else f'("[]" | {filled})'


def _bounds(schema: Schema, least: str, most: str) -> str:
    low = int(schema.get(least, 0))
    high = schema.get(most)
    return f"{{{low},{'' if high is None else int(high)}}}"


def _literal(text: str) -> str:
    """A GBNF string literal; `text` is JSON, so it holds no raw control characters."""
    escaped: Sequence[str] = ["\\\\" if char == "\\" else '\\"' if char == '"' else char for char in text]
    return '"' + "".join(escaped) + '"'

"""Validation by JSON Schema (draft 7), of the keywords that the schema of the settings has."""

import json
import re
from typing import Any

_TYPES: dict[str, Any] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_NOTES = {"description", "default", "title", "$schema", "definitions", "enumDescriptions", "then", "else"}
_KEYWORDS = _NOTES | {"$ref", "type", "enum", "const", "anyOf", "allOf", "not", "if", "properties", "patternProperties"}
_KEYWORDS |= {"additionalProperties", "propertyNames", "required", "items", "minimum", "maximum", "exclusiveMinimum"}
_KEYWORDS |= {"exclusiveMaximum", "minLength", "minItems", "minProperties", "maxProperties", "pattern"}


def fits(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """Return whether a value is valid.

    Args:
        value: value of a JSON text.
        schema: schema, or a part of it.
        root: whole schema, with the definitions.

    Raises:
        ValueError: the schema has a keyword that is not checked here.
    """
    if isinstance(schema, bool):
        return schema
    if unknown := set(schema) - _KEYWORDS:
        raise ValueError(f"keywords {unknown}")
    if "$ref" in schema:
        return fits(value, root["definitions"][schema["$ref"].removeprefix("#/definitions/")], root)

    def every(schemas: Any) -> bool:
        return all(fits(value, each, root) for each in schemas)

    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    text = json.dumps(value)  # in which 1 and true differ
    checks = [
        not kinds or any(_TYPES[kind](value) for kind in kinds),
        "enum" not in schema or text in map(json.dumps, schema["enum"]),
        "const" not in schema or text == json.dumps(schema["const"]),
        "anyOf" not in schema or any(fits(value, each, root) for each in schema["anyOf"]),
        every(schema.get("allOf", [])),
        "not" not in schema or not every([schema["not"]]),
    ]
    if "if" in schema:
        checks.append(every([schema["then" if every([schema["if"]]) else "else"]]))
    if _TYPES["number"](value):
        checks += [value >= schema.get("minimum", value), value <= schema.get("maximum", value)]
        checks += [value > schema.get("exclusiveMinimum", value - 1), value < schema.get("exclusiveMaximum", value + 1)]
    if isinstance(value, str):
        checks.append(len(value) >= schema.get("minLength", 0))
        checks.append(re.search(schema.get("pattern", ""), value) is not None)
    if isinstance(value, list):
        checks.append(len(value) >= schema.get("minItems", 0))
        checks += [fits(each, schema.get("items", True), root) for each in value]
    if isinstance(value, dict):
        checks += [name in value for name in schema.get("required", [])]
        checks.append(schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)))
        checks += [fits(key, part, root) for key in value for part in _parts(schema, "propertyNames")]
        checks += [fits(each, part, root) for key, each in value.items() for part in _for_key(schema, key)]
    return all(checks)


def _parts(schema: dict[str, Any], keyword: str) -> list[Any]:
    return [schema[keyword]] if keyword in schema else []


def _for_key(schema: dict[str, Any], key: str) -> list[Any]:
    """Return the schemas for the value of a key."""
    named = [part for name, part in schema.get("properties", {}).items() if name == key]
    named += [part for pattern, part in schema.get("patternProperties", {}).items() if re.search(pattern, key)]
    return named or _parts(schema, "additionalProperties")

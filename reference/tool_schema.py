"""JSON schemas of tools: which types a parameter accepts, and a value's text read as one of them."""

import json
import math
from collections.abc import Mapping
from typing import Any

Tool = Mapping[str, Any]


class ChatError(ValueError):
    """Messages, tools, a chat file or a chat template are not usable; the message names the part."""


def parameter_types(tools: object) -> dict[str, dict[str, frozenset[str]]]:
    """Give the JSON types that each parameter of each function accepts; check the tools on the way."""
    if tools is not None and not isinstance(tools, list | tuple):
        raise ChatError(f"tools: a {type(tools).__name__}; want a list")
    types: dict[str, dict[str, frozenset[str]]] = {}
    for i, tool in enumerate(tools or ()):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ChatError(f'tools[{i}]: {tool!r}; want {{"type": "function", "function": {{"name": "...", ...}}}}')
        schema = function.get("parameters") or {}
        properties = schema.get("properties", {}) if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping):
            raise ChatError(f"tools[{i}]: parameters is {schema!r}; want a JSON schema of an object")
        types[function["name"]] = {key: _accepted_types(value, schema) for key, value in properties.items()}
    return types


def _accepted_types(schema: object, root: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Collect the JSON types that a schema accepts, through alternatives and local references."""
    if not isinstance(schema, Mapping):
        return frozenset()
    if isinstance(reference := schema.get("$ref"), str) and reference not in seen:
        target: object = root
        for step in reference.removeprefix("#/").split("/"):
            target = target.get(step) if isinstance(target, Mapping) else None
        return _accepted_types(target, root, seen | {reference})
    if declared := schema.get("type"):
        return frozenset([declared] if isinstance(declared, str) else declared)
    if "enum" in schema or "const" in schema:
        return frozenset(_JSON_TYPES[type(value)] for value in schema.get("enum", [schema.get("const")]))
    alternatives = [choice for key in ("anyOf", "oneOf", "allOf") for choice in schema.get(key, [])]
    return frozenset().union(*(_accepted_types(choice, root, seen) for choice in alternatives))


_JSON_TYPES = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_PYTHON_WORDS = {
    "True": "true",
    "False": "false",
    "None": "null",
}  # the published template shows these in history


def typed(text: str, types: frozenset[str]) -> Any:
    """Read a value as one of the JSON types that its schema accepts; a string is the last resort."""
    if types <= {"string"}:
        return text
    try:
        value = json.loads(
            _PYTHON_WORDS.get(text.strip(), text), parse_float=_finite_float, parse_constant=_finite_float
        )
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair has no UTF-8
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and "number" not in types and value.is_integer():
        value = int(value)  # 5.0 and 1e3 are integers to JSON schema
    kind = _JSON_TYPES[type(value)]
    accepted = kind in types or (kind == "integer" and "number" in types)
    return value if accepted and kind != "string" else text


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a JSON number")
    return value

"""From parsed JSON to frozen dataclasses and back; what does not fit is refused by place."""

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


class ResultError(ValueError):
    """A file that is not a record this reader understands."""


def encode(value: Any) -> Any:
    """Make a value fit for JSON; NaN and infinities, which JSON lacks, become the strings nan, inf and -inf."""
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(kind: Any, value: Any, where: str) -> Any:
    """Read a value as the given kind: a dataclass, or what annotates its fields.

    Raises:
        ResultError: a field that is missing or of the wrong type; the message begins with ``where``.
    """
    arguments = get_args(kind)
    if kind is Any:
        return value
    if get_origin(kind) is UnionType:  # the only unions here are `X | None`
        return None if value is None else decode(next(k for k in arguments if k is not NoneType), value, where)
    if get_origin(kind) is tuple:
        items = enumerate(_instance(list, value, where))
        return tuple(decode(arguments[0], item, f"{where}[{index}]") for index, item in items)
    if get_origin(kind) is Mapping:
        items = _instance(dict, value, where).items()
        return {key: decode(arguments[1], item, f"{where}.{key}") for key, item in items}
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, _instance(dict, value, where), where)
    if issubclass(kind, Enum):
        if value not in list(kind):
            raise ResultError(f"{where}: is {value!r}; want one of {', '.join(kind)}")
        return kind(value)
    if kind is float:
        return float(value) if value in ("nan", "inf", "-inf") else _number(value, where)
    return _instance(kind, value, where)


def _decode_fields(kind: Any, values: dict[str, Any], where: str) -> Any:
    kinds = get_type_hints(kind)
    known = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            known[field.name] = decode(kinds[field.name], values[field.name], f"{where}: {field.name}")
        elif field.default is dataclasses.MISSING:
            raise ResultError(f"{where}: {field.name} is missing; want a complete {kind.__name__}")
    return kind(**known)


def _number(value: Any, where: str) -> float:
    number: float = _instance((int, float), value, where)
    try:
        float(number)
    except OverflowError:
        raise ResultError(f"{where}: has {len(str(number))} digits; want a number that float64 holds") from None
    return number


def _instance(kind: type | tuple[type, ...], value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_JSON_NAMES[k] for k in kinds)
        raise ResultError(f"{where}: is {value!r}; want {wanted}")
    return value


_JSON_NAMES = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}

"""The record of a run: what was judged, on which machine, with which outcome; to JSON and back.

``result.schema.json`` beside this file says the same in JSON Schema, for readers that are not Python.
Minor versions only add fields and readers ignore fields that they do not know: a 1.x reader reads every 1.y.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .verdict import Status, Verdict

SCHEMA_VERSION = "1.0"

Record = TypeVar("Record")


class ResultError(ValueError):
    """A file that is not a record this reader understands."""


@dataclass(frozen=True)
class CheckRecord:
    """One check: the claim that it judged and how that ended.

    ``margin`` is ``statistic / bound``: above 1 the check fails. ``counters`` count what made the check able
    to fail (clamped elements, near-ties, ...).
    """

    id: str  # the test id; `s35 conform --check ID` runs exactly this check
    clause: str  # the clause of the specification that it judges
    status: Status
    duration_s: float
    counters: Mapping[str, float]
    detail: str  # why it did not pass; empty when there is nothing to say
    statistic: float | None = None  # what was measured; None: this check compares exactly
    bound: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class ConformanceOutcome:
    """What one conformance session wrote."""

    engine: Mapping[str, Any]  # its name, numerics profile and what else it says about itself
    seed: int
    checks: tuple[CheckRecord, ...]


@dataclass(frozen=True)
class GenerationSample:
    """Text that the model wrote in this run, greedily."""

    prompt: str
    text: str
    tokens_per_s: float | None  # one unrepeated sample: a sign of life, not a measurement
    acceptance_per_position: tuple[float | None, ...]  # share of drafts accepted, by draft position


@dataclass(frozen=True)
class Result:
    """One run, complete: every page about it is made from this record alone."""

    schema_version: str
    verdict: Verdict
    reason: str
    machine: Mapping[str, Any]  # hardware.Machine: a value and its source, or None and the reason, per fact
    engine: str
    engine_profile: str | None  # numerics profile; None: no conformance session named one
    tier: str
    checkpoint_sha256: str | None  # over names and contents of its files; None: the run ended before
    suite_commit: str | None  # None: machine.suite_commit holds the reason
    seed: int | None  # None: no conformance session ended
    command: tuple[str, ...]  # secrets replaced by ***
    started: str  # UTC, ISO 8601
    duration_s: float
    generation: GenerationSample | None  # None: the run ended before
    checks: tuple[CheckRecord, ...]


def dumps(record: Any) -> str:
    """Write a record as JSON; NaN and infinities, which JSON lacks, become the strings nan, inf and -inf."""
    return json.dumps(_encode(dataclasses.asdict(record)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(kind: type[Record], text: str, source: str) -> Record:
    """Read a record of the given kind.

    Args:
        kind: one of the dataclasses above.
        text: JSON, as ``dumps`` or a conformance session writes it.
        source: where the text came from, for the message of an error.

    Raises:
        ResultError: not JSON, another major version, or a field that is missing or of the wrong type.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResultError(f"{source}: not JSON ({error}); want the file as the suite wrote it") from error
    if kind is Result and isinstance(value, dict):
        _check_version(value.get("schema_version"), source)
    return _decode(kind, value, source)


def load(kind: type[Record], path: Path) -> Record:
    """Read a record from a file; raises as ``loads`` does."""
    return loads(kind, path.read_text(encoding="utf-8"), source=path.name)


def _check_version(version: Any, source: str) -> None:
    major = SCHEMA_VERSION.partition(".")[0]
    if not isinstance(version, str) or version.partition(".")[0] != major:
        raise ResultError(f"{source}: schema_version is {version!r}; want {major}.x: use the suite that wrote it")


def _encode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    arguments = get_args(kind)
    if kind is Any:
        return value
    if get_origin(kind) is UnionType:  # the only unions here are `X | None`
        return None if value is None else _decode(next(k for k in arguments if k is not NoneType), value, where)
    if get_origin(kind) is tuple:
        items = enumerate(_instance(list, value, where))
        return tuple(_decode(arguments[0], item, f"{where}[{index}]") for index, item in items)
    if get_origin(kind) is Mapping:
        items = _instance(dict, value, where).items()
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in items}
    if dataclasses.is_dataclass(kind):
        return _decode_fields(kind, _instance(dict, value, where), where)
    if issubclass(kind, Enum):
        if value not in list(kind):
            raise ResultError(f"{where}: is {value!r}; want one of {', '.join(kind)}")
        return kind(value)
    if kind is float:
        return float(value) if value in ("nan", "inf", "-inf") else _instance((int, float), value, where)
    return _instance(kind, value, where)


def _decode_fields(kind: Any, values: dict[str, Any], where: str) -> Any:
    kinds = get_type_hints(kind)
    known = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            known[field.name] = _decode(kinds[field.name], values[field.name], f"{where}: {field.name}")
        elif field.default is dataclasses.MISSING:
            raise ResultError(f"{where}: {field.name} is missing; want a complete {kind.__name__}")
    return kind(**known)


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

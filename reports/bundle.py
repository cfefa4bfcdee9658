"""A results folder as read for verification, and how a complaint about it is worded."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .levels import Level
from .schema import Result, Suite

RESULT, REPORT, CHECKS, JUNIT, LOG = "result.json", "report.md", "checks.json", "junit.xml", "conformance.log"


@dataclass(frozen=True)
class Complaint:
    """One thing that does not hold."""

    where: str  # id of a record, or name of a file
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.text}"


@dataclass(frozen=True)
class Bundle:
    """A results folder as read, and the suite that verifies it."""

    folder: Path
    raw: Mapping[str, Any]
    result: Result
    suite: Suite
    levels: Sequence[Level]

    @property
    def same_suite(self) -> bool:
        return self.result.suite == self.suite

    @property
    def same_levels(self) -> bool:
        return self.result.suite.files == self.suite.files


def machine_value(result: Result, name: str) -> Any:
    """The value of a fact about the machine, which the record does not type; None: not known, or no fact."""
    fact = result.machine.get(name)
    return fact.get("value") if isinstance(fact, Mapping) else None


def differences(name: str, got: Any, want: Any, where: str, prefix: str, source: str) -> Iterator[Complaint]:
    """Complain of each field in which two values differ.

    Args:
        got, want: two records of one kind, or any two values.
        where: of the complaint; its field is ``prefix.name.FIELD``.
        source: who says what is wanted, as in "checks.json has".
    """
    fields = [field.name for field in dataclasses.fields(got)] if type(got) is type(want) and _is_record(got) else []
    for field in fields:
        path = ".".join(filter(None, [prefix, name, field]))
        if _as_json(getattr(got, field)) != _as_json(getattr(want, field)):
            yield Complaint(where, path, f"is {_shown(getattr(got, field))}; {source} {_shown(getattr(want, field))}")
    if not fields and _as_json(got) != _as_json(want):
        path = ".".join(filter(None, [prefix, name])) or "record"
        yield Complaint(where, path, f"is {_shown(got)}; {source} {_shown(want)}")


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _as_json(value: Any) -> str:
    """Values as they compare: NaN equals itself, the order of names does not matter."""
    return json.dumps(value, sort_keys=True, default=dataclasses.asdict)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else _as_json(value)
    return text if len(text) <= 80 else f"{text[:80]}..."

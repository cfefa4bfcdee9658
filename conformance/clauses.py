"""The numbered clauses of the specification, from ``clauses.toml``, and the marker by which a check cites one."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Clause:
    """One requirement: a sentence, and where it comes from.

    Attributes:
        part: of an engine, that a failure of a check of a whole model points to when nothing else does.
    """

    id: str
    text: str
    source: str
    part: str | None = None


def _read() -> Mapping[str, Clause]:
    table = tomllib.loads(Path(__file__).with_name("clauses.toml").read_text(encoding="utf-8"))
    return {id: Clause(id, **fields) for id, fields in table.items()}


CLAUSES = _read()


def clause(id: str) -> pytest.MarkDecorator:
    """Mark a check with the clause that it judges.

    Raises:
        ValueError: no such clause.
    """
    if id not in CLAUSES:
        raise ValueError(f"clause: {id!r} is not in clauses.toml; want one of {', '.join(CLAUSES)}")
    return pytest.mark.clause(id)

"""The faults of ``faults.toml`` as engines: ``--engine conformance.faults.catalogue:NAME``."""

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reference.engine import ReferenceEngine
from reference.operators import Operators

from ..legal import reordered_operators
from ..profiles import PROFILES
from . import models, operators

OTHER_ORDER = 1001  # odd: in bf16 it also rounds what a profile lets an engine round


@dataclass(frozen=True)
class Fault:
    """One thing wrong.

    Attributes:
        clause: the clause whose checks must notice.
        checks: what is run, below ``conformance/``.
        row, function: the operator that is replaced, and by what.
        model, session: a class of ``models`` instead.
        origin: where it happened, if it did.
    """

    name: str
    clause: str
    checks: str
    row: str | None = None
    function: str | None = None
    model: str | None = None
    session: str | None = None
    origin: str | None = None

    def engine(self) -> Any:
        """The reference with this fault."""
        if self.row is not None:
            wrong = getattr(operators, self.function or self.name)
            return ReferenceEngine("wrong", ops=replace(Operators(), **{self.row: wrong}))
        if self.model is not None:
            return models.engine_with_model(getattr(models, self.model))
        return models.engine_with_session(getattr(models, str(self.session)))


@dataclass(frozen=True)
class Benign:
    """An engine that is right and computes otherwise than the reference; nothing may reject it."""

    name: str
    checks: str
    profile: str
    reordered: bool  # sums in another order; in a narrow profile, intermediates rounded as it may

    def engine(self) -> Any:
        """The reference, or the reference in another order."""
        ops = reordered_operators(PROFILES[self.profile], OTHER_ORDER) if self.reordered else None
        return ReferenceEngine(self.name.replace("_", "-"), self.profile, ops=ops)


def _read() -> dict[str, Fault]:
    tables = tomllib.loads((Path(__file__).parent / "faults.toml").read_text(encoding="utf-8"))
    return {
        name: Fault(name, **({"checks": f"ops/test_{table.get('row')}.py"} | table)) for name, table in tables.items()
    }


FAULTS = _read()
BENIGN = {
    benign.name: benign
    for benign in (
        Benign("reference", "", "float32", reordered=False),
        Benign("reference_bf16", "", "bf16", reordered=False),
        Benign("reordered", "ops", "float32", reordered=True),
        Benign("reordered_bf16", "ops", "bf16", reordered=True),
    )
}


def __getattr__(name: str) -> Any:
    if name in FAULTS:
        return FAULTS[name].engine
    if name in BENIGN:
        return BENIGN[name].engine
    raise AttributeError(name)

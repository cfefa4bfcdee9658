"""What one case came to, and its line in a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from .case import Case


class Outcome(StrEnum):
    """How a case ended."""

    TIMED = "timed"
    FAIL = "FAIL"  # its output is wrong, so it has no time
    ERROR = "error"  # it raised
    NOT_OFFERED = "not offered"  # the engine or the peer has no such operator, or refuses this shape
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Result:
    """One case by one engine or peer.

    Attributes:
        us: of one call; None without a correct output.
        spread: (90th - 10th percentile) / median over replays.
        share: shortest time by the measured ceilings / us.
        error: share of the tolerance that the worst element used.
        cache: whether a call can find its inputs in the L2 cache.
        launches: configuration and origin, by kernel.
        reason: of any outcome but TIMED.
    """

    op: str
    shape: str
    dtype: str
    engine: str
    hbm_bytes: float
    flops: float
    outcome: Outcome
    reason: str = ""
    us: float | None = None
    spread: float | None = None
    floor_us: float | None = None
    bound: str = ""
    share: float | None = None
    error: float | None = None
    checked: str = ""
    method: str = ""
    copies: int = 0
    replays: int = 0
    sets: int = 0
    cache: str = ""
    launches: Mapping[str, str] = field(default_factory=dict)

    @property
    def correct(self) -> str:
        return {Outcome.TIMED: "yes", Outcome.FAIL: "NO"}.get(self.outcome, "-")


def blank(case: Case, engine: str, outcome: Outcome, reason: str) -> Result:
    """A case without a time."""
    cost = case.cost
    return Result(case.op, case.shape, case.dtype, engine, cost.hbm_bytes, cost.flops, outcome, reason)


COLUMNS = [
    "op",
    "shape",
    "dtype",
    "engine",
    "us",
    "spread",
    "MB",
    "GFLOP",
    "bound",
    "share",
    "correct",
    "cache",
    "launch",
]


def table(results: Sequence[Result]) -> str:
    """One line a result, columns aligned."""
    lines = [COLUMNS, *(_cells(result) for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cells(result: Result) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    said = "; ".join(f"{kernel}: {note}" for kernel, note in result.launches.items())
    if result.method.startswith("events"):
        said = f"{result.method}; {said}"
    return [
        *(result.op, result.shape, result.dtype, result.engine),
        *(number(result.us, ".2f"), number(result.spread, ".1%")),
        *(f"{result.hbm_bytes / 1e6:.3f}", f"{result.flops / 1e9:.3f}"),
        *(result.bound or "-", number(result.share, ".1%"), result.correct, result.cache or "-"),
        f"{result.outcome}: {result.reason}" if result.outcome is not Outcome.TIMED else said,
    ]

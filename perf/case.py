"""One thing to time: an operator at a shape, its inputs, its cost, and how its output is checked first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .cost import Cost
from .maker import Maker

Args = tuple[Any, ...]
Draw = Callable[[], Args]
Check = Callable[[Callable[..., Any], Args, Any], "Agreement"]


@dataclass(frozen=True)
class Agreement:
    """How an output compares with the reference in float64.

    Attributes:
        error: the largest share of the tolerance that was used; above 1 is wrong.
        of: what was compared.
    """

    error: float
    of: str

    @property
    def holds(self) -> bool:
        return self.error <= 1  # not for NaN


@dataclass(frozen=True)
class Case:
    """An operator at one shape.

    Attributes:
        op: the row, or for a fused kernel its label.
        shape: sizes by axis, for people.
        dtype: of what dominates: "bf16", "fp8", "int4", ...
        cost: the least work.
        build: from a maker the fixed inputs, made once, as a function that draws one set of arguments after another;
            sets rotate, so that what a call reads was not read by the call before it.
        check: takes the reference row, one set of arguments and the output.
        multiplies_in: the dtype of the matrix product's ceiling.
        reference: the row that ``check`` is given.
        fused: module:attribute of a kernel that is no row.
        max_sets: of arguments; fewer where a set is large.
        waits: it returns numbers to the host, so no graph can hold it.
        sizes: the numbers of ``shape``, for peers.
        renew: the same arguments with a workspace that fits the launch configuration of now; None: there is none.
        made_of: from an engine's rows to what is timed, where that is no row; a LookupError says which it lacks.
    """

    op: str
    shape: str
    dtype: str
    cost: Cost
    build: Callable[[Maker], Draw]
    check: Check
    multiplies_in: str = "bf16"
    reference: str = ""
    fused: str | None = None
    max_sets: int = 16
    waits: bool = False
    sizes: Mapping[str, int | None] | None = None
    renew: Callable[[Args], Args] | None = None
    made_of: Callable[[Mapping[str, Callable[..., Any]]], Callable[..., Any]] | None = None

    @property
    def name(self) -> str:
        return f"{self.op} {self.shape} {self.dtype}"

    @property
    def writes(self) -> bool:
        """Whether it is given caches or workspaces to write to; a row leaves its arguments alone."""
        return self.fused is not None or self.made_of is not None

    def operator_of(self, rows: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
        """What is timed, of an engine's rows.

        Raises:
            LookupError: which rows the engine lacks, as "no linear".
        """
        if self.made_of is not None:
            return self.made_of(rows)
        if self.op not in rows:
            raise LookupError(f"no {self.op}")
        return rows[self.op]

    def reference_of(self, rows: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
        """What ``check`` is given, of the reference's rows."""
        return self.made_of(rows) if self.made_of is not None else rows[self.reference or self.op]

"""Every case, by operator: what ``perf/ops`` holds."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from .case import Case

FOLDER = Path(__file__).parent / "ops"
OTHERS = ("fused", "layers")
LONG_FLOPS = 5e10


def rows() -> list[str]:
    """Rows that have a bench file."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def all_cases() -> list[Case]:
    """Cases of rows, fused kernels and layers; what takes long comes last, so that a short budget holds more."""
    files = [*(f"bench_{row}" for row in rows()), *OTHERS]
    cases = [case for file in files for case in importlib.import_module(f"{__package__}.ops.{file}").cases()]
    return sorted(cases, key=lambda case: case.cost.flops >= LONG_FLOPS)


def select(ops: Sequence[str]) -> list[Case]:
    """Cases of these operators; of all where none is named.

    Raises:
        ValueError: a name that no case has; the message lists those that there are.
    """
    cases = all_cases()
    known = sorted({case.op for case in cases})
    unknown = [op for op in ops if op not in known]
    if unknown:
        raise ValueError(f"op: {unknown[0]!r} is not measured; known: {', '.join(known)}")
    return [case for case in cases if not ops or case.op in ops]

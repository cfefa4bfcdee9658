"""The cases at the shapes of the embedded miniature, for machines without a GPU: the same files, another config."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reference import config

from . import shapes
from .case import Case
from .catalogue import select

NANO = Path(config.__file__).parent / "nano"
MOST_FLOPS, MOST_BYTES = 3e8, 3e7  # of one call: some milliseconds on one core


@contextmanager
def _shapes_of(path: Path) -> Iterator[None]:
    """Let the cases be made from another config for a while."""
    published = shapes.PUBLISHED
    shapes.PUBLISHED = path
    shapes.published.cache_clear()
    try:
        yield
    finally:
        shapes.PUBLISHED = published
        shapes.published.cache_clear()


def small_cases(ops: Sequence[str]) -> list[Case]:
    """Cases of these operators, or of all, that a CPU computes in milliseconds.

    A kernel that is no row has no row's engine on a CPU, so the fused ones are left out.
    """
    with _shapes_of(NANO):
        return [case for case in select(ops) if case.fused is None and _is_small(case)]


def _is_small(case: Case) -> bool:
    return case.cost.flops <= MOST_FLOPS and case.cost.hbm_bytes <= MOST_BYTES

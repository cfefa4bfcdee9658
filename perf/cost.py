"""The least work that an operator's contract allows, and what a device's measured rates make of it."""

from collections.abc import Mapping
from dataclasses import dataclass

US_PER_S = 1e6


@dataclass(frozen=True)
class Cost:
    """Work that no implementation can avoid.

    Attributes:
        hbm_bytes: each distinct input byte that is needed read once, each output byte written once.
        flops: multiplications and additions; transcendental functions and comparisons are not counted.
    """

    hbm_bytes: float
    flops: float


@dataclass(frozen=True)
class Ceilings:
    """What this device reached in this run, at best.

    Attributes:
        read_gb_per_s: 10^9 bytes a second, reading only.
        tflops: 10^12 operations a second of a large matrix product, by the dtype that it multiplies in.
        notes: how each was measured, or why it was not.
    """

    read_gb_per_s: float
    tflops: Mapping[str, float]
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Floor:
    """The shortest time that the ceilings allow, and which of them decides."""

    us: float
    bound: str  # memory or compute


def floor(cost: Cost, ceilings: Ceilings, multiplies_in: str) -> Floor:
    """The larger of the time to move the bytes and the time to do the arithmetic, in microseconds.

    Args:
        multiplies_in: a key of ``ceilings.tflops``.

    Raises:
        ValueError: this dtype's rate was not measured.
    """
    if multiplies_in not in ceilings.tflops:
        raise ValueError(f"ceilings: {multiplies_in!r} was not measured; known: {', '.join(ceilings.tflops) or 'none'}")
    memory_us = cost.hbm_bytes / (ceilings.read_gb_per_s * 1e9) * US_PER_S
    compute_us = cost.flops / (ceilings.tflops[multiplies_in] * 1e12) * US_PER_S
    return Floor(max(memory_us, compute_us), "memory" if memory_us >= compute_us else "compute")

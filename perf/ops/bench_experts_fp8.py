"""Cost and inputs of ``experts_fp8``: the work of ``experts`` on FP8 weights, multiplied in FP8."""

from ..case import Case
from ..cost import Cost
from . import bench_experts


def cost(T: int, A: int, D: int, F: int, distinct: float) -> Cost:
    """As ``experts``; the codes of the activations stay on the chip."""
    return bench_experts.cost(T, A, D, F, distinct, bench_experts.BITS["fp8"])


def cases() -> list[Case]:
    # A product with the inverse of a scale is as right as a quotient, and decides ties between codes otherwise: rows
    # then move by 1.5 % (root mean square), their worst elements by 7 %.
    of_row = 2.0**-3
    return bench_experts.cases_of("experts_fp8", "fp8", of_row) + bench_experts.sliced("experts_fp8", "fp8", of_row)

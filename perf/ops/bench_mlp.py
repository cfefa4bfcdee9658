"""Cost and inputs of ``mlp``: the shared expert and the dense layers."""

from collections.abc import Callable
from typing import Any

from ..agreement import compare, wide
from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published


def cost(T: int, D: int, F: int, itemsize: int = 2) -> Cost:
    """Read x and three weights, write y; what lies between stays on the chip."""
    return Cost(hbm_bytes=(2 * T * D + 3 * D * F) * itemsize, flops=6 * T * D * F + 3 * T * F)


def cases() -> list[Case]:
    shapes = published()
    widths = (shapes.moe.shared_expert_intermediate_size, shapes.dense.intermediate_size)
    return [_case(T, shapes.model.hidden_size, F) for F in widths for T in FEW_TOKENS]


def _case(T: int, D: int, F: int) -> Case:
    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            gate, up = (maker.weight(F, D, format="bf16") for _ in range(2))
            return maker.normal(T, D), gate, up, maker.weight(D, F, format="bf16"), 0.0

        return draw

    return Case("mlp", f"T={T} D={D} F={F}", "bf16", cost(T, D, F), build, _check)


def _check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    return compare(got, reference(*map(wide, args)), "whole output", of_row=2.0**-5)  # four roundings on the way

"""Cost and inputs of ``mtp_input``."""

from collections.abc import Callable
from typing import Any

from ..agreement import compare, wide
from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published


def cost(T: int, D: int, itemsize: int = 2) -> Cost:
    """Read both halves, both norms and the weight [D, 2 D], write u."""
    return Cost(hbm_bytes=(3 * T * D + 2 * D + 2 * D * D) * itemsize, flops=4 * T * D * D + 8 * T * D)


def cases() -> list[Case]:
    return [_case(T) for T in FEW_TOKENS]


def _case(T: int) -> Case:
    model = published().model
    D = model.hidden_size

    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            norms = maker.normal(D, scale=0.1), maker.normal(D, scale=0.1)
            weight = maker.weight(D, 2 * D, format="bf16")
            return maker.normal(T, D), maker.normal(T, D), *norms, weight, model.rms_norm_eps

        return draw

    return Case("mtp_input", f"T={T} D={D}", "bf16", cost(T, D), build, _check)


def _check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    return compare(got, reference(*map(wide, args)), "whole output", of_row=2.0**-6)  # the norms round first

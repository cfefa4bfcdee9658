"""Cost and inputs of ``swiglu``."""

from ..agreement import whole
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published


def cost(T: int, F: int, itemsize: int = 2) -> Cost:
    """Read gate and up, write y; a division and two multiplications an element."""
    return Cost(hbm_bytes=3 * T * F * itemsize, flops=3 * T * F)


def cases() -> list[Case]:
    widths = (published().moe.intermediate_size, published().dense.intermediate_size)
    return [_case(T, F) for F in widths for T in FEW_TOKENS]


def _case(T: int, F: int) -> Case:
    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return maker.normal(T, F), maker.normal(T, F), 7.0

        return draw

    return Case("swiglu", f"T={T} F={F}", "bf16", cost(T, F), build, whole)

"""Cost and inputs of ``rms_norm``."""

from ..agreement import whole
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import published


def cost(T: int, D: int, itemsize: int = 2) -> Cost:
    """Read x and the weight once, write y once; square, add and two multiplications an element."""
    return Cost(hbm_bytes=(2 * T * D + D) * itemsize, flops=4 * T * D)


def cases() -> list[Case]:
    return [_case(tokens) for tokens in (1, 4, 16, 4096)]


def _case(T: int) -> Case:
    model = published().model
    D = model.hidden_size

    def build(maker: Maker) -> Draw:
        weight = maker.normal(D, scale=0.1)

        def draw() -> Args:
            return maker.normal(T, D), weight, model.rms_norm_eps

        return draw

    return Case("rms_norm", f"T={T} D={D}", "bf16", cost(T, D), build, whole)

"""Cost and inputs of ``embedding``."""

from ..agreement import whole
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import published


def cost(T: int, D: int, itemsize: int = 2) -> Cost:
    """Read a row and write it for each token, and read its id."""
    return Cost(hbm_bytes=2 * T * D * itemsize + 8 * T, flops=0)


def cases() -> list[Case]:
    return [_case(T) for T in (1, 4, 4096)]


def _case(T: int) -> Case:
    model = published().model
    V, D = model.vocab_size, model.hidden_size

    def build(maker: Maker) -> Draw:
        weight = maker.normal(V, D)

        def draw() -> Args:
            return maker.integers(T, high=V), weight

        return draw

    return Case("embedding", f"T={T} V={V} D={D}", "bf16", cost(T, D), build, whole)

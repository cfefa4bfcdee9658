"""Cost and inputs of ``head_gate``."""

from ..agreement import whole
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published


def cost(T: int, N: int, H: int, itemsize: int = 2) -> Cost:
    """Read x and the gate, write y; one multiplication an element."""
    return Cost(hbm_bytes=(2 * T * N * H + T * N) * itemsize, flops=T * N * H)


def cases() -> list[Case]:
    return [
        _case(T, layer.num_attention_heads, layer.head_dim)
        for layer in (published().full, published().sliding)
        for T in FEW_TOKENS
    ]


def _case(T: int, N: int, H: int) -> Case:
    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return maker.normal(T, N, H), maker.normal(T, N)

        return draw

    return Case("head_gate", f"T={T} N={N} H={H}", "bf16", cost(T, N, H), build, whole)

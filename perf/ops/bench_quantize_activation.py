"""Cost and inputs of ``quantize_activation``."""

from collections.abc import Callable
from typing import Any

from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import published

GROUP = 128


def cost(T: int, D: int, itemsize: int = 2) -> Cost:
    """Read x, write a byte an element and a float32 scale a group; a comparison and a division an element."""
    return Cost(hbm_bytes=T * D * (itemsize + 1) + 4 * T * -(-D // GROUP), flops=T * D)


def cases() -> list[Case]:
    layer = published().moe
    return [*(_case(T, layer.hidden_size) for T in (1, 4, 4096)), _case(8, layer.intermediate_size)]


def _case(T: int, D: int) -> Case:
    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return (maker.normal(T, D),)

        return draw

    return Case("quantize_activation", f"T={T} D={D}", "bf16", cost(T, D), build, _check)


def _check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """Codes and scales are equal to the bit; the row is defined in float32."""
    differ = sum(
        int((g.float() != e.float()).sum()) + (g.shape != e.shape) for g, e in zip(got, reference(*args), strict=True)
    )
    return Agreement(float("inf") if differ else 0.0, "codes and scales, bit for bit")

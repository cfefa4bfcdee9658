"""Cost and inputs of ``linear``."""

from ..agreement import outputs
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, PREFILL_TOKENS, projections


def cost(T: int, I: int, O: int, itemsize: int = 2) -> Cost:  # noqa: E741
    """Read x and the weight once, write y once; a multiplication and an addition for each weight and row."""
    return Cost(hbm_bytes=(T * I + O * I + T * O) * itemsize, flops=2 * T * I * O)


def cases() -> list[Case]:
    widths = projections()
    decode = [_case(T, *widths[name]) for name in widths for T in FEW_TOKENS]
    return [*decode, _case(PREFILL_TOKENS[0], *widths["sliding qkv"])]


def _case(T: int, I: int, O: int) -> Case:  # noqa: E741
    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return maker.normal(T, I), maker.weight(O, I, format="bf16")

        return draw

    sizes = {"T": T, "I": I, "O": O}
    return Case("linear", f"T={T} I={I} O={O}", "bf16", cost(T, I, O), build, outputs(61), sizes=sizes)

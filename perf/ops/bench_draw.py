"""Cost and inputs of ``draw``."""

from collections.abc import Callable
from typing import Any

from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import FEW_TOKENS, published

TOLERANCE = 1e-5  # of cumulative mass, where the uniform number falls near a boundary


def cost(T: int, V: int) -> Cost:
    """Read float32 probabilities and a uniform number of 8 bytes, write an id of 8; one addition an element."""
    return Cost(hbm_bytes=4 * T * V + 16 * T, flops=T * V)


def cases() -> list[Case]:
    return [_case(T) for T in FEW_TOKENS]


def _case(T: int) -> Case:
    V = published().model.vocab_size

    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            logits = maker.normal(T, V, scale=3.0).float()
            uniforms = maker.uniform(T, dtype=logits.double().dtype)
            return logits.softmax(dim=-1), uniforms

        return draw

    return Case("draw", f"T={T} V={V}", "float32", cost(T, V), build, _check)


def _check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """The cumulative mass between the token and the reference's, in exact order."""
    probabilities, _ = args
    cumulative = probabilities.double().cumsum(dim=-1)
    low, high = (ids.to(cumulative.device)[:, None] for ids in (got, reference(*args)))
    between = (cumulative.gather(-1, low) - cumulative.gather(-1, high)).abs()
    own = probabilities.double().gather(-1, high)  # neighbours share a boundary
    return Agreement(float(((between - own).clamp(min=0) / TOLERANCE).max()), "cumulative mass of each row")

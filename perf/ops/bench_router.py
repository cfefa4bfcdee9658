"""Cost and inputs of ``router``."""

from collections.abc import Callable
from typing import Any

from ..agreement import wide
from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import DECODE_TOKENS, published

TOLERANCE = 1e-4  # of weights that sum to 3, and of scores at a near tie: sums of 4096 products in float32


def cost(T: int, D: int, E: int, A: int, itemsize: int = 2) -> Cost:
    """Read x, the weight and the float32 bias; write A ids of 8 bytes and A float32 weights a token."""
    return Cost(hbm_bytes=(T * D + E * D) * itemsize + 4 * E + 12 * T * A, flops=2 * T * D * E)


def cases() -> list[Case]:
    return [_case(T) for T in DECODE_TOKENS]


def _case(T: int) -> Case:
    layer = published().moe
    D, E, A = layer.hidden_size, layer.num_experts, layer.num_experts_per_tok

    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            weight = maker.weight(E, D, format="bf16")
            bias = maker.uniform(E, low=-0.1, high=0.1)
            return maker.normal(T, D), weight, bias, A, layer.routed_scaling_factor

        return draw

    return Case("router", f"T={T} D={D} E={E} A={A}", "bf16", cost(T, D, E, A), build, _check)


def _check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """The chosen experts' scores reach those of the reference's; where ids agree, so do the weights."""
    ids, weights = got
    want_ids, want_weights = reference(*map(wide, args))
    x, weight, bias = map(wide, args[:3])
    scores = (x @ weight.T).sigmoid() + bias
    missed = (scores.gather(-1, want_ids) - scores.gather(-1, ids.to(want_ids.dtype))).abs().max()
    same = (ids == want_ids).all(dim=-1)
    off = (weights.double() - want_weights).abs()[same].sum(dim=-1)
    largest = max(float(missed), float(off.max()) if len(off) else 0.0)
    return Agreement(float("inf") if largest != largest else largest / TOLERANCE, f"{int(same.sum())} rows' ids equal")

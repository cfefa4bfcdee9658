"""Cost and inputs of ``attention``: the row takes keys in any order; the fused kernels know it and skip."""

from collections.abc import Callable
from typing import Any

import torch

from reference.config import LayerConfig

from ..agreement import compare, wide
from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import CONTEXTS, FEW_TOKENS, published


def visible_pairs(T: int, S: int, window: int | None) -> int:
    """Pairs of a query and a key that it sees, where the T queries are the last of S positions."""
    if window is None:
        return T * S - T * (T - 1) // 2
    return sum(min(position + 1, window) for position in range(S - T, S))


def cost(T: int, S: int, N: int, K: int, H: int, window: int | None, itemsize: int = 2) -> Cost:
    """Read q and the keys and values that some query sees, write y; both products over the visible pairs.

    Positions are 8 bytes for each token and key, and not counted: an engine knows them.
    """
    seen = S if window is None else min(S, window + T - 1)
    moved = (2 * T * N * H + 2 * seen * K * H) * itemsize
    return Cost(hbm_bytes=moved, flops=4 * visible_pairs(T, S, window) * N * H)


def cases() -> list[Case]:
    full, sliding = published().full, published().sliding
    return [
        *(_case(T, CONTEXTS[0], full) for T in FEW_TOKENS),
        *(_case(T, sliding.sliding_window or 0, sliding) for T in FEW_TOKENS),
        _case(2048, 2048, full),
    ]


def sizes_of(T: int, S: int, layer: LayerConfig) -> dict[str, int | None]:
    """By axis, for labels and peers."""
    return {
        "T": T,
        "S": S,
        "N": layer.num_attention_heads,
        "K": layer.num_key_value_heads,
        "H": layer.head_dim,
        "window": layer.sliding_window,
    }


def shape_of(T: int, S: int, layer: LayerConfig) -> str:
    window = "" if layer.sliding_window is None else f" window={layer.sliding_window}"
    return f"T={T} S={S} N={layer.num_attention_heads} K={layer.num_key_value_heads}{window}"


def _case(T: int, S: int, layer: LayerConfig) -> Case:
    N, K, H, window = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim, layer.sliding_window

    def build(maker: Maker) -> Draw:
        keys = maker.to_device(torch.arange(S))
        queries = keys[S - T :].clone()

        def draw() -> Args:
            return maker.normal(T, N, H), maker.normal(S, K, H), maker.normal(S, K, H), queries, keys, window

        return draw

    cost_ = cost(T, S, N, K, H, window)
    return Case("attention", shape_of(T, S, layer), "bf16", cost_, build, check, sizes=sizes_of(T, S, layer))


def check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """The first, a middle and the last query, against all keys."""
    q, k, v, queries, keys, window = args
    some = sorted({0, len(q) // 2, len(q) - 1})
    exact = reference(wide(q[some]), wide(k), wide(v), queries[some], keys, window)
    return compare(got[some], exact, f"queries {some}", of_row=2.0**-6)  # probabilities may be rounded to bf16

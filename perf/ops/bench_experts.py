"""Cost and inputs of ``experts``: weights as bf16, FP8 blocks or int4 groups, on bf16 activations."""

from typing import Any

import torch

from ..agreement import rows
from ..case import Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import DECODE_TOKENS, PREFILL_TOKENS, published
from .routing import CORRELATION, distinct_experts, draw_ids

BITS = {"bf16": 16.0, "fp8": 8 + 32 / 128**2, "int4": 4 + 16 / 128}  # a weight and its share of the scale
CORRELATED_TOKENS = (4, 16)
SLICE_TOKENS, RANKS = (1, 4, 16), 8  # of expert parallel, a rank's experts; of tensor parallel, its share of every one
DECODE_SETS, PREFILL_SETS = 8, 2  # draws of the routing; the weights of all experts exceed any cache


def cost(T: int, A: int, D: int, F: int, distinct: float, bits: float, itemsize: int = 2) -> Cost:
    """Read the chosen experts' weights once each, x, ids and weights; write y. Three products for each routed row.

    Args:
        distinct: how many experts are chosen by at least one token.
        bits: of a stored weight, with its share of the scale.
    """
    moved = 3 * distinct * D * F * bits / 8 + 2 * T * D * itemsize + T * A * (8 + 4)
    return Cost(hbm_bytes=moved, flops=6 * T * A * D * F)


def cases() -> list[Case]:
    whole = [case for format in BITS for case in cases_of("experts", format)]
    share = published().moe.intermediate_size // RANKS
    return whole + [_case("experts", "bf16", T, 0.0, 2.0**-6, F=share) for T in SLICE_TOKENS]


def cases_of(op: str, format: str, of_row: float = 2.0**-6) -> list[Case]:
    """Decode, decode with correlated routing, prefill."""
    decode = [_case(op, format, T, 0.0, of_row) for T in DECODE_TOKENS]
    correlated = [_case(op, format, T, CORRELATION, of_row) for T in CORRELATED_TOKENS]
    return [*decode, *correlated, *(_case(op, format, T, 0.0, of_row) for T in PREFILL_TOKENS)]


def sliced(op: str, format: str, of_row: float) -> list[Case]:
    """A rank of expert parallel: all experts of every token are its own."""
    return [_case(op, format, T, 0.0, of_row, E=published().moe.num_experts // RANKS) for T in SLICE_TOKENS]


def _case(op: str, format: str, T: int, correlation: float, of_row: float, F: int = 0, E: int = 0) -> Case:
    layer = published().moe
    D, A = layer.hidden_size, layer.num_experts_per_tok
    F, E = F or layer.intermediate_size, E or layer.num_experts

    def build(maker: Maker) -> Draw:
        weights = shared_weights(maker, E, F, D, format)
        generator = torch.Generator().manual_seed(T)

        def draw() -> Args:
            ids = maker.to_device(draw_ids(T, E, A, correlation, generator))
            return maker.normal(T, D), ids, maker.uniform(T, A, low=0.1, high=0.6), *weights, layer.swiglu_limit

        return draw

    return Case(
        op,
        f"T={T} D={D} F={F} E={E} A={A}{' correlated' if correlation else ''}",
        "w8a8" if op == "experts_fp8" else format,
        cost(T, A, D, F, distinct_experts(T, E, A, correlation), BITS[format]),
        build,
        rows((0, T // 2, T - 1), 0, 1, 2, of_row=of_row),
        multiplies_in="fp8" if op == "experts_fp8" else "bf16",
        max_sets=DECODE_SETS if DECODE_TOKENS[-1] >= T else PREFILL_SETS,
        sizes={"T": T, "D": D, "F": F, "E": E, "A": A},
    )


_newest: dict[tuple[Any, ...], Any] = {}  # 9 GB in bf16: made once for all token counts, and only one format at a time


def shared_weights(maker: Maker, E: int, F: int, D: int, format: str) -> tuple[Any, Any, Any]:
    """Gate, up and down of all experts."""
    key = (maker.device, E, F, D, format)
    if key not in _newest:
        _newest.clear()
        gate, up = (maker.weight(E, F, D, format=format) for _ in range(2))
        _newest[key] = gate, up, maker.weight(E, D, F, format=format)
    return _newest[key]


def forget_weights() -> None:
    """Give their memory back."""
    _newest.clear()

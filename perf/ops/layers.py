"""Whole decoder layers, made of an engine's rows one after the other: what one more token costs in each kind of them.

The engine's own model may fuse rows, and is measured by scenarios; a layer shows what its rows alone come to.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from conformance.engine import find_engine
from reference.config import LayerConfig

from ..agreement import compare, wide
from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import CONTEXTS, published
from . import bench_attention, bench_experts, bench_mlp, bench_router

OP = "layer"
ROWS = ("rms_norm", "qk_norm", "rope", "attention", "head_gate", "linear", "mlp")
MOE_ROWS = ("router", "experts")
PROJECTIONS = ("gate", "up", "down")
CHOSEN = 2.0  # of the router's bias: scores lie between 0 and 1, so that no rounding changes the choice
OF_ROW = 2.0**-5  # a dozen roundings on the way; as mlp, which has four


class WrittenCache:
    """Keys and values of all positions; the newest one's are written where they lie."""

    def __init__(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        self._k, self._v, self._positions = k, v, positions

    def extend(self, k: Tensor, v: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._k[-1:], self._v[-1:] = k, v
        return self._k, self._v, self._positions


def cases() -> list[Case]:
    kinds: dict[tuple[bool, bool], LayerConfig] = {}
    for layer in published().model.layers:
        kinds.setdefault((layer.is_moe, layer.sliding_window is None), layer)
    long = kinds[True, True]
    return [*(_case(layer, CONTEXTS[0]) for layer in kinds.values()), _case(long, CONTEXTS[-1])]


def cost(layer: LayerConfig, S: int) -> Cost:
    """Of one token: read every weight that it uses, and the keys and values that it sees; write what it adds."""
    D, N, K, H = layer.hidden_size, layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim
    projections = D * (N + 2 * K) * H + D * N + N * H * D
    attention = bench_attention.cost(1, S, N, K, H, layer.sliding_window)
    parts = [attention, Cost(hbm_bytes=2 * projections, flops=2 * projections)]
    if layer.is_moe:
        E, A, F = layer.num_experts, layer.num_experts_per_tok, layer.intermediate_size
        parts += [bench_experts.cost(1, A, D, F, A, 16.0), bench_router.cost(1, D, E, A)]
        parts.append(bench_mlp.cost(1, D, layer.shared_expert_intermediate_size))
    else:
        parts.append(bench_mlp.cost(1, D, layer.intermediate_size))
    return Cost(hbm_bytes=sum(part.hbm_bytes for part in parts), flops=sum(part.flops for part in parts))


def _case(layer: LayerConfig, S: int) -> Case:
    D, N, K, H = layer.hidden_size, layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim
    names = _names(layer)
    keys = min(S, layer.sliding_window or S)  # that are held

    def build(maker: Maker) -> Draw:
        fixed = _weights(maker, layer)
        exponents = torch.arange(0, layer.rotary_dim, 2, dtype=torch.float64) / layer.rotary_dim
        frequencies = layer.rope_theta**-exponents  # the scaling of full layers costs nothing here
        key_positions = maker.to_device(torch.arange(S - keys, S))
        generator = torch.Generator().manual_seed(S)

        def draw() -> Args:
            weights = dict(fixed)
            if layer.is_moe:
                bias = torch.zeros(layer.num_experts)
                bias[torch.randperm(layer.num_experts, generator=generator)[: layer.num_experts_per_tok]] = CHOSEN
                weights["moe.router_bias"] = maker.to_device(bias)
            # Values share a part: the mean of thousands of independent ones is next to nothing, and hides faults.
            cache = maker.normal(keys, K, H), maker.normal(keys, K, H) + maker.normal(1, K, H)
            positions = key_positions[-1:].clone()
            held = tuple(weights[name] for name in names)
            return maker.normal(1, D), *cache, positions, key_positions, maker.to_device(frequencies), *held

        return draw

    def made_of(rows: Mapping[str, Callable[..., Any]]) -> Callable[..., Tensor]:
        needed = (*ROWS, *(MOE_ROWS if layer.is_moe else ()))
        missing = [row for row in needed if row not in rows]
        if missing:
            raise LookupError(f"no {', '.join(missing)}")
        reference: Any = find_engine("reference.engine:engine")
        layer_of_rows = reference.layer_of({row: rows[row] for row in needed})

        def run(hidden: Tensor, k: Tensor, v: Tensor, at: Tensor, keys_at: Tensor, turns: Tensor, *held: Any) -> Tensor:
            weights = dict(zip(names, held, strict=True))
            result: Tensor = layer_of_rows(hidden, weights, layer, at, turns, WrittenCache(k, v, keys_at))
            return result

        return run

    def check(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
        hidden, k, v, at, keys_at, turns, *held = args
        weights = dict(zip(names, held, strict=True))
        if layer.is_moe:  # the others' experts are not chosen: without them it is the same layer
            chosen = weights["moe.router_bias"].nonzero().flatten()
            weights |= {name: weights[name][chosen] for name in weights if name.startswith("moe.")}
        exact = reference(*map(wide, (hidden, k.clone(), v.clone())), at, keys_at, turns, *map(wide, weights.values()))
        return compare(got, exact, "whole output", OF_ROW)

    kind = f"{'MoE' if layer.is_moe else 'dense'} {'full' if layer.sliding_window is None else 'sliding'}"
    return Case(
        OP,
        f"{kind} T=1 S={S} D={D} N={N} K={K}",
        "bf16",
        cost(layer, S),
        build,
        check,
        max_sets=bench_experts.DECODE_SETS,
        made_of=made_of,
    )


def _names(layer: LayerConfig) -> tuple[str, ...]:
    return tuple(_weights(Maker("meta"), layer)) + (("moe.router_bias",) if layer.is_moe else ())


def _weights(maker: Maker, layer: LayerConfig) -> dict[str, Tensor]:
    """By the checkpoint's names, less the layer's; but for the router's bias."""
    D, N, K, H = layer.hidden_size, layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim
    outputs = {"q": N * H, "k": K * H, "v": K * H, "g": N}

    def matrix(rows: int, columns: int) -> Any:
        return maker.weight(rows, columns, format="bf16")

    weights = {f"self_attn.{name}_proj.weight": matrix(rows, D) for name, rows in outputs.items()}
    weights["self_attn.o_proj.weight"] = matrix(D, N * H)
    weights |= {f"self_attn.{name}_norm.weight": maker.normal(H, scale=0.1) for name in ("q", "k")}
    weights |= {f"{name}_layernorm.weight": maker.normal(D, scale=0.1) for name in ("input", "post_attention")}
    block, F = (
        ("share_expert", layer.shared_expert_intermediate_size) if layer.is_moe else ("mlp", layer.intermediate_size)
    )
    sizes = dict(zip(PROJECTIONS, ((F, D), (F, D), (D, F)), strict=True))
    weights |= {f"{block}.{name}_proj.weight": matrix(*size) for name, size in sizes.items()}
    if layer.is_moe:
        E = layer.num_experts
        experts = bench_experts.shared_weights(maker, E, layer.intermediate_size, D, "bf16")
        weights["moe.gate.weight"] = matrix(E, D)
        weights |= {f"moe.{name}_proj.weight": held for name, held in zip(PROJECTIONS, experts, strict=True)}
    return weights

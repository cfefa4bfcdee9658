"""One decoder layer, from the operators.

``weights`` maps the layer's checkpoint names, less ``model.layers.N.``, to tensors.
Source: StepFun modeling_step3p5.py; vLLM step3p5.py.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .cache import LayerCache
from .config import LayerConfig
from .operators import Operators

LayerWeights = Mapping[str, Any]  # Tensor, or a quantised weight for routed experts and draft heads
Observer = Callable[[int, str, Tensor], None]  # layer index, what it is, the value


def observe_nothing(layer_index: int, what: str, value: Tensor) -> None:
    """The default observer."""


def decoder_layer(
    hidden: Tensor,
    weights: LayerWeights,
    layer: LayerConfig,
    positions: Tensor,
    frequencies: Tensor,
    cache: LayerCache | None,
    ops: Operators,
    observe: Observer = observe_nothing,
) -> Tensor:
    """Attention and feed-forward, each on the normalised input, each added to the residual.

    Args:
        hidden: [..., T, D]; batch axes only without a cache.
        positions: [T] absolute; frequencies: [R/2] of this layer.
        cache: keys and values before ``positions``, extended in place; None attends among ``positions`` only.

    Returns:
        [..., T, D] in the dtype of ``hidden``.
    """
    normed = ops.rms_norm(hidden, weights["input_layernorm.weight"], layer.rms_norm_eps)
    hidden = hidden + _attention(normed, weights, layer, positions, frequencies, cache, ops)
    normed = ops.rms_norm(hidden, weights["post_attention_layernorm.weight"], layer.rms_norm_eps)
    feed_forward = _experts if layer.is_moe else _dense
    return hidden + feed_forward(normed, weights, layer, ops, observe)


def _attention(
    normed: Tensor,
    weights: LayerWeights,
    layer: LayerConfig,
    positions: Tensor,
    frequencies: Tensor,
    cache: LayerCache | None,
    ops: Operators,
) -> Tensor:
    heads = (-1, layer.head_dim)
    q = ops.linear(normed, weights["self_attn.q_proj.weight"]).unflatten(-1, heads)
    k = ops.linear(normed, weights["self_attn.k_proj.weight"]).unflatten(-1, heads)
    v = ops.linear(normed, weights["self_attn.v_proj.weight"]).unflatten(-1, heads)
    q_weight, k_weight = weights["self_attn.q_norm.weight"], weights["self_attn.k_norm.weight"]
    q, k = ops.qk_norm(q, k, q_weight, k_weight, layer.rms_norm_eps)
    q, k = ops.rope(q, positions, frequencies), ops.rope(k, positions, frequencies)
    key_positions = positions
    if cache is not None:
        k, v, key_positions = cache.extend(k, v, positions)
    mixed = ops.attention(q, k, v, positions, key_positions, layer.sliding_window)
    gated = ops.head_gate(mixed, ops.linear(normed, weights["self_attn.g_proj.weight"]))
    return ops.linear(gated.flatten(-2), weights["self_attn.o_proj.weight"])


def _dense(normed: Tensor, weights: LayerWeights, layer: LayerConfig, ops: Operators, observe: Observer) -> Tensor:
    projections = (weights[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return ops.mlp(normed, *projections, layer.swiglu_limit_shared)


def _experts(normed: Tensor, weights: LayerWeights, layer: LayerConfig, ops: Operators, observe: Observer) -> Tensor:
    rows = normed.reshape(-1, normed.shape[-1])
    ids, expert_weights = ops.router(
        rows,
        weights["moe.gate.weight"],
        weights["moe.router_bias"],
        layer.num_experts_per_tok,
        layer.routed_scaling_factor,
    )
    observe(layer.index, "expert_ids", ids)
    observe(layer.index, "expert_weights", expert_weights)
    stacked = (weights[f"moe.{name}_proj.weight"] for name in ("gate", "up", "down"))
    routed = ops.experts(rows, ids, expert_weights, *stacked, layer.swiglu_limit).reshape(normed.shape)
    projections = (weights[f"share_expert.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return routed + ops.mlp(normed, *projections, layer.swiglu_limit_shared)

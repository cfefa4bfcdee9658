"""Wrong ways to take weights from a checkpoint: functions from the right tensors to what the engine holds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference.checkpoint import EXPERT_NAMES, LoadedWeights
from reference.config import LayerConfig, ModelConfig
from reference.quantization import quantize_fp8_weight, quantize_int4_weight

from .operators.stored import Widened

Layer = dict[str, Any]
Edit = Callable[[ModelConfig, Any], LoadedWeights]
ROUTED_DOWN, SHARED_DOWN = "moe.down_proj.weight", "share_expert.down_proj.weight"


def edited(edit: Callable[[Layer, LayerConfig, list[Layer]], None]) -> Edit:
    """Change each layer's tensors; ``edit`` also gets the untouched tensors of all layers."""

    def change(config: ModelConfig, weights: Any) -> LoadedWeights:
        layers = config.layers + config.mtp_layers
        originals = [dict(weights.layer(layer.index)) for layer in layers]
        copies = [dict(original) for original in originals]
        for layer, tensors in zip(layers, copies, strict=True):
            edit(tensors, layer, originals)
        return LoadedWeights(dict(weights.top()), copies)

    return change


def each(name: str, change: Callable[[Any], Any], which: Callable[[LayerConfig], bool] = lambda layer: True) -> Edit:
    """Change a tensor wherever a layer has one of that name."""

    def edit(tensors: Layer, layer: LayerConfig, originals: list[Layer]) -> None:
        if name in tensors and which(layer):
            tensors[name] = change(tensors[name])

    return edited(edit)


def every(names: tuple[str, ...], change: Callable[[Any], Any]) -> Edit:
    def edit(tensors: Layer, layer: LayerConfig, originals: list[Layer]) -> None:
        for name in names:
            if name in tensors:
                tensors[name] = change(tensors[name])

    return edited(edit)


def in_values(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Change a tensor, or what a quantised weight stands for."""

    def changed(weight: Any) -> Any:
        if isinstance(weight, Tensor):
            return change(weight)
        return Widened(change(weight.dequantize(torch.float64)))

    return changed


def swapped(first: str, second: str) -> Edit:
    def edit(tensors: Layer, layer: LayerConfig, originals: list[Layer]) -> None:
        if first in tensors:
            tensors[first], tensors[second] = tensors[second], tensors[first]

    return edited(edit)


def of_the_next_layer(*names: str) -> Edit:
    """Tensors of the next layer that has them in the same shape; the last such layer keeps its own."""

    def edit(tensors: Layer, layer: LayerConfig, originals: list[Layer]) -> None:
        for other in originals[layer.index + 1 :]:
            if all(name in tensors and name in other and tensors[name].shape == other[name].shape for name in names):
                tensors.update({name: other[name] for name in names})
                return

    return edited(edit)


def of_top(name: str, change: Callable[[dict[str, Tensor]], Tensor]) -> Edit:
    def edit(config: ModelConfig, weights: Any) -> LoadedWeights:
        top = dict(weights.top())
        layers = [weights.layer(layer.index) for layer in config.layers + config.mtp_layers]
        return LoadedWeights(top | {name: change(top)}, layers)

    return edit


def in_the_last_moe_layer(edit: Callable[[Layer], None]) -> Edit:
    def of_one(tensors: Layer, layer: LayerConfig, originals: list[Layer]) -> None:
        if layer.is_moe and not any("moe.gate.weight" in other for other in originals[layer.index + 1 :]):
            edit(tensors)

    return edited(of_one)


def _order_swapping_two(count: int) -> Tensor:
    order = torch.arange(count)
    order[[0, 1]] = order[[1, 0]]
    return order


def _half_lost(weight: Tensor) -> Tensor:
    """Columns of rank 1 are never added."""
    kept = weight.clone()
    kept[..., weight.shape[-1] // 2 :] = 0
    return kept


def _rows_swapped(weight: Tensor) -> Tensor:
    return torch.cat((weight[len(weight) // 2 :], weight[: len(weight) // 2]))


def _second_half_one_early(weight: Tensor) -> Tensor:
    half = len(weight) // 2
    return torch.cat((weight[:half], weight[half - 1 : -1]))


def _through_fp16(weight: Any) -> Any:
    return (weight / 256).half().to(weight.dtype) * 256 if isinstance(weight, Tensor) else weight


# Embedding and head
head_tied = of_top("lm_head.weight", lambda top: top["model.embed_tokens.weight"])
head_second_shard_one_early = of_top("lm_head.weight", lambda top: _second_half_one_early(top["lm_head.weight"]))
head_shards_swapped = of_top("lm_head.weight", lambda top: _rows_swapped(top["lm_head.weight"]))
head_half_lost = of_top("lm_head.weight", lambda top: _half_lost(top["lm_head.weight"]))
final_norm_missing = of_top("model.norm.weight", lambda top: torch.zeros_like(top["model.norm.weight"]))

# Norms
qk_norms_swapped = swapped("self_attn.q_norm.weight", "self_attn.k_norm.weight")
layer_norms_swapped = swapped("input_layernorm.weight", "post_attention_layernorm.weight")
k_norm_missing = each("self_attn.k_norm.weight", torch.zeros_like)
k_norm_sharded = each("self_attn.k_norm.weight", _rows_swapped)
norms_of_the_next_layer = of_the_next_layer("input_layernorm.weight", "post_attention_layernorm.weight")

# Attention
output_half_lost = each("self_attn.o_proj.weight", _half_lost)
gate_shards_swapped = each("self_attn.g_proj.weight", _rows_swapped)
gate_missing = each("self_attn.g_proj.weight", torch.zeros_like)
values_of_the_other_rank = each("self_attn.v_proj.weight", _rows_swapped)


def heads_of_full_layers_only(config: ModelConfig, weights: Any) -> LoadedWeights:
    """Sliding layers keep as many heads as full ones have, and nothing of the others reaches the output."""
    count = min(layer.num_attention_heads for layer in config.layers)

    def edit(tensors: Layer, layer: LayerConfig, originals: list[Layer]) -> None:
        kept = tensors["self_attn.o_proj.weight"].clone()
        kept[:, count * layer.head_dim :] = 0
        tensors["self_attn.o_proj.weight"] = kept

    return edited(edit)(config, weights)


# Router and routed experts
router_bias_missing = each("moe.router_bias", torch.zeros_like)
router_bias_of_the_next_layer = of_the_next_layer("moe.router_bias")
router_rows_swapped = each("moe.gate.weight", lambda weight: weight[_order_swapping_two(len(weight))])
router_in_fp8 = each("moe.gate.weight", lambda weight: quantize_fp8_weight(weight).dequantize(weight.dtype))
experts_gate_and_up_swapped = swapped("moe.gate_proj.weight", "moe.up_proj.weight")
experts_of_the_next_layer = of_the_next_layer(*EXPERT_NAMES)
experts_swapped = every(EXPERT_NAMES, in_values(lambda weight: weight[_order_swapping_two(len(weight))]))
experts_in_int4 = every(
    EXPERT_NAMES, lambda weight: quantize_int4_weight(weight if isinstance(weight, Tensor) else weight.dequantize())
)
experts_in_fp8 = every(
    EXPERT_NAMES, lambda weight: quantize_fp8_weight(weight if isinstance(weight, Tensor) else weight.dequantize())
)
experts_in_fp8_by_32 = every(EXPERT_NAMES, lambda weight: quantize_fp8_weight(weight.dequantize(), (32, 32)))


@in_the_last_moe_layer
def experts_swapped_in_one_layer(tensors: Layer) -> None:
    for name in EXPERT_NAMES:
        tensors[name] = in_values(lambda weight: weight[_order_swapping_two(len(weight))])(tensors[name])


@in_the_last_moe_layer
def expert_lost_in_one_layer(tensors: Layer) -> None:
    def lost(weight: Tensor) -> Tensor:
        kept = weight.clone()
        kept[5 % len(kept)] = 0
        return kept

    tensors[ROUTED_DOWN] = in_values(lost)(tensors[ROUTED_DOWN])


@in_the_last_moe_layer
def experts_missing_in_one_layer(tensors: Layer) -> None:
    for name in EXPERT_NAMES:
        tensors[name] = in_values(torch.zeros_like)(tensors[name])


@in_the_last_moe_layer
def router_rows_swapped_in_one_layer(tensors: Layer) -> None:
    weight = tensors["moe.gate.weight"]
    tensors["moe.gate.weight"] = weight[_order_swapping_two(len(weight))]


@in_the_last_moe_layer
def one_weight_of_an_expert_wrong(tensors: Layer) -> None:
    """A single number of one expert, the largest, has the other sign."""

    def flipped(weight: Tensor) -> Tensor:
        wrong = weight.clone()
        row, column = divmod(int(weight[0].abs().argmax()), weight.shape[-1])
        wrong[0, row, column] = -wrong[0, row, column]
        return wrong

    tensors[ROUTED_DOWN] = in_values(flipped)(tensors[ROUTED_DOWN])


# Shared expert
shared_expert_missing = each(SHARED_DOWN, torch.zeros_like)
shared_expert_scaled = each(SHARED_DOWN, lambda weight: 3 * weight)
shared_expert_times_ranks = each(SHARED_DOWN, lambda weight: 8 * weight)
shared_expert_twice = each(SHARED_DOWN, lambda weight: 2 * weight)
shared_expert_half_lost = each(SHARED_DOWN, _half_lost)
shared_expert_gate_and_up_swapped = swapped("share_expert.gate_proj.weight", "share_expert.up_proj.weight")
shared_expert_of_the_next_layer = of_the_next_layer(
    "share_expert.gate_proj.weight", "share_expert.up_proj.weight", SHARED_DOWN
)
shared_expert_in_fp8 = every(
    ("share_expert.gate_proj.weight", "share_expert.up_proj.weight", SHARED_DOWN),
    lambda weight: quantize_fp8_weight(weight).dequantize(weight.dtype),
)
attention_in_fp8 = every(
    tuple(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    lambda weight: quantize_fp8_weight(weight).dequantize(weight.dtype),
)
projections_in_fp16 = every(tuple(f"self_attn.{name}_proj.weight" for name in "qkvo") + EXPERT_NAMES, _through_fp16)

# MTP layers
mtp_head_norm_missing = each("transformer.shared_head.norm.weight", torch.zeros_like)
mtp_layers_one_on = of_the_next_layer(
    "eh_proj.weight",
    "enorm.weight",
    "hnorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
mtp_norms_swapped = swapped("enorm.weight", "hnorm.weight")


def mtp_last_depth_missing(config: ModelConfig, weights: Any) -> LoadedWeights:
    """The shard of the last depth never came."""

    def edit(tensors: Layer, layer: LayerConfig, originals: list[Layer]) -> None:
        if layer.index == len(originals) - 1:
            tensors.update({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})

    return edited(edit)(config, weights)

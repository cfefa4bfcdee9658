"""The model with one thing wrong, in every way that the miniature must show: what ``features.py`` measures."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import EXPERT_NAMES, LoadedWeights
from ..config import LayerConfig, ModelConfig
from ..model import Model
from ..operators import Operators
from ..ops.head_gate import head_gate
from ..ops.linear import linear
from ..ops.mtp_input import mtp_input
from ..ops.rms_norm import rms_norm
from ..ops.rope import rope
from ..ops.router import router
from ..ops.swiglu import swiglu
from ..quantization import (
    dense,
    dequantize_fp8_activation,
    quantize_fp8_activation,
    quantize_fp8_weight,
    quantize_int4_weight,
)

REFERENCE = Operators()
ARITHMETIC = "(nothing)"


@dataclass(frozen=True)
class Variant:
    """A model with one thing wrong: another config, other operators, or other weights."""

    feature: str
    change: str
    config: Callable[[ModelConfig], ModelConfig] = lambda config: config
    ops: Operators = REFERENCE
    weights: Callable[[ModelConfig, LoadedWeights], Any] = lambda config, weights: weights
    model: type[Model] = Model
    dtype: torch.dtype = torch.float32
    depth: int = 0  # which output shows it: 0 the backbone, 1 to 3 an MTP depth


def layers_where(which: Callable[[LayerConfig], bool], **changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    """Change fields of some layers."""

    def change(config: ModelConfig) -> ModelConfig:
        def of(layer: LayerConfig) -> LayerConfig:
            if not which(layer):
                return layer
            return replace(
                layer, **{name: value(layer) if callable(value) else value for name, value in changes.items()}
            )

        return replace(config, layers=tuple(map(of, config.layers)), mtp_layers=tuple(map(of, config.mtp_layers)))

    return change


def is_full(layer: LayerConfig) -> bool:
    return layer.attention_type == "full_attention"


def is_sliding(layer: LayerConfig) -> bool:
    return layer.attention_type == "sliding_attention"


def any_layer(layer: LayerConfig) -> bool:
    return True


def with_ops(**changes: Any) -> Operators:
    return replace(REFERENCE, **changes)


def norm_without_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, weight - 1, eps)


def norm_with_two(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, weight + 1, eps)


def norm_plus_one_in_bf16(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, (weight.bfloat16() + 1).to(weight.dtype) - 1, eps)


def every_norm(norm: Callable[[Tensor, Tensor, float], Tensor]) -> Operators:
    """All norms of the model, inside the composed operators too."""

    def qk(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return norm(q, q_weight, eps), norm(k, k_weight, eps)

    def joined(e: Tensor, h: Tensor, enorm: Tensor, hnorm: Tensor, weight: Tensor, eps: float) -> Tensor:
        return linear(torch.cat((norm(e, enorm, eps), norm(h, hnorm, eps)), dim=-1), weight)

    return with_ops(rms_norm=norm, qk_norm=qk, mtp_input=joined)


def interleaved_rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    size = 2 * len(frequencies)
    order = torch.cat((torch.arange(0, size, 2), torch.arange(1, size, 2), torch.arange(size, x.shape[-1])))
    return rope(x[..., order.to(x.device)], positions, frequencies)[..., order.argsort().to(x.device)]


def half_over_head_dim(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    padded = torch.zeros(x.shape[-1] // 2, dtype=frequencies.dtype, device=frequencies.device)
    padded[: len(frequencies)] = frequencies
    return rope(x, positions, padded)


def routed(change: Callable[..., tuple[Tensor, Tensor]]) -> Operators:
    return with_ops(router=change)


def scores(x: Tensor, weight: Tensor) -> Tensor:
    return torch.sigmoid(x @ weight.to(x.dtype).T)


def softmax_router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, factor: float) -> tuple[Tensor, Tensor]:
    p = (x @ weight.to(x.dtype).T).softmax(dim=-1)
    ids = (p + bias).topk(top_k).indices
    chosen = p.gather(-1, ids)
    return ids, chosen / chosen.sum(-1, keepdim=True) * factor


def biased_weights(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, factor: float) -> tuple[Tensor, Tensor]:
    chosen, ids = (scores(x, weight) + bias).topk(top_k)
    return ids, chosen / chosen.sum(-1, keepdim=True) * factor


def no_renormalisation(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, factor: float) -> tuple[Tensor, Tensor]:
    ids, _ = router(x, weight, bias, top_k, factor)
    return ids, scores(x, weight).gather(-1, ids) * factor


def bf16_router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, factor: float) -> tuple[Tensor, Tensor]:
    p = torch.sigmoid(linear(x.bfloat16(), weight)).float()
    ids = (p + bias).topk(top_k).indices
    chosen = p.gather(-1, ids)
    return ids, chosen / chosen.sum(-1, keepdim=True) * factor


def ninth_for_eighth(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, factor: float) -> tuple[Tensor, Tensor]:
    ids, _ = router(x, weight, bias, top_k + 1, factor)
    ids = torch.cat((ids[:, : top_k - 1], ids[:, top_k:]), dim=-1)
    chosen = scores(x, weight).gather(-1, ids)
    return ids, chosen / chosen.sum(-1, keepdim=True) * factor


def activation(wrong: Callable[[Tensor, Tensor, float], Tensor], where: str) -> Operators:
    """Another activation in the experts, or in the dense MLP and shared expert."""

    def wrong_mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
        return linear(wrong(linear(x, gate), linear(x, up), limit), down)

    def wrong_experts(
        x: Tensor, ids: Tensor, w: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float
    ) -> Tensor:
        y = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            token, slot = (ids == expert).nonzero(as_tuple=True)
            y[token] += wrong_mlp(x[token], gate[expert], up[expert], down[expert], limit) * w[token, slot, None]
        return y

    return with_ops(mlp=wrong_mlp) if where == "shared" else with_ops(experts=wrong_experts)


def clamped_before_silu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return torch.nn.functional.silu(gate) * up


def gate_clamped_only(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return torch.nn.functional.silu(gate).clamp(max=limit or math.inf) * up


def up_clamped_only(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    return torch.nn.functional.silu(gate) * (up.clamp(-limit, limit) if limit else up)


def gpt_oss_activation(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    if not limit:
        return torch.nn.functional.silu(gate) * up
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def hidden_first(e: Tensor, h: Tensor, enorm: Tensor, hnorm: Tensor, weight: Tensor, eps: float) -> Tensor:
    return linear(torch.cat((rms_norm(h, hnorm, eps), rms_norm(e, enorm, eps)), dim=-1), weight)


def norms_swapped(e: Tensor, h: Tensor, enorm: Tensor, hnorm: Tensor, weight: Tensor, eps: float) -> Tensor:
    return mtp_input(e, h, hnorm, enorm, weight, eps)


class PostNormHidden(Model):
    """Depth 0 takes the backbone's hidden state after the final norm, the others the output after their norm."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        name = "model.norm.weight" if depth == 0 else "transformer.shared_head.norm.weight"
        holder = self.weights.top() if depth == 0 else self.weights.layer(self.config.mtp_layers[depth - 1].index)
        normed = rms_norm(hidden, holder[name], self.config.rms_norm_eps)
        return super().mtp_hidden(depth, normed, token_ids, cache)


class Unchained(Model):
    """Every depth takes the backbone's hidden state."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        if depth == 0:
            self._backbone = hidden
        return super().mtp_hidden(depth, self._backbone[..., : token_ids.shape[-1], :], token_ids, cache)


class FirstLayerOnly(Model):
    """Every depth runs MTP layer 0."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        return super().mtp_hidden(0, hidden, token_ids, cache)


class MainHead(Model):
    """Every depth uses the backbone's head."""

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        weights = self.weights.layer(self.config.mtp_layers[depth].index)
        normed = rms_norm(hidden, weights["transformer.shared_head.norm.weight"], self.config.rms_norm_eps)
        return linear(normed, self.weights.top()["lm_head.weight"])


class FirstHead(Model):
    """Every depth uses the head of depth 0."""

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        return super().mtp_logits(0, hidden)


class ShiftedToken(Model):
    """MTP rows take the token at their own position instead of the next one."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        return super().mtp_hidden(depth, hidden, token_ids.roll(1, dims=-1), cache)


class NewestRowOnly(Model):
    """Depths 1 and 2 see no context but their own row: their caches were never filled."""

    def __init__(self, config: ModelConfig, *args: Any) -> None:
        first, *others = config.mtp_layers
        alone = tuple(replace(layer, sliding_window=1) for layer in others)
        super().__init__(replace(config, mtp_layers=(first, *alone)), *args)


def edited(
    edit: Callable[[dict[str, Any], LayerConfig], None],
) -> Callable[[ModelConfig, LoadedWeights], LoadedWeights]:
    """Weights with each layer's tensors changed."""

    def change(config: ModelConfig, weights: LoadedWeights) -> LoadedWeights:
        layers = []
        for layer in config.layers + config.mtp_layers:
            tensors = dict(weights.layer(layer.index))
            edit(tensors, layer)
            layers.append(tensors)
        return LoadedWeights(weights.top(), layers)

    return change


def tied_head(config: ModelConfig, weights: LoadedWeights) -> LoadedWeights:
    top = weights.top() | {"lm_head.weight": weights.top()["model.embed_tokens.weight"]}
    return LoadedWeights(top, [weights.layer(layer.index) for layer in config.layers + config.mtp_layers])


def swap(first: str, second: str) -> Callable[[dict[str, Any], LayerConfig], None]:
    def edit(tensors: dict[str, Any], layer: LayerConfig) -> None:
        if first in tensors:
            tensors[first], tensors[second] = tensors[second], tensors[first]

    return edit


def zero(name: str) -> Callable[[dict[str, Any], LayerConfig], None]:
    def edit(tensors: dict[str, Any], layer: LayerConfig) -> None:
        if name in tensors:
            tensors[name] = torch.zeros_like(tensors[name])

    return edit


def swap_experts(tensors: dict[str, Any], layer: LayerConfig) -> None:
    if layer.is_moe:
        order = torch.arange(layer.num_experts)
        order[[0, 1]] = order[[1, 0]]
        for name in ("gate", "up", "down"):
            tensors[f"moe.{name}_proj.weight"] = tensors[f"moe.{name}_proj.weight"][order]


def without_shared_clamp_list(limit: float) -> Callable[[ModelConfig], ModelConfig]:
    """The sibling model's list: the shared expert of the last two layers is clamped."""
    return layers_where(lambda layer: layer.swiglu_limit > 0, swiglu_limit_shared=limit)


def quantised_experts(quantise: Callable[[Tensor], Any]) -> Callable[[ModelConfig, LoadedWeights], LoadedWeights]:
    """Weights with the routed experts in another number format."""

    def edit(tensors: dict[str, Any], layer: LayerConfig) -> None:
        for name in EXPERT_NAMES:
            if name in tensors:
                tensors[name] = quantise(tensors[name])

    return edited(edit)


def fp8_activations(x: Tensor) -> Tensor:
    codes, scale = quantize_fp8_activation(x)
    return dequantize_fp8_activation(codes, scale)


def experts_on_fp8_activations(
    x: Tensor, ids: Tensor, w: Tensor, gate: Any, up: Any, down: Any, limit: float
) -> Tensor:
    """Both inputs of an expert's products in e4m3, a scale for each row's 128 values."""
    y, rows_TD = torch.zeros_like(x), fp8_activations(x)
    for expert in ids.unique().tolist():
        token, slot = (ids == expert).nonzero(as_tuple=True)
        rows = rows_TD[token]
        inner = swiglu(rows @ dense(gate[expert], x.dtype).T, rows @ dense(up[expert], x.dtype).T, limit)
        y[token] += fp8_activations(inner) @ dense(down[expert], x.dtype).T * w[token, slot, None]
    return y


VARIANTS = (
    Variant(ARITHMETIC, "bfloat16 activations", dtype=torch.bfloat16),
    Variant(ARITHMETIC, "FP8 experts", weights=quantised_experts(quantize_fp8_weight)),
    Variant(
        ARITHMETIC,
        "FP8 experts on FP8 activations",
        weights=quantised_experts(quantize_fp8_weight),
        ops=with_ops(experts=experts_on_fp8_activations),
    ),
    Variant(ARITHMETIC, "int4 experts", weights=quantised_experts(quantize_int4_weight)),
    Variant("sliding window", "one key fewer", layers_where(is_sliding, sliding_window=lambda a: a.sliding_window - 1)),
    Variant("sliding window", "one key more", layers_where(is_sliding, sliding_window=lambda a: a.sliding_window + 1)),
    Variant("sliding window", "off: sliding layers see all", layers_where(is_sliding, sliding_window=None)),
    Variant("sliding window", "on full layers too", layers_where(is_full, sliding_window=32)),
    Variant("head-wise gate", "off", ops=with_ops(head_gate=lambda x, gate: x)),
    Variant("head-wise gate", "tanh for sigmoid", ops=with_ops(head_gate=lambda x, g: x * torch.tanh(g)[..., None])),
    Variant("head-wise gate", "order of heads reversed", ops=with_ops(head_gate=lambda x, g: head_gate(x, g.flip(-1)))),
    Variant("QK-norm", "off", ops=with_ops(qk_norm=lambda q, k, qw, kw, eps: (q, k))),
    Variant(
        "QK-norm",
        "weights of q and k swapped",
        weights=edited(swap("self_attn.q_norm.weight", "self_attn.k_norm.weight")),
    ),
    Variant("rotary fraction", "full layers rotate all dimensions", layers_where(is_full, rotary_dim=64)),
    Variant("rotary fraction", "sliding layers rotate half", layers_where(is_sliding, rotary_dim=32)),
    Variant("rotary pairs", "interleaved", ops=with_ops(rope=interleaved_rope)),
    Variant("rotary pairs", "halves of head_dim, not of the rotated slice", ops=with_ops(rope=half_over_head_dim)),
    Variant("rotary theta", "10,000 everywhere", layers_where(is_full, rope_theta=1e4)),
    Variant("rotary theta", "5,000,000 everywhere", layers_where(is_sliding, rope_theta=5e6)),
    Variant("rotary scaling", "off", layers_where(is_full, rope_scaling=None)),
    Variant(
        "rotary scaling",
        "on sliding layers too",
        lambda c: layers_where(is_sliding, rope_scaling=c.layers[0].rope_scaling)(c),
    ),
    Variant(
        "rotary scaling",
        "factor 4 for 2",
        layers_where(is_full, rope_scaling=lambda a: replace(a.rope_scaling, factor=4.0)),
    ),
    Variant("norm +1", "left out", ops=every_norm(norm_without_one)),
    Variant("norm +1", "added twice", ops=every_norm(norm_with_two)),
    Variant("norm +1", "added in bfloat16", ops=every_norm(norm_plus_one_in_bf16)),
    Variant(
        "norm epsilon",
        "1e-6 for 1e-5",
        lambda c: replace(layers_where(any_layer, rms_norm_eps=1e-6)(c), rms_norm_eps=1e-6),
    ),
    Variant("router bias", "ignored", weights=edited(zero("moe.router_bias"))),
    Variant("router bias", "in the weights too", ops=routed(biased_weights)),
    Variant("router", "softmax for sigmoid", ops=routed(softmax_router)),
    Variant("router", "bfloat16 for float32", ops=routed(bf16_router)),
    Variant("router", "ninth expert for the eighth", ops=routed(ninth_for_eighth)),
    Variant("router", "seven experts for eight", layers_where(lambda a: a.is_moe, num_experts_per_tok=7)),
    Variant("router renormalisation", "off", ops=routed(no_renormalisation)),
    Variant("routed scaling", "1 for 3", layers_where(lambda a: a.is_moe, routed_scaling_factor=1.0)),
    Variant("routed scaling", "2.5 for 3", layers_where(lambda a: a.is_moe, routed_scaling_factor=2.5)),
    Variant("experts", "two of 24 swapped", weights=edited(swap_experts)),
    Variant("experts", "gate and up swapped", weights=edited(swap("moe.gate_proj.weight", "moe.up_proj.weight"))),
    Variant("shared expert", "off", weights=edited(zero("share_expert.down_proj.weight"))),
    Variant(
        "shared expert",
        "scaled by 3 as well",
        weights=edited(lambda t, a: t.update({n: 3 * t[n] for n in ("share_expert.down_proj.weight",) if n in t})),
    ),
    Variant("routed clamp", "off", layers_where(any_layer, swiglu_limit=0.0)),
    Variant("routed clamp", "last layer only", layers_where(lambda a: a.index == 3, swiglu_limit=0.0)),
    Variant("routed clamp", "16 for 7", layers_where(lambda a: a.swiglu_limit > 0, swiglu_limit=16.0)),
    Variant("routed clamp", "before silu", ops=activation(clamped_before_silu, "routed")),
    Variant("routed clamp", "gate only", ops=activation(gate_clamped_only, "routed")),
    Variant("routed clamp", "up only", ops=activation(up_clamped_only, "routed")),
    Variant("routed clamp", "gpt-oss activation", ops=activation(gpt_oss_activation, "routed")),
    Variant("shared clamp", "off", layers_where(any_layer, swiglu_limit_shared=0.0)),
    Variant("shared clamp", "7 for 16", layers_where(lambda a: a.swiglu_limit_shared > 0, swiglu_limit_shared=7.0)),
    Variant("shared clamp", "on both last layers, as in the sibling model", without_shared_clamp_list(16.0)),
    Variant("shared clamp", "before silu", ops=activation(clamped_before_silu, "shared")),
    Variant("head", "tied to the embedding", weights=tied_head),
    Variant("MTP input", "hidden state first", ops=with_ops(mtp_input=hidden_first), depth=1),
    Variant("MTP input", "enorm and hnorm swapped", ops=with_ops(mtp_input=norms_swapped), depth=1),
    Variant("MTP input", "token of the row itself, not the next", model=ShiftedToken, depth=1),
    Variant("MTP input", "hidden state after the norm", model=PostNormHidden, depth=1),
    Variant("MTP chaining", "every depth takes the backbone's hidden state", model=Unchained, depth=2),
    Variant("MTP chaining", "hidden state after the norm", model=PostNormHidden, depth=3),
    Variant("MTP layers", "layer 0 at every depth", model=FirstLayerOnly, depth=2),
    Variant("MTP heads", "the backbone's head at every depth", model=MainHead, depth=1),
    Variant("MTP heads", "the head of depth 0 at every depth", model=FirstHead, depth=3),
    Variant("MTP context", "depths 1 and 2 see their own row only", model=NewestRowOnly, depth=2),
    Variant(
        "MTP window", "one key fewer", layers_where(is_sliding, sliding_window=lambda a: a.sliding_window - 1), depth=1
    ),
)

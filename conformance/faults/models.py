"""Models with one thing wrong around their operators: subclasses of the reference's ``Model``."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reference.cache import KVCache, LayerCache
from reference.config import LayerConfig
from reference.model import Model
from reference.operators import Operators

from . import caches
from .operators.arithmetic import bf16

# Residual stream and head


class HeadWithoutNorm(Model):
    """The head takes the residual stream as it is."""

    def logits(self, hidden: Tensor) -> Tensor:
        return self.ops.linear(hidden, self.weights.top()["lm_head.weight"])


class HeadInBf16(Model):
    """Logits are rounded to bfloat16."""

    def logits(self, hidden: Tensor) -> Tensor:
        return bf16(super().logits(hidden))


class HeadCapped(Model):
    """Logits are squeezed below 30, as in models with a soft cap."""

    def logits(self, hidden: Tensor) -> Tensor:
        return 30 * (super().logits(hidden) / 30).tanh()


class LastTokenMasked(Model):
    """The last token of the vocabulary is taken for padding."""

    def logits(self, hidden: Tensor) -> Tensor:
        logits = super().logits(hidden).clone()
        logits[..., -1] = -1e4
        return logits


class TokensWrap(Model):
    """Token ids outside the vocabulary start again at its beginning."""

    def embed(self, token_ids: Tensor) -> Tensor:
        return super().embed(token_ids % self.config.vocab_size)


class ResidualInBf16(Model):
    """The residual stream is rounded to bfloat16 after each layer."""

    def _layer(self, hidden: Tensor, layer: LayerConfig, *rest: Any, **options: Any) -> Tensor:
        return bf16(super()._layer(hidden, layer, *rest, **options))


class LastLayerSkipped(Model):
    """One layer fewer than the config says."""

    def _layer(self, hidden: Tensor, layer: LayerConfig, *rest: Any, **options: Any) -> Tensor:
        output = super()._layer(hidden, layer, *rest, **options)
        return hidden if layer.index == self.config.num_hidden_layers - 1 else output


# Operators that depend on the layer, or that see what they should not


class WithOperators(Model):
    """Operators may be others in some layers and for some numbers of tokens."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        return ops

    def _layer(self, hidden: Tensor, layer: LayerConfig, *rest: Any, **options: Any) -> Tensor:
        usual, self.ops = self.ops, self.operators_of(layer, hidden.shape[-2], self.ops)
        try:
            return super()._layer(hidden, layer, *rest, **options)
        finally:
            self.ops = usual


def _unclamped(ops: Operators) -> Operators:
    return replace(
        ops,
        experts=lambda *args: ops.experts(*args[:-1], 0.0),
        mlp=lambda *args: ops.mlp(*args[:-1], 0.0),
    )


class DecodesWithoutClamp(WithOperators):
    """The kernel for one token knows no clamp."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        return _unclamped(ops) if num_tokens == 1 else ops


class DecodesWithoutGate(WithOperators):
    """The kernel for one token knows no head-wise gate."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        return replace(ops, head_gate=lambda x, gate: x.clone()) if num_tokens == 1 else ops


class DecodesWithoutQkNorm(WithOperators):
    """The kernel for one token knows no norm of q and k."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        return replace(ops, qk_norm=lambda q, k, *_: (q.clone(), k.clone())) if num_tokens == 1 else ops


class PrefillsWithoutSharedClamp(WithOperators):
    """The kernel for many tokens knows no clamp of the shared expert."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        return replace(ops, mlp=lambda *args: ops.mlp(*args[:-1], 0.0)) if num_tokens > 1 else ops


class PositionsWrapInTheWindow(WithOperators):
    """Sliding layers rotate by the place in a table as long as the window."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        window = layer.sliding_window
        if window is None:
            return ops
        return replace(ops, rope=lambda x, positions, table: ops.rope(x, positions % window, table))


class QueriesRotatedOnly(WithOperators):
    """Keys keep their direction."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        def rope(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
            is_key = x.shape[-2] == layer.num_key_value_heads
            return x.clone() if is_key else ops.rope(x, positions, table)

        return replace(ops, rope=rope)


class NormsAfterRotation(WithOperators):
    """Queries and keys are rotated first and normalised then."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        weights = self.weights.layer(layer.index)

        def rope(x: Tensor, positions: Tensor, table: Tensor) -> Tensor:
            kind = "k" if x.shape[-2] == layer.num_key_value_heads else "q"
            weight = weights[f"self_attn.{kind}_norm.weight"]
            return ops.rms_norm(ops.rope(x, positions, table), weight, layer.rms_norm_eps)

        return replace(ops, qk_norm=lambda q, k, *_: (q, k), rope=rope)


class ValuesNormalised(WithOperators):
    """Values get the norm of the keys, too."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        weights = self.weights.layer(layer.index)
        v_weight, k_norm = weights["self_attn.v_proj.weight"], weights["self_attn.k_norm.weight"]

        def linear(x: Tensor, weight: Tensor) -> Tensor:
            y = ops.linear(x, weight)
            if weight is not v_weight:
                return y
            return ops.rms_norm(y.unflatten(-1, (-1, layer.head_dim)), k_norm, layer.rms_norm_eps).flatten(-2)

        return replace(ops, linear=linear)


class GateFromTheResidual(WithOperators):
    """The gate's projection takes the residual stream, not its norm."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        gate_weight = self.weights.layer(layer.index)["self_attn.g_proj.weight"]
        taken: list[Tensor] = []

        def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
            taken.append(x)
            return ops.rms_norm(x, weight, eps)

        def linear(x: Tensor, weight: Tensor) -> Tensor:
            return ops.linear(taken[0] if weight is gate_weight else x, weight)

        return replace(ops, rms_norm=rms_norm, linear=linear)


class GateAfterTheProjection(WithOperators):
    """The mean of a token's gates scales what the output projection returns."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        output_weight = self.weights.layer(layer.index)["self_attn.o_proj.weight"]
        gates: list[Tensor] = []

        def head_gate(x: Tensor, gate: Tensor) -> Tensor:
            gates.append(gate)
            return x.clone()

        def linear(x: Tensor, weight: Tensor) -> Tensor:
            y = ops.linear(x, weight)
            return y * torch.sigmoid(gates[-1]).mean(dim=-1, keepdim=True) if weight is output_weight else y

        return replace(ops, head_gate=head_gate, linear=linear)


class SharedExpertOfTheResidual(WithOperators):
    """The shared expert of MoE layers takes the residual stream, not its norm."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        if not layer.is_moe:
            return ops
        taken: list[Tensor] = []

        def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
            taken.append(x)
            return ops.rms_norm(x, weight, eps)

        return replace(ops, rms_norm=rms_norm, mlp=lambda x, *rest: ops.mlp(taken[-1], *rest))


class SharedExpertGated(WithOperators):
    """The shared expert of MoE layers is weighed by a sigmoid of its own, as in models that have one."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        if not layer.is_moe:
            return ops

        def mlp(x: Tensor, *rest: Any) -> Tensor:
            return ops.mlp(x, *rest) * torch.sigmoid(x.mean(dim=-1, keepdim=True))

        return replace(ops, mlp=mlp)


class RoutedSumHalvedWithShared(WithOperators):
    """Each rank of two adds the shared expert to its half of the routed sum before both are added up."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        return replace(ops, mlp=lambda *args: 2 * ops.mlp(*args)) if layer.is_moe else ops


class TwoLayersShareAGraph(WithOperators):
    """The last two layers run what was built for the first layer of their kind, its limits included."""

    def operators_of(self, layer: LayerConfig, num_tokens: int, ops: Operators) -> Operators:
        alike = [
            other
            for other in self.config.layers
            if other.is_moe == layer.is_moe and other.attention_type == layer.attention_type
        ]
        if not alike:
            return ops
        limit, shared = alike[0].swiglu_limit, alike[0].swiglu_limit_shared
        return replace(
            ops,
            experts=lambda *args: ops.experts(*args[:-1], limit),
            mlp=lambda *args: ops.mlp(*args[:-1], shared),
        )


# Rotary tables


class FrequenciesOverHeadDim(Model):
    """The exponent's denominator is the head's size, not that of what rotates."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for layer in self.config.layers + self.config.mtp_layers:
            exponents = torch.arange(0, layer.rotary_dim, 2, dtype=torch.float64) / layer.head_dim
            self._frequencies[layer.index] = layer.rope_theta**-exponents


class FrequenciesWithoutBlend(Model):
    """Wavelengths between the two borders of llama3 scaling are stretched as the longest ones are."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for layer in self.config.layers:
            scaling = layer.rope_scaling
            if scaling is None:
                continue
            plain = layer.rope_theta ** -(torch.arange(0, layer.rotary_dim, 2, dtype=torch.float64) / layer.rotary_dim)
            kept = scaling.original_max_position_embeddings * plain / (2 * math.pi) > scaling.high_freq_factor
            self._frequencies[layer.index] = torch.where(kept, plain, plain / scaling.factor)


class FrequenciesInBf16(Model):
    """The table of frequencies is rounded to bfloat16."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._frequencies = {index: bf16(table) for index, table in self._frequencies.items()}


# Positions and caches


class PositionsRestart(Model):
    """Every chunk starts at position 0."""

    def _positions(self, token_ids: Tensor, cache: KVCache | None) -> Tensor:
        super()._positions(token_ids, cache)
        return torch.arange(token_ids.shape[-1], device=self.device)


class WithCaches(Model):
    """Each layer's cache is of another class."""

    layer_cache: type[LayerCache] = LayerCache

    def new_cache(self) -> KVCache:
        return caches.exchanged(super().new_cache(), self.config.layers, self.layer_cache)


def with_caches(layer_cache: type[LayerCache]) -> type[WithCaches]:
    return type(layer_cache.__name__, (WithCaches,), {"layer_cache": layer_cache, "__doc__": layer_cache.__doc__})


RingOfTheWindow = with_caches(caches.RingOfTheWindow)
RingOneShort = with_caches(caches.RingOneShort)
RingAPageShort = with_caches(caches.RingAPageShort)
FullLayersInARing = with_caches(caches.FullLayersInARing)
PositionsBySlot = with_caches(caches.PositionsBySlot)
ValuesOneSlotLate = with_caches(caches.ValuesOneSlotLate)
ValuesAreKeys = with_caches(caches.ValuesAreKeys)
CacheInBf16 = with_caches(caches.InBf16)
CacheInFp8 = with_caches(caches.InFp8)
LastOfAChunkLost = with_caches(caches.LastOfAChunkLost)
FirstForgotten = with_caches(caches.FirstForgotten)
ChunksForgetTheWindow = with_caches(caches.ChunksForgetTheWindow)
TruncatesNothing = with_caches(caches.TruncatesNothing)
TruncatesOneTooMany = with_caches(caches.TruncatesOneTooMany)
TruncatesOneTooFew = with_caches(caches.TruncatesOneTooFew)
TruncatesFullLayersOnly = with_caches(caches.TruncatesFullLayersOnly)
TruncatesSlidingLayersOnly = with_caches(caches.TruncatesSlidingLayersOnly)


# Equivalents: what these change, nobody can see


class PositionsFromOne(Model):
    """Positions are counted from one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        usual = self.ops
        self.ops = replace(usual, rope=lambda x, positions, table: usual.rope(x, positions + 1, table))


class SlidingLayersKeepEverything(Model):
    """Sliding layers keep every position, and attention looks at the window only."""

    def new_cache(self) -> KVCache:
        cache = super().new_cache()
        for layer in self.config.layers:
            whole = replace(layer, sliding_window=None)
            cache.layers[layer.index] = LayerCache(whole, self.dtype, self.device)
        return cache


ValuesBeforeKeys = with_caches(caches.ValuesBeforeKeys)

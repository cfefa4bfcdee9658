"""One step of the model over new tokens of several sequences: which kernels run, on which weights and caches.

Sequences that decode have the same number of new tokens each and come first; chunks of prompts follow, one by one.
Nothing inside a step waits for the device, and what it needs to know of the host is in its arguments: a step of
decoding can be captured in a CUDA graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reference.config import LayerConfig
from reference.quantization import Fp8Weight, Int4Weight

from .fused.add_rms_norm import add_rms_norm
from .fused.argmax import argmax
from .fused.decode_attention import Workspace, decode_attention, workspace_for
from .fused.linear_quantized import linear_quantized
from .fused.lm_head_greedy import MAX_TOKENS, lm_head_greedy
from .fused.moe import Gated, Routing, gated_block
from .fused.moe_stored import Stored, stored
from .fused.prefill_attention import prefill_attention
from .fused.qk_norm_rope_cache import qk_norm_rope_cache
from .fused.step_inputs import StepInputs
from .fused.sum_rms_norm import sum_rms_norm
from .kv_cache import KVCache
from .launch import is_fixed_order
from .ops.embedding import embedding
from .ops.linear import linear
from .ops.mtp_input import mtp_input
from .ops.rms_norm import rms_norm
from .ops.router import router
from .weights import Gates, LayerWeights, Matrix, ModelWeights, MtpWeights, tensors_of

Observer = Callable[[int, Tensor, Tensor], None]  # layer index, expert ids [T, A], expert weights [T, A]


@dataclass(frozen=True)
class Chunk:
    """New tokens of one prompt.

    Attributes:
        rows: which of the step's.
        start: tokens that the sequence holds before them.
        pages: [width] int32, its row of the page table.
        window_rows: where in a ring's rows the newest tokens before the chunk lie, at most window - 1 of them.
        kept_rows: where the newest of the chunk's tokens go, at most a ring of them.
    """

    rows: slice
    start: int
    pages: Tensor
    window_rows: Tensor
    kept_rows: Tensor


@dataclass(frozen=True)
class Step:
    """What goes through the layers.

    Attributes:
        inputs: positions and slots of all tokens [T], and the context lengths of the B sequences that decode.
        query_len: new tokens of each of these.
        pages, rings: [B, width] int32, their rows of the tables.
        chunks: prompts, after the tokens that decode.
        workspaces: of its decode attention, by shape, for all layers of a kind; a step that a graph holds has the
            runner's, others their own, which end with them: their shapes are as many as those of prompts' ends.
    """

    inputs: StepInputs
    query_len: int
    pages: Tensor
    rings: Tensor
    chunks: tuple[Chunk, ...] = ()
    workspaces: dict[tuple[Any, ...], Workspace] = field(default_factory=dict)

    @property
    def num_decoding(self) -> int:
        """Tokens of sequences that decode."""
        return len(self.inputs.context_lens) * self.query_len


@dataclass(frozen=True)
class _Block:
    """A layer as kernels take it."""

    weights: LayerWeights
    mlp: Gated
    experts: Gated | None


class Runner:
    """Layers, heads and embeddings on one device."""

    def __init__(self, weights: ModelWeights, cache: KVCache) -> None:
        self.weights, self.cache, self.config = weights, cache, weights.config
        self.device = weights.device
        self.dtype = weights.format.dtype
        self._layers = [_block(layer, weights) for layer in weights.layers]
        self._mtp_layers = [_block(layer, weights) for layer in weights.mtp_layers]
        self._frequencies = {
            block.weights.layer.index: _frequencies(block.weights.layer).to(self.device)
            for block in self._layers + self._mtp_layers
        }
        self.workspaces: dict[tuple[Any, ...], Workspace] = {}  # of steps that graphs hold

    @property
    def num_depths(self) -> int:
        """MTP layers."""
        return len(self._mtp_layers)

    def embed(self, tokens: Tensor) -> Tensor:
        """[T] token ids to [T, D]."""
        return embedding(tokens, self.weights.embedding)

    def backbone(self, tokens: Tensor, step: Step, observe: Observer | None = None) -> tuple[Tensor, Tensor]:
        """All layers of the backbone.

        Args:
            tokens: [T] int64.
            observe: is told what every router chose.

        Returns:
            [T, D] before the final norm, what MTP depth 0 takes; and [T, D] after it, what the head takes.
        """
        residual = self.embed(tokens)
        return residual, self._through(self._layers, residual, self.weights.norm, step, observe)

    def mtp(self, depth: int, tokens: Tensor, hidden: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The layer of one MTP depth.

        Args:
            tokens: [T], those that follow ``depth + 1`` positions after each row.
            hidden: [T, D], of the backbone or of the depth before, before any norm.

        Returns:
            [T, D] before the depth's own norm, what the next depth takes; and after it, what its head takes.
        """
        block = self._mtp_layers[depth]
        extra = _mtp(block.weights)
        residual = self._joined(extra, self.embed(tokens), hidden, block.weights.layer.rms_norm_eps)
        return residual, self._through([block], residual, extra.norm, step, None)

    def logits(self, normed: Tensor, depth: int | None = None) -> Tensor:
        """[T, V] of the model's head, or of an MTP depth's own."""
        return project(normed, self._head(depth))

    def greedy(self, normed: Tensor, depth: int | None = None) -> Tensor:
        """[T] int64: the likeliest token after each row."""
        head = self._head(depth)
        if isinstance(head, Tensor) and len(normed) <= MAX_TOKENS and not is_fixed_order():
            return lm_head_greedy(normed, head)
        return argmax(project(normed, head))

    def _head(self, depth: int | None) -> Matrix:
        return self.weights.head if depth is None else _mtp(self._mtp_layers[depth].weights).head

    def _joined(self, extra: MtpWeights, embedded: Tensor, hidden: Tensor, eps: float) -> Tensor:
        if isinstance(extra.joined, Tensor):
            return mtp_input(embedded, hidden, extra.embedded_norm, extra.hidden_norm, extra.joined, eps)
        normed = rms_norm(embedded, extra.embedded_norm, eps), rms_norm(hidden, extra.hidden_norm, eps)
        return project(torch.cat(normed, dim=-1), extra.joined)

    def _through(
        self, blocks: Sequence[_Block], residual: Tensor, last_norm: Tensor, step: Step, observe: Observer | None
    ) -> Tensor:
        """Layers one after the other; ``residual`` is changed, and what comes back is normalised by ``last_norm``."""
        norms = [block.weights.input_norm for block in blocks[1:]] + [last_norm]
        normed = rms_norm(residual, blocks[0].weights.input_norm, self.config.rms_norm_eps)
        for block, next_norm in zip(blocks, norms, strict=True):
            weights, eps = block.weights, block.weights.layer.rms_norm_eps
            mixed = self._attention(normed, weights, step)
            normed = _plain(add_rms_norm(mixed, residual, weights.post_norm, eps))
            if block.experts is None:
                dense = gated_block("mlp", normed, block.mlp, None)
                normed = _plain(add_rms_norm(dense, residual, next_norm, eps))
            else:
                routed, shared = self._experts(normed, block, block.experts, observe)
                normed = sum_rms_norm(routed, shared, residual, next_norm, eps)
        return normed

    def _attention(self, normed: Tensor, weights: LayerWeights, step: Step) -> Tensor:
        layer, inputs, decoding = weights.layer, step.inputs, step.num_decoding
        num_heads, num_kv_heads, head_dim = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim
        projected = project(normed, weights.qkvg)
        ends = [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim, num_heads]
        q, k, v, gate = projected.split(ends, dim=-1)
        q, k, v = (part.unflatten(-1, (-1, head_dim)) for part in (q, k, v))
        k_cache, v_cache = self.cache.k[layer.index], self.cache.v[layer.index]
        window = layer.sliding_window

        def put(rows: slice, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
            """Write keys and values of some rows; their queries, normalised and rotated."""
            return qk_norm_rope_cache(
                *(q[rows], k[rows], v[rows], weights.q_norm, weights.k_norm, layer.rms_norm_eps),
                *(inputs.positions[rows], self._frequencies[layer.index], keys, values, slots[rows]),
            )

        parts = []
        if decoding:
            rows = slice(0, decoding)
            turned = put(rows, k_cache, v_cache, inputs.page_slots if window is None else inputs.ring_slots)
            table = step.pages if window is None else step.rings
            space = _workspace(step, turned, k_cache, table, window)
            parts.append(
                decode_attention(turned, k_cache, v_cache, table, inputs.context_lens, window, gate[rows], space)
            )
        for chunk in step.chunks:
            gates = gate[chunk.rows].contiguous()
            if window is None:
                turned = put(chunk.rows, k_cache, v_cache, inputs.page_slots)
                attended = prefill_attention(turned, k_cache, v_cache, chunk.pages, chunk.start, None, gates)
            else:
                attended = self._windowed_chunk(chunk, put, k_cache, v_cache, window, gates)
            parts.append(attended)
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return project(attended.flatten(1), weights.output)

    def _windowed_chunk(
        self,
        chunk: Chunk,
        put: Callable[[slice, Tensor, Tensor, Tensor], Tensor],
        k_cache: Tensor,
        v_cache: Tensor,
        window: int,
        gate: Tensor,
    ) -> Tensor:
        """A chunk may be longer than its ring: it attends to a copy of the window before it and to its own keys."""
        before, num_tokens = len(chunk.window_rows), chunk.rows.stop - chunk.rows.start
        k_rows, v_rows = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
        k, v = (k_rows.new_empty((before + num_tokens, *k_rows.shape[1:])) for _ in range(2))
        if before:
            torch.index_select(k_rows, 0, chunk.window_rows, out=k[:before])
            torch.index_select(v_rows, 0, chunk.window_rows, out=v[:before])
        slots = torch.arange(before - chunk.rows.start, before + num_tokens, device=k.device)  # by row of the step
        turned = put(chunk.rows, k[None], v[None], slots)
        kept = len(chunk.kept_rows)
        k_rows.index_copy_(0, chunk.kept_rows, k[before + num_tokens - kept :])
        v_rows.index_copy_(0, chunk.kept_rows, v[before + num_tokens - kept :])
        return prefill_attention(turned, k, v, None, before, window, gate)

    def _experts(
        self, normed: Tensor, block: _Block, experts: Gated, observe: Observer | None
    ) -> tuple[Tensor, Tensor]:
        """The routed experts' sum and the shared expert, [T, D] each."""
        weights = block.weights
        assert weights.router is not None, "a layer with experts has a router"
        assert weights.router_bias is not None, "a layer with experts has a router"
        layer = weights.layer
        chosen = router(
            normed, weights.router, weights.router_bias, layer.num_experts_per_tok, layer.routed_scaling_factor
        )
        if observe is not None:
            observe(layer.index, *chosen)
        # Between router and routed experts, the shared one: its weights come while the router waits for its own, and
        # the experts' while it multiplies (H200, 2026-11-24, the same configurations: a step 4.38 ms with the shared
        # expert on a stream of its own, 4.29 before the router in this one; others, here against there: 3.85, 3.93).
        shared = gated_block("mlp", normed, block.mlp, None)
        routed = gated_block("experts", normed, experts, Routing(*chosen, layer.num_experts, is_older=True))
        return routed, shared


def _workspace(step: Step, q: Tensor, k_cache: Tensor, table: Tensor, window: int | None) -> Workspace:
    """One for all layers of a kind: they come one after the other."""
    key = (q.shape, table.shape, window, k_cache.shape[2], is_fixed_order())
    if key not in step.workspaces:
        step.workspaces[key] = workspace_for(q, k_cache, table, window)
    return step.workspaces[key]


def project(x: Tensor, weight: Matrix) -> Tensor:
    """``linear`` on a weight as it is, FP8 or int4; activations as they are."""
    return linear(x, weight) if isinstance(weight, Tensor) else linear_quantized(x, weight)


def _plain(y: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(y, Tensor), "nothing was rounded"
    return y


def _mtp(weights: LayerWeights) -> MtpWeights:
    assert weights.mtp is not None, "an MTP layer has what MTP layers have"
    return weights.mtp


def _block(weights: LayerWeights, model: ModelWeights) -> _Block:
    layer, dtype = weights.layer, model.format.dtype
    routed = weights.experts
    rounds = model.format.rounds and routed is not None and isinstance(routed.gate, Fp8Weight)
    experts = None if routed is None else _gated(routed, dtype, layer.swiglu_limit, rounds)
    return _Block(weights, _gated(weights.mlp, dtype, layer.swiglu_limit_shared, False), experts)


def _gated(gates: Gates, dtype: torch.dtype, limit: float, rounds: bool) -> Gated:
    x = torch.empty(0, dtype=dtype, device=next(tensors_of(gates)).device)
    gate, up, down = (_held(name, getattr(gates, name), x) for name in ("gate", "up", "down"))
    return Gated(gate, up, down, limit, rounds)


def _held(name: str, weight: Matrix, x: Tensor) -> Stored:
    stacked = weight if len(weight.shape) == 3 else with_expert_axis(weight)
    num_experts, outputs, inputs = stacked.shape
    return stored("load", name, stacked, (num_experts, outputs, inputs), x)


def with_expert_axis(weight: Matrix) -> Matrix:
    """[O, I] as [1, O, I]: a dense block is an expert that every token has."""
    if isinstance(weight, Fp8Weight):
        return Fp8Weight(weight.data[None], weight.scale_inv[None], weight.block)
    if isinstance(weight, Int4Weight):
        return Int4Weight(weight.data[None], weight.scale[None], weight.group)
    return weight[None]


def _frequencies(layer: LayerConfig) -> Tensor:
    """Angles per position of each pair of dimensions, [R / 2] float64, with the llama3 scaling where there is one.

        f_i = theta^(-2 i / R);  f_i / factor where its wavelength exceeds original / low, f_i where it is below
        original / high, a mixture in between

    Source: StepFun modeling_step3p5.py; the rule of Llama 3.1 (transformers, modeling_rope_utils.py).
    """
    exponents = torch.arange(0, layer.rotary_dim, 2, dtype=torch.float64) / layer.rotary_dim
    frequencies = layer.rope_theta**-exponents
    scaling = layer.rope_scaling
    if scaling is None:
        return frequencies
    turns = scaling.original_max_position_embeddings * frequencies / (2 * torch.pi)  # over the original context
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor

"""The bytes that a step of the whole model cannot avoid reading, and the arithmetic of a prompt, by formula."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reference.config import LayerConfig, ModelConfig
from reference.quantization import weight_bytes

from .cost import Cost

BF16_BYTES = 2


@dataclass(frozen=True)
class Stored:
    """Formats of routed experts and of every other matrix; None is bfloat16. Routers and the embedding are bfloat16.

    Attributes:
        draft_heads: of the MTP depths' output heads; None: as ``rest``.
    """

    experts: str | None
    rest: str | None
    draft_heads: str | None = None


FORMATS = {"int4": Stored("int4", "fp8"), "fp8": Stored("fp8", "fp8"), "bf16": Stored(None, None)}


def matrix_bytes(format: str | None, *shape: int) -> int:
    """Bytes of a weight [..., O, I], scales included."""
    if format is not None:
        return weight_bytes(format, shape)
    total = BF16_BYTES
    for size in shape:
        total *= size
    return total


def draft_head_bytes(config: ModelConfig, stored: Stored) -> int:
    """The output head of one MTP depth."""
    return matrix_bytes(stored.draft_heads or stored.rest, config.vocab_size, config.hidden_size)


def step_bytes(
    config: ModelConfig, stored: Stored, batch: int, context: int, num_drafts: int, distinct: Sequence[float]
) -> dict[str, float]:
    """What one step reads, by what it is: each weight that is used once, each cached key and value once a sequence.

    Args:
        context: tokens of each sequence, those of the step included.
        num_drafts: d: d + 1 tokens of each sequence are verified, then d depths draft.
        distinct: experts that the step's tokens choose together, for each layer that has them.
    """
    query_len = num_drafts + 1
    parts: dict[str, float] = {"attention": 0, "dense": 0, "shared": 0, "router": 0, "experts": 0}
    parts |= {"kv_full": 0, "kv_sliding": 0}
    chosen = iter(distinct)
    for layer in config.layers:
        parts["attention"] += attention_bytes(layer, stored.rest)
        parts[kv_kind(layer)] += batch * kv_bytes(layer, context, query_len)
        if layer.is_moe:
            shape = (layer.intermediate_size, layer.hidden_size)
            one = 2 * matrix_bytes(stored.experts, *shape) + matrix_bytes(stored.experts, *shape[::-1])
            parts["experts"] += next(chosen) * one
            parts["router"] += matrix_bytes(None, layer.num_experts, layer.hidden_size)
            parts["shared"] += mlp_bytes(layer, layer.shared_expert_intermediate_size, stored.rest)
        else:
            parts["dense"] += mlp_bytes(layer, layer.intermediate_size, stored.rest)
    parts["head"] = matrix_bytes(stored.rest, config.vocab_size, config.hidden_size)
    parts["embedding"] = batch * query_len * config.hidden_size * BF16_BYTES
    if num_drafts:
        parts["drafts"] = sum(
            attention_bytes(layer, stored.rest)
            + mlp_bytes(layer, layer.intermediate_size, stored.rest)
            + matrix_bytes(stored.rest, config.hidden_size, 2 * config.hidden_size)
            + batch * kv_bytes(layer, context, query_len + depth)
            + draft_head_bytes(config, stored)
            for depth, layer in enumerate(config.mtp_layers[:num_drafts])
        )
    return parts


def attention_bytes(layer: LayerConfig, format: str | None) -> int:
    """The projections of one layer's attention."""
    heads, kv_heads, head_dim = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim
    outputs = (heads + 2 * kv_heads) * head_dim + heads
    return matrix_bytes(format, outputs, layer.hidden_size) + matrix_bytes(format, layer.hidden_size, heads * head_dim)


def mlp_bytes(layer: LayerConfig, width: int, format: str | None) -> int:
    """Gate, up and down of one block."""
    hidden = layer.hidden_size
    return 2 * matrix_bytes(format, width, hidden) + matrix_bytes(format, hidden, width)


def kv_bytes(layer: LayerConfig, context: int, query_len: int) -> int:
    """Keys and values that one sequence's new tokens see in a layer."""
    seen = context if layer.sliding_window is None else min(context, layer.sliding_window + query_len - 1)
    return seen * 2 * layer.num_key_value_heads * layer.head_dim * BF16_BYTES


def kv_kind(layer: LayerConfig) -> str:
    return "kv_full" if layer.sliding_window is None else "kv_sliding"


def prefill_cost(config: ModelConfig, stored: Stored, start: int, num_tokens: int) -> Cost:
    """A chunk of a prompt after ``start`` tokens, with one row of logits: flops of products, bytes of weights.

    Every expert is read: a chunk's tokens choose all of them together.
    """
    distinct = [float(layer.num_experts) for layer in config.layers if layer.is_moe]
    flops = 2.0 * config.vocab_size * config.hidden_size
    for layer in config.layers:
        flops += num_tokens * 2.0 * _parameters_of_a_token(layer)
        pairs = attended_pairs(start, num_tokens, layer.sliding_window)
        flops += 4.0 * pairs * layer.num_attention_heads * layer.head_dim
    read = step_bytes(config, stored, 1, start + num_tokens, 0, distinct)
    return Cost(sum(read.values()), flops)


def held_weight_bytes(config: ModelConfig, stored: Stored, expert_sets: int | None = None) -> int:
    """Weights of the whole model, its MTP layers included, as they lie in memory.

    Args:
        expert_sets: storages of experts, where several layers share one; None: each has its own.
    """
    hidden, vocab = config.hidden_size, config.vocab_size
    total = vocab * hidden * BF16_BYTES + matrix_bytes(stored.rest, vocab, hidden) + hidden * BF16_BYTES
    with_experts = [layer for layer in config.layers if layer.is_moe]
    for layer in with_experts[: len(with_experts) if expert_sets is None else expert_sets]:
        shape = (layer.num_experts, layer.intermediate_size, layer.hidden_size)
        down = (layer.num_experts, layer.hidden_size, layer.intermediate_size)
        total += 2 * matrix_bytes(stored.experts, *shape) + matrix_bytes(stored.experts, *down)
    for layer in (*config.layers, *config.mtp_layers):
        width = layer.shared_expert_intermediate_size if layer.is_moe else layer.intermediate_size
        total += attention_bytes(layer, stored.rest) + mlp_bytes(layer, width, stored.rest)
        total += (2 * hidden + 2 * layer.head_dim) * BF16_BYTES
        if layer.is_moe:
            total += layer.num_experts * (hidden * BF16_BYTES + 4)
    return total + len(config.mtp_layers) * (
        matrix_bytes(stored.rest, hidden, 2 * hidden) + draft_head_bytes(config, stored) + 3 * hidden * BF16_BYTES
    )


def cached_bytes(config: ModelConfig, context: int, batch: int, item_bytes: int = BF16_BYTES) -> dict[str, int]:
    """Keys and values of the backbone and the MTP layers, by kind, of sequences of one length."""
    parts = {"kv_full": 0, "kv_sliding": 0}
    for layer in (*config.layers, *config.mtp_layers):
        held = min(context, layer.sliding_window or context)
        parts[kv_kind(layer)] += batch * held * 2 * layer.num_key_value_heads * layer.head_dim * item_bytes
    return parts


def attended_pairs(start: int, num_tokens: int, window: int | None) -> float:
    """Pairs of a query and a key that it sees."""
    last = start + num_tokens
    if window is None:
        return (last * (last + 1) - start * (start + 1)) / 2
    short = max(min(last, window) - start, 0)  # queries that see everything before them
    return (short * (2 * start + short + 1)) / 2 + (num_tokens - short) * window


def _parameters_of_a_token(layer: LayerConfig) -> float:
    hidden = layer.hidden_size
    heads, kv_heads, head_dim = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim
    attention = hidden * ((2 * heads + 2 * kv_heads) * head_dim + heads)
    if not layer.is_moe:
        return attention + 3 * hidden * layer.intermediate_size
    widths = layer.num_experts_per_tok * layer.intermediate_size + layer.shared_expert_intermediate_size
    return attention + 3 * hidden * widths + hidden * layer.num_experts


def expected_distinct(config: ModelConfig, num_tokens: int) -> Mapping[int, float]:
    """Distinct experts of independent, uniform choices, by layer."""
    return {
        layer.index: layer.num_experts * (1 - (1 - layer.num_experts_per_tok / layer.num_experts) ** num_tokens)
        for layer in config.layers
        if layer.is_moe
    }

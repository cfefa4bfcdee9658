"""The published geometry without the published weights: seeded random codes, made on the device in seconds.

What a step costs depends on shapes, formats and routing, not on what the numbers mean. Scales keep activations of the
order of one; routers are random, so that tokens choose experts uniformly, or alike where ``correlation`` is above 0.
Where experts of all layers do not fit, several layers read the same storage: far more is read between two uses than
a cache holds, and the description says so.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reference.config import LayerConfig, ModelConfig
from reference.quantization import Fp8Weight, Int4Weight, weight_bytes

from .decoding import Decoder, Fetched
from .kv_cache import (
    MAX_STEP,
    CacheSizes,
    KVCache,
    cache_bytes,
    fit,
    page_bytes,
    pages_for,
    slot_bytes,
)
from .loading import KEPT_FREE_BYTES, free_bytes
from .runner import Runner
from .speculative import Kind, Rows
from .steps import Piece, step_of
from .weights import Format, Gates, LayerWeights, Matrix, ModelWeights, MtpWeights

FORMATS = {
    "int4": Format(torch.bfloat16, experts="int4", rest="fp8"),
    "fp8": Format(torch.bfloat16, experts="fp8", rest="fp8"),
    "bf16": Format(torch.bfloat16),
}
ARITHMETIC = (
    "weights are widened to bfloat16 and meet bfloat16 activations (w4a16, w8a16): decoding is bound by bytes, and "
    "rounding activations to FP8 would cost a launch for each product and save none"
)
INT4_SPREAD = (sum((code - 8) ** 2 for code in range(16)) / 16) ** 0.5  # root mean square of random codes
FP8_BELOW_TWO = 0b1011_1111  # clears an exponent's highest bit: magnitudes below 2, and no NaN
KEPT_FOR_CACHES_BYTES = 16 << 30  # beside weights: a context of 256K tokens, and something over
GROUP = 128


@dataclass(frozen=True)
class Description:
    """What was made.

    Attributes:
        expert_sets: storages of experts; fewer than layers with experts where those do not fit.
        draft_heads: what the MTP depths' heads are held in.
        reuse_distance_bytes: read between two uses of one expert's storage, at least; None where nothing is shared.
    """

    format: str
    arithmetic: str
    seed: int
    correlation: float
    expert_sets: int
    moe_layers: int
    reuse_distance_bytes: int | None
    draft_heads: str


class _Maker:
    """Random weights of one format on one device."""

    def __init__(self, format: Format, device: torch.device, seed: int) -> None:
        self.format, self.device = format, device
        self._generator = torch.Generator(device).manual_seed(seed)
        codes = torch.arange(256, dtype=torch.uint8) & FP8_BELOW_TWO
        self._fp8_spread = float(codes.view(torch.float8_e4m3fn).double().square().mean().sqrt())

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.empty(shape, dtype=self.format.dtype, device=self.device)
        return x.normal_(0, scale, generator=self._generator)

    def norm(self, width: int) -> Tensor:
        return self.normal(width, scale=0.1)

    def matrix(self, *shape: int) -> Matrix:
        return self._matrix(self.format.rest, shape)

    def draft_head(self, *shape: int) -> Matrix:
        return self._matrix(self.format.of_draft_heads, shape)

    def experts(self, *shape: int) -> Matrix:
        return self._matrix(self.format.experts, shape)

    def _matrix(self, kind: str | None, shape: tuple[int, ...]) -> Matrix:
        """[..., O, I] that leaves the scale of its inputs."""
        scale = shape[-1] ** -0.5
        if kind is None:
            return self.normal(*shape, scale=scale)
        if kind == "int4":
            # Codes reach from -8 to 7: without signs, weights have a mean, and all tokens come to look alike.
            signs = self._bytes(*shape[:-1], -(-shape[-1] // GROUP)).bitwise_and_(1).to(torch.float16) * 2 - 1
            codes = self._bytes(*shape[:-1], shape[-1] // 2)
            return Int4Weight(codes, signs * (scale / INT4_SPREAD), GROUP)
        blocks = (*shape[:-2], -(-shape[-2] // GROUP), -(-shape[-1] // GROUP))
        codes = self._bytes(*shape).bitwise_and_(FP8_BELOW_TWO).view(torch.float8_e4m3fn)
        return Fp8Weight(codes, torch.full(blocks, scale / self._fp8_spread, device=self.device))

    def _bytes(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self.device).random_(0, 256, generator=self._generator)


def synthetic_weights(
    config: ModelConfig,
    format: str,
    device: torch.device,
    seed: int = 0,
    correlation: float = 0.0,
    draft_heads: str | None = None,
) -> tuple[ModelWeights, Description]:
    """Make a model's weights.

    Args:
        format: of FORMATS.
        correlation: of two tokens' embeddings, 0 to 1.
        draft_heads: as of ``Format``.

    Raises:
        ValueError: an unknown format, or memory for fewer than two layers' experts.
    """
    if format not in FORMATS:
        raise ValueError(f"format: is {format!r}; want one of {', '.join(FORMATS)}")
    chosen = replace(FORMATS[format], draft_heads=draft_heads)
    make = _Maker(chosen, device, seed)
    hidden, vocab = config.hidden_size, config.vocab_size
    embedding = make.normal(vocab, hidden, scale=(1 - correlation) ** 0.5)
    if correlation:
        embedding += make.normal(hidden, scale=correlation**0.5)
    norm, head = make.norm(hidden), make.matrix(vocab, hidden)
    layers = [_layer(make, config, layer) for layer in config.layers]
    mtp_layers = tuple(_layer(make, config, layer) for layer in config.mtp_layers)
    with_experts = [number for number, layer in enumerate(config.layers) if layer.is_moe]
    sets = _expert_sets(config, chosen, device, len(with_experts))
    stacks: list[Gates] = []
    for count, number in enumerate(with_experts):
        layer = config.layers[number]
        if len(stacks) < sets:
            shape = (layer.num_experts, layer.intermediate_size, layer.hidden_size)
            down = (layer.num_experts, layer.hidden_size, layer.intermediate_size)
            stacks.append(Gates(make.experts(*shape), make.experts(*shape), make.experts(*down)))
        layers[number] = replace(layers[number], experts=stacks[count % sets])
    weights = ModelWeights(config, chosen, embedding, norm, head, tuple(layers), mtp_layers)
    distance = None
    if sets < len(with_experts):
        layer = config.layers[with_experts[0]]
        share = layer.num_experts_per_tok / layer.num_experts
        distance = int((sets - 1) * share * expert_bytes(layer, chosen))
    heads = chosen.of_draft_heads or "bf16"
    described = Description(format, ARITHMETIC, seed, correlation, sets, len(with_experts), distance, heads)
    return weights, described


def expert_bytes(layer: LayerConfig, format: Format) -> int:
    """Bytes of a layer's routed experts."""
    shapes = (
        *((layer.num_experts, layer.intermediate_size, layer.hidden_size),) * 2,
        (layer.num_experts, layer.hidden_size, layer.intermediate_size),
    )
    if format.experts is None:
        return sum(torch.Size(shape).numel() * format.dtype.itemsize for shape in shapes)
    return sum(weight_bytes(format.experts, shape) for shape in shapes)


def _expert_sets(config: ModelConfig, format: Format, device: torch.device, most: int) -> int:
    """How many layers' experts fit."""
    if device.type != "cuda" or most == 0:
        return most
    layer = next(layer for layer in config.layers if layer.is_moe)
    room = free_bytes(device) - KEPT_FOR_CACHES_BYTES
    sets = min(most, room // expert_bytes(layer, format))
    if sets < min(most, 2):
        raise ValueError(
            f"experts: one layer's take {expert_bytes(layer, format) / 1e9:.1f} GB and {max(room, 0) / 1e9:.1f} GB are "
            "free; want room for two layers' at least, or a smaller format"
        )
    return int(sets)


def _layer(make: _Maker, config: ModelConfig, layer: LayerConfig) -> LayerWeights:
    hidden, heads, head_dim = layer.hidden_size, layer.num_attention_heads, layer.head_dim
    width = layer.shared_expert_intermediate_size if layer.is_moe else layer.intermediate_size
    is_mtp = layer.index >= config.num_hidden_layers
    return LayerWeights(
        layer=layer,
        input_norm=make.norm(hidden),
        post_norm=make.norm(hidden),
        qkvg=make.matrix((heads + 2 * layer.num_key_value_heads) * head_dim + heads, hidden),
        q_norm=make.norm(head_dim),
        k_norm=make.norm(head_dim),
        output=make.matrix(hidden, heads * head_dim),
        mlp=Gates(make.matrix(width, hidden), make.matrix(width, hidden), make.matrix(hidden, width)),
        router=make.normal(layer.num_experts, hidden, scale=hidden**-0.5) if layer.is_moe else None,
        router_bias=torch.zeros(layer.num_experts, device=make.device) if layer.is_moe else None,
        mtp=MtpWeights(
            make.norm(hidden),
            make.norm(hidden),
            make.matrix(hidden, 2 * hidden),
            make.norm(hidden),
            make.draft_head(config.vocab_size, hidden),
        )
        if is_mtp
        else None,
    )


class SyntheticModel:
    """What ``s35 perf model`` measures: it opens a cache of its own for each measurement."""

    def __init__(self, weights: ModelWeights, description: Description) -> None:
        self.weights, self.description = weights, description
        self.config, self.device = weights.config, weights.device
        self.weight_bytes = weights.nbytes

    def decoding(self, batch: int, context: int, num_drafts: int, captures: bool) -> "Decoding":
        """Contexts of so many tokens, filled with random numbers, that decode.

        Raises:
            ValueError: they do not fit; the message says what would.
        """
        return Decoding(self, batch, context, num_drafts, captures)

    def chunk(self, start: int, num_tokens: int) -> "PromptChunk":
        """A chunk of a prompt after ``start`` tokens of random keys and values.

        Raises:
            ValueError: it does not fit; the message says what would.
        """
        return PromptChunk(self, start, num_tokens)


class _Opened:
    """A cache of contexts of one length."""

    def __init__(self, model: SyntheticModel, batch: int, length: int) -> None:
        config, dtype = model.config, model.weights.format.dtype
        sizes = CacheSizes(batch, batch * pages_for(length), length)
        fit(config, dtype, free_bytes(model.device) + KEPT_FREE_BYTES // 2, sizes)
        self.cache = KVCache(config, dtype, model.device, sizes)
        generator = torch.Generator(model.device).manual_seed(1)
        for tensor in (*self.cache.k.values(), *self.cache.v.values()):
            tensor.normal_(generator=generator)
        self.contexts = [self.cache.open() for _ in range(batch)]
        for context in self.contexts:
            self.cache.reserve(context, length)
        self.runner = Runner(model.weights, self.cache)
        self.full_bytes = sizes.num_pages * page_bytes(config, dtype)
        self.sliding_bytes = batch * slot_bytes(config, dtype)
        self.predicted_bytes = cache_bytes(config, dtype, sizes)
        self.allocated_bytes = self.cache.nbytes

    def random_tokens(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        vocab = self.runner.config.vocab_size
        return torch.randint(vocab, shape, generator=generator).to(self.cache.device)


class Decoding(_Opened):
    """Steps of decoding at one length of context.

    Every step begins with other random tokens, so that each chooses its experts anew.
    """

    DRAWS = 64

    def __init__(self, model: SyntheticModel, batch: int, context: int, num_drafts: int, captures: bool) -> None:
        super().__init__(model, batch, context)
        self._rows = Rows(self.runner, self.cache, batch, Kind(num_drafts))
        self._decoder = Decoder(self._rows, captures)
        self._start = max(context - self.DRAWS * 2 - MAX_STEP, 1)
        self._drawn = self.random_tokens(self.DRAWS, batch, num_drafts + 1, seed=2)
        for row, one in enumerate(self.contexts):
            self._rows.pages[row] = self.cache.page_table[one.slot]
            self._rows.rings[row] = self.cache.ring_table[one.slot]
        self._rows.limits.fill_(context)
        self.rewind()

    def rewind(self) -> None:
        """Back to the length that it began with."""
        self._rows.lengths.fill_(self._start)

    def next_tokens(self, number: int) -> None:
        """Begin the next step with other tokens."""
        self._rows.tokens.copy_(self._drawn[number % self.DRAWS])

    def step(self) -> Fetched:
        """One step; its record is on its way to the host."""
        return self._decoder.step()

    def replay(self) -> None:
        """One step and nothing else."""
        if self._decoder.graph is None:
            self._decoder.step()
        else:
            self._decoder.graph.replay()

    def distinct_experts(self, number: int) -> list[int]:
        """How many experts one step touches in each layer that has them."""
        seen: list[int] = []

        def observe(layer: int, ids: Tensor, weights: Tensor) -> None:
            seen.append(len(ids.unique()))

        rows = self._rows
        self.next_tokens(number)
        inputs = rows._inputs(rows.query_len)
        self.runner.backbone(rows.tokens.view(-1), rows._step(inputs, rows.query_len), observe)
        return seen


class PromptChunk(_Opened):
    """A chunk of a prompt, again and again."""

    def __init__(self, model: SyntheticModel, start: int, num_tokens: int) -> None:
        super().__init__(model, 1, start + num_tokens)
        self._piece = Piece(self.contexts[0], start, num_tokens)
        self._step = step_of(self.cache, [self._piece]).step
        self._tokens = self.random_tokens(num_tokens, seed=3)

    def run(self) -> None:
        """All layers, and the head on the last row."""
        _, normed = self.runner.backbone(self._tokens, self._step)
        self.runner.greedy(normed[-1:])

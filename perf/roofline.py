"""What a device could reach at best: a projection from bytes, operations and its rates. Nothing here is measured.

Decode reads every weight that a step needs once, and each sequence's keys and values once; prefill multiplies. The
slower of memory and arithmetic decides. What is left out (launches, activations, imbalance, the host) only adds time.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reference.accounting import inspect, kv_cache_bytes
from reference.config import ModelConfig

from .ops.routing import distinct_experts

FORMATS = Path(__file__).parent / "formats.toml"
KV_BITS = (16, 8)
COLLECTIVES_PER_LAYER = 2  # after attention, after the feed-forward block
COLLECTIVE_US = 7.0  # one-stage all-reduce up to 128 KiB between 8 GPUs of a host; source: vllm-project/vllm#37756


@dataclass(frozen=True)
class Format:
    """Bits of a stored parameter; ``perf/formats.toml``."""

    name: str
    says: str
    experts: float
    linear: float
    wide: float
    multiplies_in: str


@dataclass(frozen=True)
class Counts:
    """Parameters of the model, by what a step reads of them.

    Attributes:
        embedding: of which a step reads one row a token.
        wide: head, router and norms.
        linear: attention, dense and shared feed-forward blocks.
        expert: one routed expert of one layer.
        draft_linear, draft_wide: of one MTP depth: its block, its head.
    """

    embedding: int
    wide: int
    head: int
    linear: int
    expert: int
    num_experts: int
    experts_per_token: int
    moe_layers: int
    depths: int
    draft_linear: int
    draft_wide: int

    @property
    def routed(self) -> int:
        return self.expert * self.num_experts * self.moe_layers


@dataclass(frozen=True)
class Rates:
    """What the projection divides by.

    Attributes:
        linear_tflops: of matrix products; None: not known, so prefill is not projected.
        attention_tflops: of the products in attention.
    """

    memory_gb_per_s: float
    linear_tflops: float | None = None
    attention_tflops: float | None = None


@dataclass(frozen=True)
class Parallel:
    """Devices that share the model: tensor parallel everywhere, or experts apart (EP).

    Attributes:
        experts_apart: each expert lies whole on one device; the device with the most chosen ones decides.
        collective_us: of one all-reduce; a lower bound for messages over 128 KiB.
    """

    devices: int = 1
    experts_apart: bool = False
    collective_us: float = COLLECTIVE_US


ONE_DEVICE = Parallel()


@dataclass(frozen=True)
class Step:
    """A projected decode step, or prefill.

    Attributes:
        tokens: that it yields, of all sequences together.
        bound: memory, compute or collectives: which part is the longest.
    """

    ms: float
    tokens: float
    bound: str

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.ms * 1e3


@cache
def formats() -> Mapping[str, Format]:
    values = tomllib.loads(FORMATS.read_text(encoding="utf-8"))
    return {name: Format(name=name, **fields) for name, fields in values.items()}


def format_called(name: str) -> Format:
    """Find a format.

    Raises:
        ValueError: unknown; the message lists them.
    """
    if name not in formats():
        raise ValueError(f"format: {name!r} is not known; want one of {', '.join(formats())}")
    return formats()[name]


def counts_of(config: ModelConfig) -> Counts:
    """Count from the table of tensors (``reference.accounting``)."""
    parameters = inspect(config)["parameters"]
    moe = [layer for layer in config.layers if layer.is_moe]
    heads = config.num_nextn_predict_layers * parameters["lm_head"]
    depths = config.num_nextn_predict_layers
    linear = ("attention_full_layers", "attention_sliding_layers", "dense_mlp", "shared_experts")
    return Counts(
        embedding=parameters["embedding"],
        wide=parameters["lm_head"] + parameters["router"] + parameters["norms"],
        head=parameters["lm_head"],
        linear=sum(parameters[name] for name in linear),
        expert=parameters["routed_experts"] // sum(layer.num_experts for layer in moe),
        num_experts=moe[0].num_experts,
        experts_per_token=moe[0].num_experts_per_tok,
        moe_layers=len(moe),
        depths=depths,
        draft_linear=(parameters["mtp"] - heads) // depths if depths else 0,
        draft_wide=parameters["lm_head"] if depths else 0,
    )


def weight_bytes(counts: Counts, form: Format, with_mtp: bool = False) -> float:
    """Bytes of all weights."""
    bits = counts.routed * form.experts + counts.linear * form.linear + (counts.wide + counts.embedding) * form.wide
    drafts = counts.depths * (counts.draft_linear * form.linear + counts.draft_wide * form.wide)
    return (bits + (drafts if with_mtp else 0)) / 8


def experts_touched(counts: Counts, tokens: int, correlation: float = 0.0) -> float:
    """Distinct experts of one layer that this many tokens choose; independent of each other unless correlated."""
    return distinct_experts(tokens, counts.num_experts, counts.experts_per_token, correlation)


def step_bytes(counts: Counts, form: Format, tokens: int, imbalance: float = 1.0, correlation: float = 0.0) -> float:
    """Weight bytes that one step of this many tokens reads.

    Args:
        imbalance: busiest device's share of the experts, over the mean.
    """
    experts = experts_touched(counts, tokens, correlation) * counts.moe_layers * counts.expert * imbalance
    return (experts * form.experts + counts.linear * form.linear + counts.wide * form.wide) / 8


def draft_bytes(counts: Counts, form: Format) -> float:
    """Weight bytes of one pass through every MTP depth."""
    return counts.depths * (counts.draft_linear * form.linear + counts.draft_wide * form.wide) / 8


def busiest_share(chosen: int, experts: int, devices: int) -> float:
    """Expected load of the busiest device over the mean, if ``chosen`` distinct experts lie on devices by chance.

    Exact for one token: experts are drawn without replacement from equal groups.
    """
    if devices == 1 or chosen == 0:
        return 1.0
    group = experts // devices
    total = math.comb(group * devices, chosen)
    expected, below = 0.0, 0.0
    for most in range(1, min(group, chosen) + 1):
        at_most = _ways(chosen, group, devices, most) / total
        expected += most * (at_most - below)
        below = at_most
    return expected / (chosen / devices)


def _ways(chosen: int, group: int, devices: int, most: int) -> int:
    """Ways to choose so that no group gives more than ``most``: a product of polynomials."""
    one = [math.comb(group, count) for count in range(min(most, chosen) + 1)]
    product = [1]
    for _ in range(devices):
        longer = [0] * min(len(product) + len(one) - 1, chosen + 1)
        for i, a in enumerate(product):
            for j, b in enumerate(one[: len(longer) - i]):
                longer[i + j] += a * b
        product = longer
    return product[chosen] if chosen < len(product) else 0


def decode(
    config: ModelConfig,
    form: Format,
    rates: Rates,
    context: int,
    batch: int,
    parallel: Parallel = ONE_DEVICE,
    kv_bits: int = 16,
) -> Step:
    """One token for each of ``batch`` sequences of ``context`` cached positions."""
    counts = counts_of(config)
    return _step(config, counts, form, rates, context, batch, batch, 0.0, parallel, kv_bits)


def speculative(
    config: ModelConfig,
    form: Format,
    rates: Rates,
    context: int,
    parallel: Parallel = ONE_DEVICE,
    kv_bits: int = 16,
    correlation: float = 0.0,
) -> Step:
    """One step of MTP on one sequence: verify the last token and every draft, then draft anew at each depth.

    Its ``tokens`` is 1: multiply ``tokens_per_s`` by an acceptance length. Drafts' own windows are not counted.
    """
    counts = counts_of(config)
    extra = draft_bytes(counts, form)
    tokens = 1 + counts.depths
    step = _step(config, counts, form, rates, context, 1, tokens, extra, parallel, kv_bits, correlation)
    return Step(step.ms, 1, step.bound)


def break_even(plain: Step, step: Step) -> float:
    """Acceptance length (tokens emitted by a verification, from 1) above which MTP is faster than plain decoding."""
    return step.ms / plain.ms


def _step(
    config: ModelConfig,
    counts: Counts,
    form: Format,
    rates: Rates,
    context: int,
    sequences: int,
    tokens: int,
    extra_bytes: float,
    parallel: Parallel,
    kv_bits: int,
    correlation: float = 0.0,
) -> Step:
    if not 0 <= context <= config.max_position_embeddings:
        raise ValueError(f"context: is {context}; want 0 to {config.max_position_embeddings}")
    imbalance = 1.0
    if parallel.experts_apart:
        chosen = round(experts_touched(counts, tokens, correlation))
        imbalance = busiest_share(chosen, counts.num_experts, parallel.devices)
    kv = kv_cache_bytes(config, context) * kv_bits / 16
    moved = step_bytes(counts, form, tokens, imbalance, correlation) + sequences * kv + extra_bytes
    parts = {"memory": moved / parallel.devices / rates.memory_gb_per_s / 1e6}
    if rates.linear_tflops:
        active = counts.wide + counts.linear + counts.experts_per_token * counts.moe_layers * counts.expert
        parts["compute"] = 2 * tokens * active / parallel.devices / rates.linear_tflops / 1e9
    collectives = collectives_ms(config, parallel)
    slower = max(parts, key=lambda name: parts[name])
    bound = slower if parts[slower] >= collectives else "collectives"
    return Step(parts[slower] + collectives, sequences, bound)


def collectives_ms(config: ModelConfig, parallel: Parallel) -> float:
    """All-reduces of one step, one after another."""
    if parallel.devices == 1:
        return 0.0
    return len(config.layers) * COLLECTIVES_PER_LAYER * parallel.collective_us / 1e3


@dataclass(frozen=True)
class PrefillWork:
    """Operations of one prompt: a multiplication and an addition are two."""

    linear_flops: float  # without the head, which one token needs
    attention_flops: float

    @property
    def flops(self) -> float:
        return self.linear_flops + self.attention_flops


def prefill_work(config: ModelConfig, tokens: int) -> PrefillWork:
    """Count a causal prefill of ``tokens``; sliding layers see their window."""
    counts = counts_of(config)
    active = counts.wide - counts.head + counts.linear + counts.experts_per_token * counts.moe_layers * counts.expert
    attention = 0
    for layer in config.layers:
        window = min(layer.sliding_window or tokens, tokens)
        pairs = tokens * window - window * (window - 1) // 2
        attention += 4 * layer.num_attention_heads * layer.head_dim * pairs
    return PrefillWork(2 * tokens * active, attention)


def prefill(
    config: ModelConfig, form: Format, rates: Rates, tokens: int, parallel: Parallel = ONE_DEVICE
) -> Step | None:
    """One prompt; None: the device's rate of matrix products is not known."""
    if rates.linear_tflops is None or rates.attention_tflops is None:
        return None
    work = prefill_work(config, tokens)
    compute = work.linear_flops / rates.linear_tflops + work.attention_flops / rates.attention_tflops
    parts = {
        "compute": compute / parallel.devices / 1e9,
        "memory": step_bytes(counts_of(config), form, tokens) / parallel.devices / rates.memory_gb_per_s / 1e6,
    }
    slower = max(parts, key=lambda name: parts[name])
    return Step(parts[slower] + collectives_ms(config, parallel), tokens, slower)


@dataclass(frozen=True)
class Memory:
    """What must lie in the memory of each device, in bytes."""

    weights: float
    kv_full: float
    kv_sliding: float
    runtime: float
    available: float

    @property
    def needed(self) -> float:
        return self.weights + self.kv_full + self.kv_sliding + self.runtime

    @property
    def left(self) -> float:
        return self.available - self.needed


def memory(
    config: ModelConfig,
    form: Format,
    context: int,
    batch: int,
    available_bytes: float,
    runtime_bytes: float,
    parallel: Parallel = ONE_DEVICE,
    kv_bits: int = 16,
    with_mtp: bool = True,
) -> Memory:
    """Weights and caches by part, spread evenly over the devices; the runtime's share is each device's own."""
    share = kv_bits / 16 * batch / parallel.devices
    whole = kv_cache_bytes(config, context)
    sliding = sum(
        2 * layer.num_key_value_heads * layer.head_dim * 2 * min(context, layer.sliding_window)
        for layer in config.layers
        if layer.sliding_window is not None
    )
    weights = weight_bytes(counts_of(config), form, with_mtp) / parallel.devices
    return Memory(weights, (whole - sliding) * share, sliding * share, runtime_bytes, available_bytes)


def longest_context(
    config: ModelConfig,
    form: Format,
    available_bytes: float,
    runtime_bytes: float,
    parallel: Parallel = ONE_DEVICE,
    kv_bits: int = 16,
    with_mtp: bool = True,
) -> int | None:
    """The longest context of one sequence that fits, up to the model's; None: not even the weights do."""

    def fits(context: int) -> bool:
        return memory(config, form, context, 1, available_bytes, runtime_bytes, parallel, kv_bits, with_mtp).left >= 0

    if not fits(0):
        return None
    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

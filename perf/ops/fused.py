"""Kernels that are no row, by module:attribute: cost, inputs, and the row that their output is checked with."""

import importlib
from collections.abc import Callable
from typing import Any

import torch

from reference.config import LayerConfig

from ..agreement import compare, wide
from ..case import Agreement, Args, Case, Draw
from ..cost import Cost
from ..maker import Maker
from ..shapes import CONTEXTS, FEW_TOKENS, PREFILL_CONTEXT, PREFILL_TOKENS, projections, published
from . import bench_attention, bench_experts, bench_linear

DECODE = "optimized.fused.decode_attention:decode_attention"
DECODE_WORKSPACE = "optimized.fused.decode_attention:workspace_for"
PREFILL = "optimized.fused.prefill_attention:prefill_attention"
NORM_ROPE_CACHE = "optimized.fused.qk_norm_rope_cache:qk_norm_rope_cache"
LINEAR_QUANTIZED = "optimized.fused.linear_quantized:linear_quantized"
LM_HEAD_GREEDY = "optimized.fused.lm_head_greedy:lm_head_greedy"
PAGE_SIZE = 64
GROUP = 128  # inputs that share a scale


def find(name: str) -> Callable[..., Any]:
    """Import module:attribute.

    Raises:
        LookupError: there is none of this name.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"fused kernel: {name} is not there ({error}); adapt perf/ops/fused.py") from error


def cases() -> list[Case]:
    full, sliding = published().full, published().sliding
    return [
        *(_decode(T, S, full) for T in FEW_TOKENS for S in CONTEXTS),
        *(_decode(T, PREFILL_CONTEXT, sliding) for T in FEW_TOKENS),
        *(_norm_rope_cache(T, layer) for layer in (full, sliding) for T in FEW_TOKENS),
        *(_greedy(T) for T in FEW_TOKENS),
        *(
            _linear_quantized(T, *widths, profile)
            for profile in ("w8a8", "w8a16")
            for widths in projections().values()
            for T in FEW_TOKENS
        ),
        _linear_quantized(PREFILL_TOKENS[0], *projections()["sliding qkv"], "w8a16"),
        _linear_quantized(1, *projections()["lm_head"], "w4a16"),  # of an MTP depth
        *(_prefill(PREFILL_CONTEXT, layer) for layer in (full, sliding)),
    ]


def _decode(T: int, S: int, layer: LayerConfig) -> Case:
    """One sequence of S cached tokens in shuffled pages, the last T of them new."""
    N, K, H, window = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim, layer.sliding_window
    pages = S // PAGE_SIZE

    def build(maker: Maker) -> Draw:
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(0)).to(torch.int32)
        table = maker.to_device(order[None])
        lengths = maker.to_device(torch.tensor([S], dtype=torch.int32))
        workspaces: list[Any] = []

        def draw() -> Args:
            q, gate = maker.normal(T, N, H), maker.normal(T, N)
            k, v = (maker.normal(pages, PAGE_SIZE, K, H) for _ in range(2))
            if not workspaces:
                workspaces.append(find(DECODE_WORKSPACE)(q, k, table, window))
            return q, k, v, table, lengths, window, gate, workspaces[0]

        return draw

    cost = bench_attention.cost(T, S, N, K, H, window)
    return Case(
        "decode_attention",
        bench_attention.shape_of(T, S, layer),
        "bf16",
        Cost(cost.hbm_bytes + 2 * T * N, cost.flops + T * N * H),
        build,
        _check_decode,
        reference="attention",
        fused=DECODE,
        renew=_with_workspace,
        sizes=bench_attention.sizes_of(T, S, layer),
    )


def _with_workspace(args: Args) -> Args:
    q, k_cache, _, table, _, window, *_ = args
    return *args[:-1], find(DECODE_WORKSPACE)(q, k_cache, table, window)


def _check_decode(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """Every query, with the head gate, against the pages in order."""
    q, k_cache, v_cache, table, lengths, window, gate, _ = args
    S, T = int(lengths[0]), len(q)
    keys = torch.arange(S, device=q.device)
    first = 0 if window is None else max(0, S - T - window + 1)
    k, v = (cache[table[0].long()].flatten(0, 1)[first:S] for cache in (k_cache, v_cache))
    exact = reference(wide(q), wide(k), wide(v), keys[S - T :], keys[first:], window)
    return compare(got, exact * wide(gate).sigmoid()[..., None], "every query", of_row=2.0**-6)


def _prefill(S: int, layer: LayerConfig) -> Case:
    """One sequence that begins with these S tokens, without pages."""
    N, K, H, window = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim, layer.sliding_window

    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return maker.normal(S, N, H), maker.normal(S, K, H), maker.normal(S, K, H), None, 0, window

        return draw

    return Case(
        "prefill_attention",
        bench_attention.shape_of(S, S, layer),
        "bf16",
        bench_attention.cost(S, S, N, K, H, window),
        build,
        _check_prefill,
        reference="attention",
        fused=PREFILL,
        max_sets=2,
        sizes=bench_attention.sizes_of(S, S, layer),
    )


def _check_prefill(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    q, k, v = args[:3]
    positions = torch.arange(len(q), device=q.device)
    return bench_attention.check(reference, (q, k, v, positions, positions, args[-1]), got)


def _norm_rope_cache(T: int, layer: LayerConfig) -> Case:
    """q and k normalised and rotated, k and v written into their pages."""
    N, K, H, R = layer.num_attention_heads, layer.num_key_value_heads, layer.head_dim, layer.rotary_dim

    def build(maker: Maker) -> Draw:
        exponents = torch.arange(0, R, 2, dtype=torch.float64) / R
        frequencies = maker.to_device(layer.rope_theta**-exponents)
        positions = maker.to_device(torch.arange(100_003, 100_003 + T))
        slots = maker.to_device(torch.arange(2 * PAGE_SIZE - 1, 2 * PAGE_SIZE - 1 + T))

        def draw() -> Args:
            caches = maker.normal(8, PAGE_SIZE, K, H), maker.normal(8, PAGE_SIZE, K, H)  # a set's own: they are written
            q, k, v = maker.normal(T, N, H), maker.normal(T, K, H), maker.normal(T, K, H)
            weights = maker.normal(H, scale=0.1), maker.normal(H, scale=0.1)
            return q, k, v, *weights, layer.rms_norm_eps, positions, frequencies, *caches, slots

        return draw

    return Case(
        "qk_norm_rope_cache",
        f"T={T} N={N} K={K} H={H} R={R}",
        "bf16",
        Cost(hbm_bytes=2 * (2 * T * (N + 2 * K) * H + 2 * H), flops=4 * T * (N + K) * H + 3 * T * (N + K) * R),
        build,
        _check_norm_rope_cache,
        reference="qk_norm",
        fused=NORM_ROPE_CACHE,
    )


def _check_norm_rope_cache(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """The queries returned, and the keys and values in their slots."""
    q, k, v, q_weight, k_weight, eps, positions, frequencies, k_cache, v_cache, slots = args
    angles = (positions.double()[:, None] * frequencies)[:, None, :]
    half = len(frequencies)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x[..., :half], x[..., half : 2 * half]
        turned = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
        return torch.cat((*turned, x[..., 2 * half :]), dim=-1)

    exact_q, exact_k = map(rotated, reference(*map(wide, (q, k, q_weight, k_weight)), eps))
    written_k, written_v = (cache.flatten(0, 1)[slots] for cache in (k_cache, v_cache))
    parts = [compare(got, exact_q, "q"), compare(written_k, exact_k, "k's slots"), compare(written_v, v, "v's slots")]
    return max(parts, key=lambda agreement: agreement.error)


def _greedy(T: int) -> Case:
    model = published().model
    D, V = model.hidden_size, model.vocab_size

    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return maker.normal(T, D), maker.weight(V, D, format="bf16")

        return draw

    weight_only = bench_linear.cost(T, D, V)
    cost = Cost(weight_only.hbm_bytes - 2 * T * V + 8 * T, weight_only.flops)  # logits stay on the chip, ids do not
    return Case(
        "lm_head_greedy",
        f"T={T} D={D} V={V}",
        "bf16",
        cost,
        build,
        _check_greedy,
        reference="linear",
        fused=LM_HEAD_GREEDY,
    )


def _check_greedy(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """The chosen logits reach the largest ones, but for the rounding of logits to bf16."""
    logits = reference(*map(wide, args))
    largest = logits.amax(dim=-1)
    missed = (largest - logits.gather(-1, got[:, None])[:, 0]) / (largest.abs() * 2.0**-7)
    return Agreement(float(missed.max()), "the chosen logits")


def _linear_quantized(T: int, I: int, O: int, profile: str) -> Case:  # noqa: E741
    """FP8 weights of 128x128 blocks on activations rounded to FP8, or these or int4 ones on bf16 activations."""
    format, rounds = "int4" if profile == "w4a16" else "fp8", profile == "w8a8"

    def build(maker: Maker) -> Draw:
        def draw() -> Args:
            return maker.normal(T, I), maker.weight(O, I, format=format), rounds

        return draw

    plain = bench_linear.cost(T, I, O)
    cost = Cost(2 * T * (I + O) + O * I * bench_experts.BITS[format] / 8, plain.flops)
    return Case(
        "linear_quantized",
        f"T={T} I={I} O={O}",
        profile,
        cost,
        build,
        _check_linear_quantized,
        multiplies_in="fp8" if rounds else "bf16",
        reference="quantize_activation",
        fused=LINEAR_QUANTIZED,
    )


def _check_linear_quantized(reference: Callable[..., Any], args: Args, got: Any) -> Agreement:
    """Every 61st output, from the codes of the activations where they are rounded."""
    x, weight, rounds = args
    rows = x.double()
    if rounds:
        codes, scale = reference(x)
        rows = codes.double() * scale.double().repeat_interleave(GROUP, dim=-1)[..., : x.shape[-1]]
    exact = rows @ weight.dequantize(torch.float32)[::61].double().T
    return compare(got[:, ::61], exact, "every 61st output", of_row=2.0**-3)  # ties of codes, see experts_fp8

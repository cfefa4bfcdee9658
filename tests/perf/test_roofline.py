"""The formulas against tables that were computed by hand from the published shapes, figure by figure.

The tables' conventions: 4.3 TB/s unless said, 16-bit caches, independent routing.
"""

import pytest

from perf.roofline import (
    Parallel,
    Rates,
    break_even,
    busiest_share,
    counts_of,
    decode,
    draft_bytes,
    experts_touched,
    format_called,
    longest_context,
    memory,
    prefill,
    prefill_work,
    speculative,
    step_bytes,
    weight_bytes,
)
from perf.shapes import published
from reference.accounting import inspect, kv_cache_bytes

MODEL = published().model
COUNTS = counts_of(MODEL)
H200 = Rates(memory_gb_per_s=4300)
CONTEXTS = (4096, 32_768, 131_072, 262_144)
EIGHT = Parallel(devices=8, collective_us=7)


def test_parameters_are_those_of_the_table_of_tensors():
    parameters = inspect(MODEL)["parameters"]
    assert COUNTS.routed + COUNTS.linear + COUNTS.wide + COUNTS.embedding == parameters["backbone"]
    assert COUNTS.depths * (COUNTS.draft_linear + COUNTS.draft_wide) == parameters["mtp"]


@pytest.mark.parametrize(
    ("tokens", "experts"),
    [(1, 8.0), (2, 15.8), (4, 30.7), (8, 58.1), (16, 104.5), (32, 171.1), (64, 240.5), (128, 280.2), (256, 287.8)],
)
def test_distinct_experts(tokens, experts):
    assert experts_touched(COUNTS, tokens) == pytest.approx(experts, abs=0.05)


@pytest.mark.parametrize(
    ("form", "total", "by_tokens"),
    [
        ("bf16", 393.9, {1: 22.9, 2: 33.2, 4: 52.9, 8: 89.1, 16: 150.4, 32: 238.4, 128: 382.5}),
        ("fp8", 198.1, {1: 12.0, 2: 17.2, 4: 27.0, 8: 45.2, 16: 75.8, 32: 119.8, 128: 191.9}),
        ("int4", 105.9, {1: 9.5, 2: 12.1, 4: 17.2, 8: 26.6, 16: 42.4, 32: 65.0, 128: 102.2}),
        ("q4", 110.8, {1: 6.45, 2: 9.3, 4: 14.9, 8: 25.1, 16: 42.3, 32: 67.0, 128: 107.6}),
    ],
)
def test_weight_bytes_of_a_step(form, total, by_tokens):
    assert weight_bytes(COUNTS, format_called(form)) / 1e9 == pytest.approx(total, abs=0.06)
    for tokens, gigabytes in by_tokens.items():
        assert step_bytes(COUNTS, format_called(form), tokens) / 1e9 == pytest.approx(gigabytes, abs=0.06), tokens


def test_the_published_checkpoints_are_formats():
    assert weight_bytes(COUNTS, format_called("bf16"), with_mtp=True) == pytest.approx(398_768_626_944, rel=1e-6)
    assert weight_bytes(COUNTS, format_called("fp8-experts"), with_mtp=True) / 1e9 == pytest.approx(208.56, abs=0.01)
    assert weight_bytes(COUNTS, format_called("int4-experts")) / 2**30 == pytest.approx(103.8, abs=0.1)


@pytest.mark.parametrize(("context", "gigabytes"), list(zip(CONTEXTS, (0.27, 1.68, 6.51, 12.95), strict=True)))
def test_cache_bytes_of_a_step(context, gigabytes):
    assert kv_cache_bytes(MODEL, context) / 1e9 == pytest.approx(gigabytes, abs=0.005)


@pytest.mark.parametrize(
    ("form", "batch", "ms"),
    [
        ("bf16", 1, (5.39, 5.72, 6.84, 8.34)),
        ("fp8", 1, (2.86, 3.19, 4.31, 5.81)),
        ("int4", 1, (2.27, 2.59, 3.72, 5.22)),
        ("fp8", 4, (6.54, 7.85, 12.3, 18.3)),
        ("int4", 4, (4.25, 5.56, 10.1, 16.1)),
        ("fp8", 8, (11.0, 13.6, 22.6, 34.6)),
        ("fp8", 32, (29.9, 40.4, 76.3, 124)),
        ("fp8", 128, (52.7, 94.6, 238, 430)),
    ],
)
def test_decode_on_one_h200(form, batch, ms):
    for context, expected in zip(CONTEXTS, ms, strict=True):
        step = decode(MODEL, format_called(form), H200, context, batch)
        assert step.ms == pytest.approx(expected, rel=0.005), context
        assert step.tokens_per_s == pytest.approx(batch / step.ms * 1e3)
        assert step.bound == "memory"


@pytest.mark.parametrize(
    ("form", "context", "plain", "cost", "rates"),
    [
        ("fp8", 4096, 349, 2.54, (343, 412, 481)),
        ("fp8", 131_072, 232, 2.02, (286, 343, 401)),
        ("fp8", 262_144, 172, 1.76, (244, 293, 342)),
        ("int4", 4096, 441, 2.20, (500, 600, 700)),
        ("int4", 262_144, 192, 1.52, (315, 377, 440)),
    ],
)
def test_mtp_breaks_even_at_its_cost(form, context, plain, cost, rates):
    without = decode(MODEL, format_called(form), H200, context, 1)
    step = speculative(MODEL, format_called(form), H200, context)
    assert without.tokens_per_s == pytest.approx(plain, abs=0.7)
    assert break_even(without, step) == pytest.approx(cost, abs=0.006)
    for length, rate in zip((2.5, 3.0, 3.5), rates, strict=True):
        assert length * step.tokens_per_s == pytest.approx(rate, abs=1.6)


def test_the_heads_are_most_of_what_drafting_costs():
    form = format_called("fp8")
    assert draft_bytes(COUNTS, form) / 1e9 == pytest.approx(4.0, abs=0.05)
    assert COUNTS.depths * COUNTS.draft_wide * form.wide / 8e9 == pytest.approx(3.2, abs=0.05)


def test_tokens_that_share_experts_make_verification_cheaper():
    form = format_called("fp8")
    plain = decode(MODEL, form, H200, 4096, 1)
    correlated = speculative(MODEL, form, H200, 4096, correlation=0.66)
    assert break_even(plain, correlated) == pytest.approx(2.1, abs=0.05)


@pytest.mark.parametrize(
    ("form", "batch", "tokens_per_s"),
    [
        ("fp8", 1, (1012, 855, 737)),
        ("fp8", 8, (3989, 2314, 1614)),
        ("fp8", 32, (7333, 3147, 1980)),
        ("fp8", 128, (17_700, 4205, 2353)),
        ("bf16", 1, (767, 673, 598)),
    ],
)
def test_eight_devices_wait_for_their_collectives(form, batch, tokens_per_s):
    for context, expected in zip((4096, 131_072, 262_144), tokens_per_s, strict=True):
        step = decode(MODEL, format_called(form), H200, context, batch, EIGHT)
        assert step.tokens_per_s == pytest.approx(expected, rel=0.005), context
    assert decode(MODEL, format_called("fp8"), H200, 4096, 1, EIGHT).bound == "collectives"


def test_experts_apart_wait_for_the_busiest_device():
    assert busiest_share(8, 288, 8) == pytest.approx(2.6, abs=0.06)
    assert busiest_share(288, 288, 8) == pytest.approx(1)
    assert busiest_share(5, 12, 1) == 1
    apart = Parallel(devices=8, experts_apart=True)
    together = decode(MODEL, format_called("fp8"), H200, 4096, 1, EIGHT)
    assert decode(MODEL, format_called("fp8"), H200, 4096, 1, apart).ms > together.ms


def test_the_busiest_device_by_counting_every_choice():
    from itertools import combinations

    loads = [max(sum(e // 3 == d for e in chosen) for d in range(3)) for chosen in combinations(range(9), 4)]
    assert busiest_share(4, 9, 3) == pytest.approx(sum(loads) / len(loads) / (4 / 3))


@pytest.mark.parametrize(
    ("tokens", "petaflop", "attention", "bf16_s", "fp8_s"),
    [(32_768, 0.95, 0.25, 1.2, 0.87), (131_072, 6.35, 0.55, 8.0, 7.7), (262_144, 19.5, 0.71, 24.6, 26.7)],
)
def test_prefill(tokens, petaflop, attention, bf16_s, fp8_s):
    work = prefill_work(MODEL, tokens)
    assert work.flops / 1e15 == pytest.approx(petaflop, rel=0.006)
    assert work.attention_flops / work.flops == pytest.approx(attention, abs=0.006)
    for rates, seconds in ((Rates(4300, 790, 790), bf16_s), (Rates(4300, 1500, 600), fp8_s)):
        step = prefill(MODEL, format_called("fp8"), rates, tokens)
        assert step is not None
        assert step.ms / 1e3 == pytest.approx(seconds, rel=0.015)
        assert step.bound == "compute"


def test_a_device_without_a_published_rate_has_no_projected_prefill():
    assert prefill(MODEL, format_called("q4"), Rates(273), 4096) is None


@pytest.mark.parametrize(
    ("gb_per_s", "tokens_per_s"),
    [(273, (42, 34, 21, 14)), (256, (40, 32, 20, 13)), (546, (85, 67, 42, 28)), (819, (127, 101, 63, 42))],
)
def test_unified_memories(gb_per_s, tokens_per_s):
    for context, expected in zip((0, 32_768, 131_072, 262_144), tokens_per_s, strict=True):
        step = decode(MODEL, format_called("q4"), Rates(gb_per_s), context, 1)
        assert step.tokens_per_s == pytest.approx(expected, abs=0.6), context


def test_what_fits_where():
    def left_gb(form, context, available, devices=1, kv_bits=16, with_mtp=True):
        parallel = Parallel(devices=devices)
        return memory(MODEL, format_called(form), context, 1, available, 7e9, parallel, kv_bits, with_mtp).left / 1e9

    assert left_gb("bf16", 0, 150e9) < 0
    assert left_gb("fp8", 0, 150e9) < 0
    assert left_gb("int4", 262_144, 150e9) > 10
    assert left_gb("bf16", 0, 150e9, devices=4) > 0
    assert left_gb("q4", 98_304, 128e9, with_mtp=False) > 0
    assert left_gb("q4", 262_144, 128e9, with_mtp=False) < 0
    assert left_gb("q4", 262_144, 128e9, kv_bits=8, with_mtp=False) > 0


def test_the_longest_context_is_the_last_that_fits():
    form = format_called("q4")
    longest = longest_context(MODEL, form, 123e9, 7e9, with_mtp=False)
    assert longest is not None
    assert 0 < longest < MODEL.max_position_embeddings
    assert memory(MODEL, form, longest, 1, 123e9, 7e9, with_mtp=False).left >= 0
    assert memory(MODEL, form, longest + 1, 1, 123e9, 7e9, with_mtp=False).left < 0
    assert longest_context(MODEL, form, 50e9, 7e9) is None
    assert longest_context(MODEL, form, 500e9, 7e9) == MODEL.max_position_embeddings


def test_what_is_unknown_or_out_of_range_is_refused():
    with pytest.raises(ValueError, match="format: 'int3' is not known; want one of bf16, fp8, "):
        format_called("int3")
    with pytest.raises(ValueError, match="context: is 262145; want 0 to 262144"):
        decode(MODEL, format_called("fp8"), H200, 262_145, 1)

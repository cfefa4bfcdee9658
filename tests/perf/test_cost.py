"""Cost formulas against what a person counts on small shapes, and the floor that ceilings make of them."""

import pytest

from perf.cost import Ceilings, Cost, floor
from perf.ops import (
    bench_attention,
    bench_experts,
    bench_experts_fp8,
    bench_linear,
    bench_mlp,
    bench_quantize_activation,
    bench_rms_norm,
    bench_router,
)
from perf.ops.routing import CORRELATION, distinct_experts
from perf.shapes import projections, published


def test_linear_reads_both_operands_and_writes_the_product():
    assert bench_linear.cost(T=2, I=3, O=5) == Cost(hbm_bytes=2 * (6 + 15 + 10), flops=60)


def test_rms_norm_reads_x_and_weight_and_writes_y():
    assert bench_rms_norm.cost(T=3, D=4) == Cost(hbm_bytes=2 * (12 + 4 + 12), flops=48)


def test_mlp_keeps_what_lies_between_on_the_chip():
    assert bench_mlp.cost(T=1, D=2, F=3) == Cost(hbm_bytes=2 * (2 + 2 + 18), flops=2 * 18 + 9)


def test_router_writes_an_id_and_a_weight_for_each_choice():
    assert bench_router.cost(T=1, D=4, E=6, A=2) == Cost(hbm_bytes=2 * (4 + 24) + 24 + 24, flops=48)


def test_a_short_group_has_a_scale_of_its_own():
    assert bench_quantize_activation.cost(T=2, D=130).hbm_bytes == 2 * 130 * 3 + 2 * 2 * 4


@pytest.mark.parametrize(
    ("queries", "keys", "window", "pairs"),
    [(1, 5, None, 5), (3, 3, None, 6), (2, 5, None, 9), (5, 5, 2, 9), (1, 9, 4, 4), (2, 3, 8, 5)],
)
def test_visible_pairs_are_those_of_the_mask(queries, keys, window, pairs):
    positions = range(keys)
    by_hand = sum(
        i - j >= 0 and (window is None or i - j < window) for i in positions[keys - queries :] for j in positions
    )
    assert bench_attention.visible_pairs(queries, keys, window) == pairs == by_hand


def test_a_window_reads_only_the_keys_that_some_query_sees():
    whole, cut = (bench_attention.cost(2, 100, N=4, K=2, H=8, window=window) for window in (None, 10))
    assert whole.hbm_bytes - cut.hbm_bytes == 2 * 2 * 8 * 2 * (100 - 11)
    assert cut.flops == 4 * 2 * 10 * 4 * 8


def test_experts_read_each_chosen_expert_once():
    cost = bench_experts.cost(T=2, A=3, D=4, F=5, distinct=4, bits=16)
    assert cost == Cost(hbm_bytes=4 * 3 * 20 * 2 + 2 * 2 * 4 * 2 + 6 * 12, flops=6 * 6 * 20)
    assert bench_experts_fp8.cost(2, 3, 128, 128, 4).hbm_bytes == 4 * 3 * (128 * 128 + 4) + 2 * 2 * 128 * 2 + 72


def test_tokens_share_experts_and_neighbours_share_more():
    assert distinct_experts(1, 288, 8, 0.0) == pytest.approx(8)
    assert distinct_experts(4, 288, 8, 0.0) == pytest.approx(30.7, abs=0.05)
    ratio = distinct_experts(4, 288, 8, CORRELATION) / distinct_experts(4, 288, 8, 0.0)
    assert ratio == pytest.approx(0.69, abs=0.04)


def test_the_published_shapes_are_those_of_the_configuration():
    assert projections() == {
        "sliding qkv": (4096, 14_336),
        "full qkv": (4096, 10_240),
        "sliding o": (12_288, 4096),
        "full o": (8192, 4096),
        "lm_head": (4096, 128_896),
    }
    assert (published().moe.num_experts, published().sliding.sliding_window) == (288, 512)


def test_the_slower_of_memory_and_arithmetic_is_the_floor():
    ceilings = Ceilings(read_gb_per_s=1000, tflops={"bf16": 1.0}, notes={})
    by_memory = floor(Cost(hbm_bytes=2e6, flops=1e6), ceilings, "bf16")
    by_arithmetic = floor(Cost(hbm_bytes=2e6, flops=3e6), ceilings, "bf16")
    assert (by_memory.us, by_memory.bound) == (pytest.approx(2), "memory")
    assert (by_arithmetic.us, by_arithmetic.bound) == (pytest.approx(3), "compute")
    with pytest.raises(ValueError, match="'fp8' was not measured; known: bf16"):
        floor(Cost(1, 1), ceilings, "fp8")

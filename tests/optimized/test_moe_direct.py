"""The path that Triton's interpreter cannot run: on a GPU, against the legal evaluations, and what it refuses."""

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from judged import FORMAT_OF, check, gated, moved, quantized, rows
from torch import Tensor

from optimized.fused.linear_quantized import linear_quantized
from optimized.fused.moe_direct import _sized, fits
from optimized.fused.moe_math import FP8, INT4
from optimized.fused.moe_stored import Stored
from optimized.launch import trying
from optimized.ops.experts import experts
from optimized.ops.experts_fp8 import experts_fp8
from reference.quantization import dequantize_fp8_activation, quantize_fp8_activation

D, F, E, A = 512, 256, 6, 2
LAUNCHES: dict[str, dict[str, Any]] = {
    "experts": {"PATH": "direct"},
    "experts_up_direct": {"BLOCK_F": 16, "BLOCK_G": 2, "num_warps": 2, "STAGES": 3, "launch_pdl": True},
    "experts_down_direct": {"BLOCK_D": 32, "BLOCK_G": 1, "num_warps": 2, "STAGES": 2},
    "mlp": {"PATH": "direct"},
    "mlp_up_direct": {"BLOCK_F": 32, "BLOCK_G": 4, "num_warps": 4, "STAGES": 4},
    "mlp_down_direct": {"BLOCK_D": 16, "BLOCK_G": 2, "num_warps": 1, "STAGES": 5, "launch_pdl": True},
    "linear_quantized": {"PATH": "direct", "BLOCK_D": 32, "BLOCK_G": 4, "num_warps": 2, "STAGES": 3},
}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("profile", [*FORMAT_OF, "fp8"])
@pytest.mark.parametrize("limit", [0.0, 0.5])
@pytest.mark.parametrize("num_tokens", [1, 3, 17])
@pytest.mark.parametrize("magnitude", [1.0, 2.0**-60, 2.0**20])  # each group of a row has its power of two
def test_experts_are_within_the_envelope(profile: str, limit: float, num_tokens: int, magnitude: float) -> None:
    ids = torch.stack([torch.randperm(E, generator=torch.Generator().manual_seed(t))[:A] for t in range(num_tokens)])
    weights = torch.rand(num_tokens, A, generator=torch.Generator().manual_seed(5)) + 0.1
    weight_of = "w8a16" if profile == "fp8" else profile
    stacked = [quantized(weight_of, E, *shape, seed=n) for n, shape in enumerate([(F, D), (F, D), (D, F)])]
    op, run = ("experts_fp8", experts_fp8) if profile == "fp8" else ("experts", experts)
    check(op, profile, LAUNCHES, run, (rows(num_tokens, D) * magnitude, ids, weights, *stacked, limit))


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("profile", list(FORMAT_OF))
def test_nan_passes_the_clamp(profile: str) -> None:
    weights = [quantized(profile, *shape, seed=n) for n, shape in enumerate([(F, D), (F, D), (D, F)])]
    x = rows(2, D)
    x[1, 5] = torch.nan
    with ExitStack() as stack:
        for kernel, options in LAUNCHES.items():
            stack.enter_context(trying(kernel, options))
        got = gated(*map(moved, (x, *weights, 0.5))).cpu()
    assert got[0].isfinite().all()
    assert got[1].isnan().all()


def test_a_short_row_takes_smaller_blocks_and_fewer_warps() -> None:
    launch = {"BLOCK_D": 16, "BLOCK_G": 16, "num_warps": 8, "STAGES": 3, "launch_pdl": True}
    changed = _sized(rows(1, 256), 1, 1, launch)
    assert changed == {**launch, "BLOCK_G": 2, "STEPS": 1, "ROWS": 1, "num_warps": 2}
    assert _sized(rows(3, 4096), 3, 8, launch) == {**launch, "STEPS": 2, "ROWS": 8}
    assert _sized(rows(1, 1280), 1, 1, launch)["BLOCK_G"] == 2


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("profile", list(FORMAT_OF))
@pytest.mark.parametrize("num_tokens", [1, 3, 8])
def test_products_without_routing_are_within_the_envelope(profile: str, num_tokens: int) -> None:
    weights = [quantized(profile, *shape, seed=n) for n, shape in enumerate([(F, D), (F, D), (D, F)])]
    wide = [weight.dequantize() for weight in weights]
    x = rows(num_tokens, D)
    check("mlp", profile, LAUNCHES, gated, (x, *weights, 0.5), (x, *wide, 0.5))
    check("linear", profile, LAUNCHES, linear_quantized, (x, weights[0]), (x, wide[0]))
    odd = quantized(profile, 160, D)  # outputs that end within a block of the scale
    check("linear", profile, LAUNCHES, linear_quantized, (x, odd), (x, odd.dequantize()))


@needs_cuda
@pytest.mark.cuda
def test_a_product_of_a_rounded_row_is_within_the_envelope() -> None:
    weight = quantized("w8a16", F, D)
    x = rows(1, D)
    x[0, :128] = 0.0
    x[0, 128:256] *= 2.0**100
    args = (dequantize_fp8_activation(*quantize_fp8_activation(x), dtype=torch.float32), weight.dequantize())
    check("linear", "bf16", LAUNCHES, linear_quantized, (x, weight, True), args)


@pytest.mark.parametrize(
    ("what", "x", "codes", "kind", "per_token"),
    [
        ("float32 rows", torch.zeros(1, D), (E, F, D), FP8, A),
        ("nine rows of a weight that all have", rows(9, D), (1, F, D), FP8, None),
        ("inputs that are no whole groups", rows(1, 192), (E, F, 192), FP8, A),
        ("three experts of a token", rows(1, D), (E, F, D), FP8, 3),
        ("outputs that are no whole tiles", rows(1, D), (E, 168, D), FP8, A),
        ("rows that begin within a word", rows(1, D + 4)[:, 2 : D + 2], (E, F, D), FP8, A),
    ],
)
def test_what_does_not_fit_goes_another_way(
    what: str, x: Tensor, codes: tuple[int, ...], kind: Any, per_token: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.language import constexpr

    monkeypatch.setattr("optimized.fused.moe_direct.COMPILES", constexpr(True))
    stored = Stored(torch.zeros(codes, dtype=torch.uint8), torch.zeros(1), kind.value)
    assert not fits(x, per_token, stored), what
    fp8 = Stored(torch.zeros((E, F, D), dtype=torch.uint8), torch.zeros(1), FP8.value)
    assert fits(rows(8, D), A, fp8)
    assert fits(rows(8, D), A, fp8, rounds=True)
    assert fits(rows(1, D), None, fp8, rounds=True)
    assert not fits(rows(2, D), None, fp8, rounds=True), "each of several rows would need its own scales"
    assert fits(rows(1, D), None, Stored(torch.zeros((E, F, D // 2), dtype=torch.uint8), torch.zeros(1), INT4.value))

"""Products of many rows: by tiles that the copy engine brings, and on weights that are widened first."""

from typing import Any

import pytest
import torch
from judged import FORMAT_OF, check, gated, moved, quantized, rows

from optimized.fused.linear_quantized import linear_quantized
from optimized.fused.moe_stored import stored
from optimized.fused.widen import widen
from optimized.launch import trying
from optimized.ops.linear import linear
from optimized.runner import with_expert_axis

LAUNCHES: dict[str, dict[str, Any]] = {
    "linear": {
        **{"PROGRAMS": 2, "BLOCK_T": 16, "BLOCK_O": 32, "BLOCK_I": 64, "GROUP_T": 2},
        **{"num_warps": 4, "num_stages": 2},
    },
    "linear_quantized": {"PATH": "widened"},
    "mlp": {"PATH": "widened"},
}


@pytest.mark.parametrize(("num_rows", "outputs", "inputs"), [(37, 72, 136), (16, 32, 64), (1, 8, 8), (100, 40, 72)])
def test_tiles_are_within_the_envelope(num_rows: int, outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    check("linear", "bf16", LAUNCHES, linear, (rows(num_rows, inputs), weight))


def test_tiles_of_a_wider_tensor_are_within_the_envelope() -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    check(
        "linear",
        "bf16",
        LAUNCHES,
        lambda x, w: linear(x[:, 32:96], w),
        (rows(20, 160), weight),
        (rows(20, 160)[:, 32:96], weight),
    )


@pytest.mark.parametrize("profile", list(FORMAT_OF))
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 256), (130, 128)])
def test_a_widened_weight_is_code_times_scale_rounded_once(profile: str, outputs: int, inputs: int) -> None:
    weight = quantized(profile, outputs, inputs)
    x = moved(rows(1, inputs))
    held = stored("test", "weight", with_expert_axis(moved(weight)), (1, outputs, inputs), x)
    assert torch.equal(widen(held, 0, inputs).cpu(), weight.dequantize().to(torch.bfloat16))


@pytest.mark.parametrize("profile", list(FORMAT_OF))
def test_products_on_widened_weights_are_within_the_envelope(profile: str) -> None:
    x, weight = rows(9, 256), quantized(profile, 64, 256)
    check("linear", profile, LAUNCHES, linear_quantized, (x, weight), (x, weight.dequantize()))
    weights = [quantized(profile, *shape, seed=n) for n, shape in enumerate([(256, 128), (256, 128), (128, 256)])]
    wide = [weight.dequantize() for weight in weights]
    check("mlp", profile, LAUNCHES, gated, (rows(9, 128), *weights, 0.5), (rows(9, 128), *wide, 0.5))


def test_what_cannot_be_widened_is_refused() -> None:
    weight, x = moved(quantized("w8a16", 128, 128)), moved(rows(2, 128))
    with trying("linear_quantized", {"PATH": "widened"}):
        with pytest.raises(LookupError, match="'widened' is for bfloat16 rows"):
            linear_quantized(x.float(), weight)
        with pytest.raises(LookupError, match="'widened' is for bfloat16 rows"):
            linear_quantized(x, weight, rounds=True)
    wide = moved(torch.zeros(128, 128, dtype=torch.bfloat16))
    with trying("mlp", {"PATH": "widened"}), pytest.raises(LookupError, match="'widened' does not take these weights"):
        gated(x, wide, wide, wide, 0.0)

"""Kernels that replace several rows give, to the bit or to a sum's bound, what these give one after another."""

import pytest
import torch
from kernels import DEVICE

from conformance.tolerance import gamma
from optimized.fused.add_rms_norm import add_rms_norm
from optimized.fused.linear_quantized import linear_quantized
from optimized.ops.quantize_activation import quantize_activation
from optimized.ops.rms_norm import rms_norm
from reference.quantization import FORMATS, Fp8Weight, dequantize_fp8_activation

EPS = 1e-5


def numbers(*size: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def on_device(weight):
    parts = {name: part.to(DEVICE) for name, part in vars(weight).items() if isinstance(part, torch.Tensor)}
    return type(weight)(**(vars(weight) | parts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(3, 264), (2, 2, 128), (1, 40), (0, 256)])
def test_the_residual_is_added_before_the_norm_and_kept(shape: tuple[int, ...], dtype: torch.dtype):
    x, residual, weight = numbers(*shape, dtype=dtype), numbers(*shape, seed=1, dtype=dtype), numbers(shape[-1], seed=2)
    total = (x.float() + residual.float()).to(dtype)
    got = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, total)
    want = rms_norm(total, weight, EPS)
    bound = gamma(2 * shape[-1], torch.float32) if dtype == torch.float32 else torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=bound, atol=0)  # sums in another order


def test_the_norm_can_leave_in_fp8():
    x, weight = numbers(5, 300), numbers(300, seed=2)
    residual, again = numbers(5, 300, seed=1), numbers(5, 300, seed=1)
    codes, scale = add_rms_norm(x, residual, weight, EPS, quantize=True)
    want_codes, want_scale = quantize_activation(add_rms_norm(x, again, weight, EPS))
    assert torch.equal(codes.view(torch.uint8), want_codes.view(torch.uint8))
    assert torch.equal(scale, want_scale)


@pytest.mark.parametrize(
    ("format", "num_rows", "rounds"),
    [
        *(("fp8", count, rounds) for count in (0, 1, 5, 33) for rounds in (False, True)),
        *(("int4", count, False) for count in (1, 17)),
    ],
)
def test_a_quantised_weight_multiplies_as_what_it_stands_for(format: str, num_rows: int, rounds: bool):
    x, weight = numbers(num_rows, 392), on_device(FORMATS[format].quantize(numbers(200, 392, seed=3).cpu()))
    got = linear_quantized(x, weight, rounds)
    wide = x.double() if not rounds else dequantize_fp8_activation(*quantize_activation(x)).double()
    dense = weight.dequantize(torch.float64)
    exact, size = wide @ dense.T, wide.abs() @ dense.abs().T
    bound = gamma(392 + 8, torch.float32) * size + torch.finfo(torch.bfloat16).eps * exact.abs() + 1e-30
    assert ((got.double() - exact).abs() <= bound).all()


def test_what_they_cannot_take_is_named():
    weight = FORMATS["fp8"].quantize(numbers(8, 256).cpu())
    with pytest.raises(ValueError, match=r"linear_quantized: x is \(2, 255\).*want \[..., 256\]"):
        linear_quantized(numbers(2, 255), on_device(weight))
    with pytest.raises(ValueError, match=r"linear_quantized: weight has a scale for \(64, 64\); want 128 outputs"):
        linear_quantized(numbers(2, 64), Fp8Weight(weight.data[:, :64], torch.ones(1, 1), (64, 64)))
    int4 = on_device(FORMATS["int4"].quantize(numbers(8, 256).cpu()))
    with pytest.raises(ValueError, match="weight is Int4Weight; want Fp8Weight"):
        linear_quantized(numbers(1, 256), int4, rounds=True)
    with pytest.raises(ValueError, match=r"add_rms_norm: residual is \(2, 40\)"):
        add_rms_norm(numbers(3, 40), numbers(2, 40), numbers(40), EPS)

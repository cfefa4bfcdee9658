"""The mended interpreter rounds as torch does: what a GPU does, too."""

import pytest
import torch
import triton
import triton.language as tl
from kernels import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU nothing is interpreted")


@triton.jit
def _arithmetic_kernel(x_ptr, y_ptr, sums_ptr, products_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    tl.store(sums_ptr + i, x + y)
    tl.store(products_ptr + i, x * y)


@triton.jit
def _cast_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(y_ptr.dtype.element_ty))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, y_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    at = i[:, None] * SIZE + i[None, :]
    tl.store(y_ptr + at, tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at)))


def values(count: int) -> torch.Tensor:
    """Of all sizes that bfloat16 and FP8 tell apart, ties between neighbours, and infinities."""
    random = torch.Generator().manual_seed(0)
    spread = torch.randn(count, generator=random) * 2.0 ** torch.randint(-12, 12, (count,), generator=random)
    spread[:6] = torch.tensor([0.0, 1 + 2**-8, 1 + 3 * 2**-8, 500.0, -1e9, 2.0**-10])
    return spread


def test_bfloat16_is_rounded_to_nearest_even_after_every_operation():
    x, y = values(512).bfloat16(), values(512).flip(0).bfloat16()
    sums, products = torch.empty_like(x), torch.empty_like(x)
    _arithmetic_kernel[(1,)](x, y, sums, products, SIZE=512)
    assert torch.equal(sums, x + y)
    assert torch.equal(products, x * y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_casts_round_to_nearest_even_and_fp8_saturates(dtype: torch.dtype):
    x, y = values(512), torch.empty(512, dtype=dtype)
    _cast_kernel[(1,)](x, y, SIZE=512)
    largest = torch.finfo(dtype).max if dtype.itemsize == 1 else torch.inf
    assert torch.equal(y.float(), x.clamp(-largest, largest).to(dtype).float())
    back = torch.empty(512)
    _cast_kernel[(1,)](y, back, SIZE=512)
    assert torch.equal(back, y.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32])
def test_dots_widen_their_operands(dtype: torch.dtype):
    random = torch.Generator().manual_seed(1)
    a, b = (torch.randn(32, 32, generator=random).to(dtype) for _ in range(2))
    y = torch.empty(32, 32)
    _dot_kernel[(1,)](a, b, y, SIZE=32)
    torch.testing.assert_close(y, a.float() @ b.float(), rtol=32 * 2**-23, atol=32 * 2**-23)

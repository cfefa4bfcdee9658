"""The sum of two blocks, residual and RMSNorm in one trip to memory: routed experts and shared expert meet here."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from ..ops.layout import require, require_float, rows_of
from ..ops.rms_norm import MAX_WIDTH

REPLACES = ("rms_norm",)


@triton.jit
def _sum_rms_norm_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    other_ptr,  # [T, D], row stride other_stride_t, column stride 1
    residual_ptr,  # [T, D], contiguous; becomes (x + other) + residual
    weight_ptr,  # [D]
    y_ptr,  # [T, D], contiguous
    x_stride_t,
    other_stride_t,
    D,
    eps,
    BLOCK_D: tl.constexpr,  # next power of two >= D
):
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    in_row = d < D
    weight = tl.load(weight_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    begin_kernel()
    dtype: tl.constexpr = residual_ptr.dtype.element_ty
    x = tl.load(x_ptr + t * x_stride_t + d, mask=in_row, other=0.0).to(tl.float32)
    other = tl.load(other_ptr + t * other_stride_t + d, mask=in_row, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + t * D + d, mask=in_row, other=0.0).to(tl.float32)
    total = ((x + other).to(dtype).to(tl.float32) + residual).to(dtype)  # rounded twice, as two additions are
    tl.store(residual_ptr + t * D + d, total, mask=in_row)
    wide = total.to(tl.float32)
    mean_square = tl.sum(wide * wide, axis=0) / D
    y = wide * (1.0 / tl.sqrt(mean_square + eps)) * (1.0 + weight)
    tl.store(y_ptr + t * D + d, y.to(y_ptr.dtype.element_ty), mask=in_row)


def sum_rms_norm(x: Tensor, other: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add two blocks to the residual stream, in place, and normalise what it is then.

        residual += x + other;  y = rms_norm(residual, weight, eps)

    Args:
        x, other: [..., D]; residual: the same shape and dtype, contiguous; it is changed.
        weight: [D], zero-centred; eps: as in ``rms_norm``.

    Returns:
        [..., D] in the dtype of ``x``.

    Raises:
        ValueError: a shape, layout or dtype that this kernel does not take; the message names it.
    """
    op, width = "sum_rms_norm", x.shape[-1]
    rows, others = rows_of(op, "x", x), rows_of(op, "other", other)
    require(other.shape == x.shape and other.dtype == x.dtype, op, "other", other, f"{tuple(x.shape)} {x.dtype}, as x")
    is_alike = residual.shape == x.shape and residual.dtype == x.dtype and residual.is_contiguous()
    require(is_alike, op, "residual", residual, f"{tuple(x.shape)} {x.dtype}, contiguous")
    require(weight.shape == (width,), op, "weight", weight, f"[{width}]")
    require(0 < width <= MAX_WIDTH, op, "x", x, f"rows of 1 to {MAX_WIDTH}")
    require_float(op, x=x, other=other, residual=residual, weight=weight)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if len(rows) > 0:
        launch = launch_for("rms_norm", x.device, D=width)
        args = (rows, others, residual, weight.contiguous(), y, rows.stride(0), others.stride(0), width, eps)
        _sum_rms_norm_kernel[(len(rows),)](*args, BLOCK_D=triton.next_power_of_2(width), **launch.options)
    return y

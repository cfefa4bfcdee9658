"""Triton kernel for ``reference.ops.rms_norm``: one program for each row, one trip to memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .layout import require, rows_of

MAX_WIDTH = 65_536  # a row stays in one program's registers


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    weight_ptr,  # [D]
    y_ptr,  # [T, D], contiguous
    x_stride_t,
    D,
    eps,
    BLOCK_D: tl.constexpr,  # next power of two >= D
):
    t = tl.program_id(0).to(tl.int64)  # int64 first: t * stride leaves int32 past 2**31 elements
    d = tl.arange(0, BLOCK_D)
    in_row = d < D
    weight = tl.load(weight_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    begin_kernel()
    x = tl.load(x_ptr + t * x_stride_t + d, mask=in_row, other=0.0).to(tl.float32)
    mean_square = tl.sum(x * x, axis=0) / D  # masked lanes add 0; D, not BLOCK_D
    y = x * (1.0 / tl.sqrt(mean_square + eps)) * (1.0 + weight)
    tl.store(y_ptr + t * D + d, y.to(y_ptr.dtype.element_ty), mask=in_row)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Same contract as ``reference.ops.rms_norm``.

    A program reduces a row in a fixed order, so a row's bits do not depend on the number of rows.

    Raises:
        ValueError: a shape, layout or dtype that this kernel does not take; the message names it.
    """
    rows = rows_of("rms_norm", "x", x)
    width = x.shape[-1]
    require(weight.shape == (width,), "rms_norm", "weight", weight, f"[{width}]")
    require(width <= MAX_WIDTH, "rms_norm", "x", x, f"rows of at most {MAX_WIDTH}")
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if len(rows) > 0:
        launch = launch_for("rms_norm", x.device, D=width)
        args = (rows, weight.contiguous(), y, rows.stride(0), width, eps)
        _rms_norm_kernel[(len(rows),)](*args, BLOCK_D=triton.next_power_of_2(width), **launch.options)
    return y

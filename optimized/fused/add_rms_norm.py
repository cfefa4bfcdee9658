"""Residual and RMSNorm in one trip to memory; with ``quantize``, the result is rounded to FP8 on the way out."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from ..ops.layout import require, require_float, rows_of
from ..ops.rms_norm import MAX_WIDTH
from .moe_math import GROUP, codes_of, group_scale

REPLACES = ("rms_norm", "quantize_activation")


@triton.jit
def _add_rms_norm_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    residual_ptr,  # [T, D], contiguous; becomes x + residual
    weight_ptr,  # [D]
    y_ptr,  # [T, D], contiguous; e4m3 codes with QUANTIZE
    scale_ptr,  # [T, ceil(D / 128)] float32; any pointer without QUANTIZE
    x_stride_t,
    D,
    eps,
    QUANTIZE: tl.constexpr,
    BLOCK_G: tl.constexpr,  # groups of 128, a power of two
):
    t = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK_G)
    d = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    in_row = d < D
    weight = tl.load(weight_ptr + d, mask=in_row, other=0.0).to(tl.float32)
    begin_kernel()
    x = tl.load(x_ptr + t * x_stride_t + d, mask=in_row, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + t * D + d, mask=in_row, other=0.0).to(tl.float32)
    total = (x + residual).to(residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + t * D + d, total, mask=in_row)
    x = total.to(tl.float32)  # the norm is of what the next layer adds to
    mean_square = tl.sum(tl.sum(x * x, axis=1), axis=0) / D
    y = (x * (1.0 / tl.sqrt(mean_square + eps)) * (1.0 + weight)).to(residual_ptr.dtype.element_ty)
    if QUANTIZE:
        rounded = y.to(tl.float32)
        scale = group_scale(rounded, 1)
        tl.store(y_ptr + t * D + d, codes_of(rounded, scale[:, None]), mask=in_row)
        tl.store(scale_ptr + t * tl.cdiv(D, GROUP) + group, scale, mask=group * GROUP < D)
    else:
        tl.store(y_ptr + t * D + d, y, mask=in_row)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, quantize: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Add to the residual stream, in place, and normalise what it is then.

        residual += x;  y = rms_norm(residual, weight, eps);  with ``quantize``: quantize_activation(y)

    Args:
        x: [..., D]; residual: the same shape and dtype, contiguous; it is changed.
        weight: [D], zero-centred; eps: as in ``rms_norm``.

    Returns:
        [..., D] in the dtype of ``x``; with ``quantize`` codes [..., D] float8_e4m3fn and scale [..., ceil(D / 128)].

    Raises:
        ValueError: a shape, layout or dtype that this kernel does not take; the message names it.
    """
    op, width = "add_rms_norm", x.shape[-1]
    rows = rows_of(op, "x", x)
    is_alike = residual.shape == x.shape and residual.dtype == x.dtype and residual.is_contiguous()
    require(is_alike, op, "residual", residual, f"{tuple(x.shape)} {x.dtype}, contiguous")
    require(weight.shape == (width,), op, "weight", weight, f"[{width}]")
    require(0 < width <= MAX_WIDTH, op, "x", x, f"rows of 1 to {MAX_WIDTH}")
    require_float(op, x=x, residual=residual, weight=weight)
    num_groups = triton.cdiv(width, GROUP.value)
    y = torch.empty(x.shape, dtype=torch.float8_e4m3fn if quantize else x.dtype, device=x.device)
    scale = torch.empty((*x.shape[:-1], num_groups if quantize else 0), dtype=torch.float32, device=x.device)
    if len(rows) > 0:
        launch = launch_for("rms_norm", x.device, D=width)
        args = (rows, residual, weight.contiguous(), y, scale, rows.stride(0), width, eps)
        block = triton.next_power_of_2(num_groups)
        _add_rms_norm_kernel[(len(rows),)](*args, QUANTIZE=quantize, BLOCK_G=block, **launch.options)
    return (y, scale) if quantize else y

"""Triton kernel for ``reference.ops.quantize_activation``: one trip to memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..fused.moe_math import GROUP, codes_of, group_scale
from ..launch import launch_for
from .layout import require, rows_of


@triton.jit
def _quantize_activation_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    codes_ptr,  # [T, D] e4m3, contiguous
    scale_ptr,  # [T, ceil(D / 128)] float32, contiguous
    x_stride_t,
    num_groups,  # of all rows
    groups_per_row,
    D,
    BLOCK_G: tl.constexpr,
):
    begin_kernel()
    group = tl.program_id(0).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    t, d = group // groups_per_row, (group % groups_per_row)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_there = (group[:, None] < num_groups) & (d < D)
    x = tl.load(x_ptr + t[:, None] * x_stride_t + d, mask=is_there, other=0.0).to(tl.float32)
    scale = group_scale(x, 1)
    tl.store(codes_ptr + t[:, None] * D + d, codes_of(x, scale[:, None]), mask=is_there)
    tl.store(scale_ptr + group, scale, mask=group < num_groups)


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Same contract as ``reference.ops.quantize_activation``.

    Raises:
        ValueError: a shape or dtype that this kernel does not take; the message names it.
    """
    require(x.ndim >= 1, "quantize_activation", "x", x, "[..., D]")
    rows = rows_of("quantize_activation", "x", x)
    width = x.shape[-1]
    groups_per_row = triton.cdiv(width, GROUP.value)
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((*x.shape[:-1], groups_per_row), dtype=torch.float32, device=x.device)
    if scale.numel() > 0:
        launch = launch_for("quantize_activation", x.device, groups=scale.numel())
        grid = (triton.cdiv(scale.numel(), launch.options["BLOCK_G"]),)
        args = (rows, codes, scale, rows.stride(0), scale.numel(), groups_per_row, width)
        _quantize_activation_kernel[grid](*args, **launch.options)
    return codes, scale

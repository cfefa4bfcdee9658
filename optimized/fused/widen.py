"""Quantised weights widened to bfloat16 in memory: what many rows are multiplied by, at the rate of plain weights.

Widening in a product's loop keeps tensor cores waiting; once in memory, it costs one trip that thousands of rows share.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dependent_launch import begin_kernel
from ..launch import launch_for
from .moe_math import FP8, GROUP, INT4, fp8_to_bf16, int4_halves
from .moe_stored import Stored

REPLACES = ("linear",)


@triton.jit
def _widen_kernel(
    codes_ptr,  # [O, I] e4m3, or [O, I / 2] bytes of int4; row stride w_stride
    scale_ptr,  # row stride s_stride, column stride 1
    wide_ptr,  # [O, I], contiguous
    w_stride,
    s_stride,
    O,  # noqa: E741
    I,  # noqa: E741
    KIND: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    begin_kernel()
    group = tl.program_id(1)
    o = (tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)
    is_row = o < O
    if KIND == INT4:
        byte = group * (GROUP // 2) + tl.arange(0, GROUP // 2)
        is_there = is_row[:, None] & (byte < (I + 1) // 2)[None, :]
        even, odd = int4_halves(tl.load(codes_ptr + o[:, None] * w_stride + byte[None, :], mask=is_there, other=0))
        codes = tl.interleave(even, odd)
        scale = tl.load(scale_ptr + o * s_stride + group, mask=is_row, other=0.0)
    else:
        i = group * GROUP + tl.arange(0, GROUP)
        is_there = is_row[:, None] & (i < I)[None, :]
        codes = fp8_to_bf16(tl.load(codes_ptr + o[:, None] * w_stride + i[None, :], mask=is_there, other=0.0))
        scale = tl.load(scale_ptr + o // GROUP * s_stride + group, mask=is_row, other=0.0)
    i = group * GROUP + tl.arange(0, GROUP)
    wide = codes.to(tl.float32) * scale.to(tl.float32)[:, None]
    at = wide_ptr + o[:, None] * I + i[None, :]
    tl.store(at, wide.to(wide_ptr.dtype.element_ty), mask=is_row[:, None] & (i < I)[None, :])


def fits(x: Tensor, weight: Stored, rounds: bool) -> bool:
    """Whether products of ``x`` may take the weight widened: bfloat16 rows as they are, and a quantised weight."""
    return x.dtype == torch.bfloat16 and not rounds and weight.kind in (FP8.value, INT4.value)


def widen(weight: Stored, expert: int, num_inputs: int) -> Tensor:
    """One expert's weight, [O, I] bfloat16: code times scale in float32, rounded once.

    Args:
        weight: FP8 or int4.
        expert: which of its first axis.
        num_inputs: I.
    """
    codes, scale = weight.codes[expert], weight.scale[expert]
    num_outputs = len(codes)
    wide = torch.empty((num_outputs, num_inputs), dtype=torch.bfloat16, device=codes.device)
    launch = launch_for("widen", codes.device).options
    grid = (triton.cdiv(num_outputs, launch["BLOCK_O"]), triton.cdiv(num_inputs, GROUP.value))
    _widen_kernel[grid](
        codes, scale, wide, codes.stride(0), scale.stride(0), num_outputs, num_inputs, KIND=weight.kind, **launch
    )
    return wide

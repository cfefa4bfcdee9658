"""Routed experts for few tokens on weights as they are: each is streamed once through registers, two launches.

The first kernel has a program for each slot (a token and one of its experts) and tile of F; slots lie next to each
other in the grid, so that tokens with the same expert meet in the L2 cache. The second has a program for each token and
tile of D, which takes the groups of 128 inputs of all the token's experts in a row, in the order of its slots.
"""

import triton
import triton.language as tl

from ..dependent_launch import begin_kernel
from .moe_math import GROUP, swiglu_of

REPLACES = ("swiglu", "mlp", "experts")


@triton.jit
def load_groups(w_ptr, row, is_row, expert, group, is_group, width, stride_e, stride, WHOLE: tl.constexpr):
    """Weights [rows, BLOCK_G, 128]; each group is of an expert of its own."""
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    at = row.to(tl.int64)[:, None, None] * stride + (expert[:, None] * stride_e + column)[None, :, :]
    if WHOLE:
        is_there = (is_row[:, None] & is_group[None, :])[:, :, None]
    else:
        is_there = is_row[:, None, None] & (is_group[:, None] & (column < width))[None, :, :]
    return tl.load(w_ptr + at, mask=is_there, other=0.0)


@triton.jit
def group_sums(weights, x):
    """Sums [rows, BLOCK_G] of products with inputs [BLOCK_G, 128]."""
    return tl.sum(weights.to(tl.float32) * x[None, :, :], axis=2)


@triton.jit
def _up_decode_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1
    ids_ptr,  # [T, A]
    gate_ptr,  # [E, F, D], strides w_stride_e, w_stride_f, 1
    up_ptr,
    inner_ptr,  # [T A, F] float32, contiguous
    x_stride_t,
    w_stride_e,
    w_stride_f,
    D,
    F,
    A,
    limit,
    ROUTED: tl.constexpr,
    CLAMP: tl.constexpr,
    WHOLE: tl.constexpr,  # D is whole groups
    BLOCK_F: tl.constexpr,
    BLOCK_G: tl.constexpr,  # groups of 128 inputs
    STAGES: tl.constexpr,
):
    begin_kernel()
    slot = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_row = f < F
    expert = tl.zeros((BLOCK_G,), tl.int64)
    if ROUTED:
        expert += tl.load(ids_ptr + slot).to(tl.int64)
    x_ptr += slot // A * x_stride_t
    gate = tl.zeros((BLOCK_F, BLOCK_G), tl.float32)
    up = tl.zeros((BLOCK_F, BLOCK_G), tl.float32)
    for first in tl.range(0, tl.cdiv(D, GROUP), BLOCK_G, num_stages=STAGES):
        group = first + tl.arange(0, BLOCK_G)
        is_group = group * GROUP < D
        # Both are on their way before one of them is used: half as much in flight took a sixth longer.
        gates = load_groups(gate_ptr, f, is_row, expert, group, is_group, D, w_stride_e, w_stride_f, WHOLE)
        ups = load_groups(up_ptr, f, is_row, expert, group, is_group, D, w_stride_e, w_stride_f, WHOLE)
        d = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.load(x_ptr + d, mask=is_group[:, None] if WHOLE else d < D, other=0.0).to(tl.float32)
        gate += group_sums(gates, x)
        up += group_sums(ups, x)
    inner = swiglu_of(tl.sum(gate, axis=1), tl.sum(up, axis=1), limit, CLAMP)
    tl.store(inner_ptr + slot * F + f, inner, mask=is_row)


@triton.jit
def _down_decode_kernel(
    inner_ptr,  # [T A, F] float32, contiguous
    ids_ptr,  # [T, A]
    weights_ptr,  # [T, A]
    down_ptr,  # [E, D, F], strides w_stride_e, w_stride_d, 1
    y_ptr,  # [T, D], contiguous
    w_stride_e,
    w_stride_d,
    D,
    F,
    A,
    ROUTED: tl.constexpr,
    WHOLE: tl.constexpr,  # F is whole groups
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,  # groups of 128 inputs, of one expert or of several
    STAGES: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_row = d < D
    per_slot = tl.cdiv(F, GROUP)
    total = tl.zeros((BLOCK_D, BLOCK_G), tl.float32)
    for first in tl.range(0, A * per_slot, BLOCK_G, num_stages=STAGES):
        number = first + tl.arange(0, BLOCK_G)
        is_group = number < A * per_slot
        slot, group = t * A + number // per_slot, number % per_slot
        expert = tl.zeros((BLOCK_G,), tl.int64)
        if ROUTED:
            expert += tl.load(ids_ptr + slot, mask=is_group, other=0).to(tl.int64)
        downs = load_groups(down_ptr, d, is_row, expert, group, is_group, F, w_stride_e, w_stride_d, WHOLE)
        f = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        is_input = is_group[:, None] if WHOLE else is_group[:, None] & (f < F)
        inner = tl.load(inner_ptr + (slot * F)[:, None] + f, mask=is_input, other=0.0)
        sums = group_sums(downs, inner)
        if ROUTED:
            sums *= tl.load(weights_ptr + slot, mask=is_group, other=0.0).to(tl.float32)[None, :]
        total += sums
    tl.store(y_ptr + t * D + d, tl.sum(total, axis=1).to(y_ptr.dtype.element_ty), mask=is_row)

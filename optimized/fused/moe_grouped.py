"""Routed experts for more tokens: products of blocks of rows with one expert's weight, on tensor cores.

A program takes a block of slots with the same expert (a slot is a token and one of its experts, numbered t A + a) and a
tile of outputs. The same kernel makes the intermediate, with gate, up and SwiGLU in one program, and the down
projection, whose results are weighed here and added up by ``_combine_kernel`` in the order of the slots.
"""

import triton
import triton.language as tl

from ..dependent_launch import begin_kernel
from .moe_math import (
    FP8,
    GROUP,
    INT4,
    PLAIN,
    codes_of,
    fp8_to_bf16,
    group_scale,
    int4_halves,
    rounded_to_fp8,
    swiglu_of,
)

REPLACES = ("swiglu", "mlp", "experts", "experts_fp8", "quantize_activation")

ALL: tl.constexpr = tl.constexpr(0)  # where rows come from: in order, one weight for all
SCAN: tl.constexpr = tl.constexpr(1)  # block b is slot b and up to BLOCK_R - 1 later ones with its expert
TABLE: tl.constexpr = tl.constexpr(2)  # of moe_blocks
AS_IT_IS: tl.constexpr = tl.constexpr(0)  # inputs
CODES: tl.constexpr = tl.constexpr(1)  # e4m3, with scales
ROUNDED_HERE: tl.constexpr = tl.constexpr(2)  # to e4m3


@triton.jit
def scanned(ids_ptr, first, expert, R, BLOCK_R: tl.constexpr, BLOCK_ALL: tl.constexpr):
    """Slots [BLOCK_R] of the block that starts at slot ``first``, and whether one starts there; R: no slot."""
    slot = tl.arange(0, BLOCK_ALL)
    is_own = tl.load(ids_ptr + slot, mask=slot < R, other=-1) == expert
    rank = tl.cumsum(is_own.to(tl.int32), axis=0) - 1
    own_rank = tl.sum((is_own & (slot < first)).to(tl.int32), axis=0)
    place = own_rank + tl.arange(0, BLOCK_R)
    is_place = is_own[None, :] & (rank[None, :] == place[:, None])
    return tl.min(tl.where(is_place, slot[None, :], R), axis=1), own_rank % BLOCK_R == 0


@triton.jit
def dot(x, w, total, SWAP: tl.constexpr):
    """``total`` and the product, [rows, outputs], or [outputs, rows]: tensor cores take the taller operand first."""
    if x.dtype != w.dtype:
        x, w = x.to(tl.float32), w.to(tl.float32)
    if SWAP:
        total = tl.dot(w, tl.trans(x), total, input_precision="ieee")
    else:
        total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    return total


@triton.jit
def add_product(
    total,
    w_ptr,  # of the expert
    s_ptr,
    x,  # inputs [BLOCK_R, BLOCK_K]
    x_scale,  # [BLOCK_R], where inputs are codes
    o,
    is_output,
    k,
    K,
    w_stride_o,
    s_stride_o,
    KIND: tl.constexpr,
    X: tl.constexpr,
    WHOLE: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add the product with inputs k .. k + BLOCK_K; with scales, that is a group of 128."""
    per_element: tl.constexpr = 2 if KIND == INT4 else 1
    column = k // per_element + tl.arange(0, BLOCK_K // per_element)
    at = w_ptr + o[:, None] * w_stride_o + column[None, :]
    nothing: tl.constexpr = 0 if KIND == INT4 else 0.0
    if WHOLE:
        codes = tl.load(at, mask=is_output[:, None], other=nothing)
    else:
        codes = tl.load(at, mask=is_output[:, None] & (column * per_element < K)[None, :], other=nothing)
    if KIND == PLAIN:
        total = dot(x, codes, total, SWAP)
    else:
        product = tl.zeros_like(total)  # of one group: scales are applied to the float32 sum
        if KIND == INT4:
            even, odd = int4_halves(codes)
            if SWAP:  # two products spare the weights, the larger operand, a shuffle
                x_even, x_odd = tl.split(tl.reshape(x, (x.shape[0], BLOCK_K // 2, 2)))
                product = dot(x_even, even, dot(x_odd, odd, product, SWAP), SWAP)
            else:
                product = dot(x, tl.reshape(tl.join(even, odd), (codes.shape[0], BLOCK_K)), product, SWAP)
        else:
            if x.dtype == tl.bfloat16:
                codes = fp8_to_bf16(codes)
            product = dot(x, codes.to(x.dtype), product, SWAP)  # exact: at most four digits
        row = o // GROUP if KIND == FP8 else o
        scale = tl.load(s_ptr + row * s_stride_o + k // GROUP, mask=is_output, other=0.0).to(tl.float32)
        product *= scale[:, None] if SWAP else scale[None, :]
        if X != AS_IT_IS:
            product *= x_scale[None, :] if SWAP else x_scale[:, None]
        total += product
    return total


@triton.jit
def _grouped_kernel(
    x_ptr,  # [T or R, K], row stride x_stride_t
    x_scale_ptr,  # [T or R, ceil(K / 128)] float32, contiguous, where x are codes
    ids_ptr,  # [R], of SCAN
    experts_ptr,  # [blocks], of TABLE
    slots_ptr,  # [blocks * BLOCK_R], of TABLE
    weights_ptr,  # [R], of the down projection
    first_ptr,  # [E, O, K], strides w_stride_e, w_stride_o, 1: gate, or down
    second_ptr,  # up
    first_scale_ptr,  # strides s_stride_e, s_stride_o, 1
    second_scale_ptr,
    y_ptr,  # [R, O], contiguous
    y_scale_ptr,  # [R, ceil(O / 128)] float32, where y are codes
    x_stride_t,
    w_stride_e,
    w_stride_o,
    s_stride_e,
    s_stride_o,
    R,
    num_outputs,  # O
    K,
    slots_per_row,  # of x: A, or 1
    blocks,
    limit,
    GATED: tl.constexpr,  # gate, up and SwiGLU
    WEIGHED: tl.constexpr,
    ROWS: tl.constexpr,  # ALL, SCAN or TABLE
    X: tl.constexpr,  # AS_IT_IS, CODES or ROUNDED_HERE
    KIND: tl.constexpr,
    CLAMP: tl.constexpr,
    WHOLE: tl.constexpr,  # K is whole blocks
    OUT_CODES: tl.constexpr,  # e4m3, which takes BLOCK_O = 128
    BLOCK_ALL: tl.constexpr,  # of SCAN: next power of two >= R
    SWAP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,  # 128 unless the weight is plain
    BLOCKS_IN_L2: tl.constexpr,  # blocks of rows that run over all tiles of outputs together
):
    begin_kernel()
    tiles = tl.cdiv(num_outputs, BLOCK_O)
    strip = tl.program_id(0) // (BLOCKS_IN_L2 * tiles) * BLOCKS_IN_L2
    in_strip = tl.program_id(0) % (BLOCKS_IN_L2 * tiles)
    height = tl.minimum(blocks - strip, BLOCKS_IN_L2)
    block, tile = strip + in_strip % height, in_strip // height
    if ROWS == TABLE:
        expert = tl.load(experts_ptr + block)
        if expert < 0:
            return
        slot = tl.load(slots_ptr + block * BLOCK_R + tl.arange(0, BLOCK_R))
    elif ROWS == SCAN:
        expert = tl.load(ids_ptr + block).to(tl.int32)
        slot, starts_here = scanned(ids_ptr, block, expert, R, BLOCK_R, BLOCK_ALL)
        if not starts_here:
            return
    else:
        expert = 0
        slot = block * BLOCK_R + tl.arange(0, BLOCK_R)
    is_slot = slot < R
    slot = tl.where(is_slot, slot, 0).to(tl.int64)
    row = slot // slots_per_row
    o32 = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    is_output, o = o32 < num_outputs, o32.to(tl.int64)
    w_at, s_at = expert.to(tl.int64) * w_stride_e if ROWS != ALL else 0, expert * s_stride_e
    first = tl.zeros((BLOCK_O, BLOCK_R), tl.float32) if SWAP else tl.zeros((BLOCK_R, BLOCK_O), tl.float32)
    second = first
    for k in range(0, K, BLOCK_K):
        x_scale = 0.0
        column = k + tl.arange(0, BLOCK_K)
        is_there = is_slot[:, None] if WHOLE else is_slot[:, None] & (column < K)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride_t + column[None, :], mask=is_there, other=0.0)
        if X == ROUNDED_HERE:
            x, x_scale = rounded_to_fp8(x.to(tl.float32))
        elif X == CODES:
            scales_per_row = tl.cdiv(K, GROUP)
            x_scale = tl.load(x_scale_ptr + row * scales_per_row + k // GROUP, mask=is_slot, other=0.0)
        first = add_product(
            first, first_ptr + w_at, first_scale_ptr + s_at, x, x_scale, o, is_output, k, K, w_stride_o,
            s_stride_o, KIND, X, WHOLE, SWAP, BLOCK_K,
        )  # fmt: skip
        if GATED:
            second = add_product(
                second, second_ptr + w_at, second_scale_ptr + s_at, x, x_scale, o, is_output, k, K, w_stride_o,
                s_stride_o, KIND, X, WHOLE, SWAP, BLOCK_K,
            )  # fmt: skip
    y = swiglu_of(first, second, limit, CLAMP) if GATED else first
    if SWAP:
        y = tl.trans(y)
    if WEIGHED:
        y *= tl.load(weights_ptr + slot, mask=is_slot, other=0.0).to(tl.float32)[:, None]
    is_there = is_slot[:, None] & is_output[None, :]
    if OUT_CODES:
        scale = group_scale(y, 1)
        tl.store(y_scale_ptr + slot * tiles + tile, scale, mask=is_slot)
        tl.store(y_ptr + slot[:, None] * num_outputs + o[None, :], codes_of(y, scale[:, None]), mask=is_there)
    else:
        tl.store(y_ptr + slot[:, None] * num_outputs + o[None, :], y.to(y_ptr.dtype.element_ty), mask=is_there)


@triton.jit
def _combine_kernel(
    parts_ptr,  # [T A, D], contiguous, weighed
    y_ptr,  # [T, D], contiguous
    D,
    A,
    BLOCK_D: tl.constexpr,
):
    begin_kernel()
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for a in range(A):
        total += tl.load(parts_ptr + (t * A + a) * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y_ptr + t * D + d, total.to(y_ptr.dtype.element_ty), mask=d < D)

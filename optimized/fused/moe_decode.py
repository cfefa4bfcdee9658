"""Routed experts for few tokens: every weight is streamed once through registers, two launches, nothing is sorted.

The first kernel has a program for each slot (a token and one of its experts) and tile of F; slots lie next to each
other in the grid, so that tokens with the same expert meet in the L2 cache. The second has a program for each token and
tile of D, which takes the groups of 128 inputs of all the token's experts in a row, in the order of its slots.
"""

import triton
import triton.language as tl

from .moe_math import FP8, GROUP, INT4, INT4_WORDS, INT4_ZERO, PLAIN, TWO_TO_23, code_at, rounded_to_fp8, swiglu_of

REPLACES = ("swiglu", "mlp", "experts", "experts_fp8", "quantize_activation")


@triton.jit
def split_inputs(x, KIND: tl.constexpr):
    """Inputs [BLOCK_G, 128] as codes lie: as they are; even and odd ones; or eight, for each place in a word."""
    if KIND == INT4:
        parts = tl.split(tl.reshape(x, (x.shape[0], 64, 2)))
    elif KIND == INT4_WORDS:
        even, odd = tl.split(tl.reshape(x, (x.shape[0], 16, 2, 2, 2)))
        x04, x26 = tl.split(even)
        x15, x37 = tl.split(odd)
        x0, x4 = tl.split(x04)
        x1, x5 = tl.split(x15)
        x2, x6 = tl.split(x26)
        x3, x7 = tl.split(x37)
        parts = (x0, x1, x2, x3, x4, x5, x6, x7)
    else:
        parts = (x,)
    return parts


@triton.jit
def load_codes(
    w_ptr, row, is_row, expert, group, is_group, width, stride_e, stride, KIND: tl.constexpr, WHOLE: tl.constexpr
):
    """[rows, BLOCK_G, codes of a group in elements of the weight]; each group is of an expert of its own."""
    per_element: tl.constexpr = 2 if KIND == INT4 else 8 if KIND == INT4_WORDS else 1
    size: tl.constexpr = GROUP // per_element
    column = group[:, None] * size + tl.arange(0, size)[None, :]
    at = row.to(tl.int64)[:, None, None] * stride + (expert[:, None] * stride_e + column)[None, :, :]
    nothing: tl.constexpr = 0 if per_element > 1 else 0.0
    if WHOLE:
        is_there = (is_row[:, None] & is_group[None, :])[:, :, None]
    else:
        is_there = is_row[:, None, None] & (is_group[:, None] & (column < width // per_element))[None, :, :]
    return tl.load(w_ptr + at, mask=is_there, other=nothing)


@triton.jit
def group_sums(codes, parts, A, KIND: tl.constexpr):
    """[rows, BLOCK_G]: the codes of each group times the inputs."""
    in_register = TWO_TO_23 + (A >> 31)  # the latter is 0
    if KIND == INT4:
        low = (codes & 15).to(tl.float32) - INT4_ZERO
        high = (codes >> 4).to(tl.float32) - INT4_ZERO
        products = low * parts[0][None, :, :] + high * parts[1][None, :, :]
    elif KIND == INT4_WORDS:
        later = codes >> 20
        products = code_at(codes, in_register, 0) * parts[0][None, :, :]
        products += code_at(codes, in_register, 1) * parts[1][None, :, :]
        products += code_at(codes, in_register, 2) * parts[2][None, :, :]
        products += code_at(codes, in_register, 3) * parts[3][None, :, :]
        products += code_at(codes, in_register, 4) * parts[4][None, :, :]
        products += code_at(later, in_register, 0) * parts[5][None, :, :]
        products += code_at(later, in_register, 1) * parts[6][None, :, :]
        products += code_at(later, in_register, 2) * parts[7][None, :, :]
    else:
        products = codes.to(tl.float32) * parts[0][None, :, :]
    return tl.sum(products, axis=2)


@triton.jit
def lanes_of(KIND: tl.constexpr):
    """Sums that are kept apart in each group until the end: of FP8 all 128, as one scale serves a program's rows."""
    return GROUP if KIND == FP8 else 1


@triton.jit
def weighed(codes, x, x_scale, s_ptr, row, is_row, expert, group, is_group, stride_e, stride, A, KIND: tl.constexpr):
    """[rows, BLOCK_G, lanes]: what a block of weights adds to its rows' sums.

    Args:
        x: float32 [BLOCK_G, 128]; x_scale: [BLOCK_G], a factor of each group.
    """
    if KIND == FP8:  # the rows of a program lie in one block of 128
        at = s_ptr + tl.min(row, axis=0) // GROUP * stride + expert * stride_e + group
        x_scale *= tl.load(at, mask=is_group, other=0.0).to(tl.float32)
        products = codes.to(tl.float32) * (x * x_scale[:, None])[None, :, :]
    else:
        sums = group_sums(codes, split_inputs(x, KIND), A, KIND) * x_scale[None, :]
        if KIND != PLAIN:
            sums *= load_scales(s_ptr, row, is_row, expert, group, is_group, stride_e, stride)
        products = sums[:, :, None]
    return products


@triton.jit
def load_scales(s_ptr, row, is_row, expert, group, is_group, stride_e, stride):
    """Of int4, float32 [rows, BLOCK_G]; 0 outside."""
    at = row.to(tl.int64)[:, None] * stride + (expert * stride_e + group)[None, :]
    return tl.load(s_ptr + at, mask=is_row[:, None] & is_group[None, :], other=0.0).to(tl.float32)


@triton.jit
def _up_decode_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1; e4m3 codes with ROUND
    x_scale_ptr,  # [T, ceil(D / 128)] float32, contiguous; any pointer without ROUND
    ids_ptr,  # [T, A]
    gate_ptr,  # [E, F, D], strides w_stride_e, w_stride_f, 1
    up_ptr,
    gate_scale_ptr,  # strides s_stride_e, s_stride_f, 1
    up_scale_ptr,
    inner_ptr,  # [T A, F] float32, contiguous
    x_stride_t,
    w_stride_e,
    w_stride_f,
    s_stride_e,
    s_stride_f,
    D,
    F,
    A,
    limit,
    ROUTED: tl.constexpr,
    KIND: tl.constexpr,
    ROUND: tl.constexpr,  # x was rounded to e4m3
    CLAMP: tl.constexpr,
    WHOLE: tl.constexpr,  # D is whole groups
    BLOCK_F: tl.constexpr,
    BLOCK_G: tl.constexpr,  # groups of 128 inputs
    STAGES: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_row = f < F
    expert = tl.zeros((BLOCK_G,), tl.int64)
    if ROUTED:
        expert += tl.load(ids_ptr + slot).to(tl.int64)
    x_ptr += slot // A * x_stride_t
    LANES: tl.constexpr = lanes_of(KIND)
    gate = tl.zeros((BLOCK_F, BLOCK_G, LANES), tl.float32)
    up = tl.zeros((BLOCK_F, BLOCK_G, LANES), tl.float32)
    for first in tl.range(0, tl.cdiv(D, GROUP), BLOCK_G, num_stages=STAGES):
        group = first + tl.arange(0, BLOCK_G)
        is_group = group * GROUP < D
        gates = load_codes(gate_ptr, f, is_row, expert, group, is_group, D, w_stride_e, w_stride_f, KIND, WHOLE)
        ups = load_codes(up_ptr, f, is_row, expert, group, is_group, D, w_stride_e, w_stride_f, KIND, WHOLE)
        d = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = tl.load(x_ptr + d, mask=is_group[:, None] if WHOLE else d < D, other=0.0).to(tl.float32)
        x_scale = tl.full((BLOCK_G,), 1.0, tl.float32)
        if ROUND:
            x_scale = tl.load(x_scale_ptr + slot // A * tl.cdiv(D, GROUP) + group, mask=is_group, other=0.0)
        gate += weighed(
            gates, x, x_scale, gate_scale_ptr, f, is_row, expert, group, is_group, s_stride_e, s_stride_f, A, KIND
        )
        up += weighed(
            ups, x, x_scale, up_scale_ptr, f, is_row, expert, group, is_group, s_stride_e, s_stride_f, A, KIND
        )
    gate_sum, up_sum = tl.sum(tl.sum(gate, axis=2), axis=1), tl.sum(tl.sum(up, axis=2), axis=1)
    inner = swiglu_of(gate_sum, up_sum, limit, CLAMP)
    tl.store(inner_ptr + slot * F + f, inner, mask=is_row)


@triton.jit
def _down_decode_kernel(
    inner_ptr,  # [T A, F] float32, contiguous
    ids_ptr,  # [T, A]
    weights_ptr,  # [T, A]
    down_ptr,  # [E, D, F], strides w_stride_e, w_stride_d, 1
    down_scale_ptr,  # strides s_stride_e, s_stride_d, 1
    y_ptr,  # [T, D], contiguous
    w_stride_e,
    w_stride_d,
    s_stride_e,
    s_stride_d,
    D,
    F,
    A,
    ROUTED: tl.constexpr,
    KIND: tl.constexpr,
    ROUND: tl.constexpr,  # the intermediate to e4m3
    WHOLE: tl.constexpr,  # F is whole groups
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,  # groups of 128 inputs, of one expert or of several
    STAGES: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    is_row = d < D
    per_slot = tl.cdiv(F, GROUP)
    total = tl.zeros((BLOCK_D, BLOCK_G, lanes_of(KIND)), tl.float32)
    for first in tl.range(0, A * per_slot, BLOCK_G, num_stages=STAGES):
        number = first + tl.arange(0, BLOCK_G)
        is_group = number < A * per_slot
        slot, group = t * A + number // per_slot, number % per_slot
        expert = tl.zeros((BLOCK_G,), tl.int64)
        if ROUTED:
            expert += tl.load(ids_ptr + slot, mask=is_group, other=0).to(tl.int64)
        codes = load_codes(down_ptr, d, is_row, expert, group, is_group, F, w_stride_e, w_stride_d, KIND, WHOLE)
        f = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        is_input = is_group[:, None] if WHOLE else is_group[:, None] & (f < F)
        inner = tl.load(inner_ptr + (slot * F)[:, None] + f, mask=is_input, other=0.0)
        factor = tl.full((BLOCK_G,), 1.0, tl.float32)
        if ROUND:
            inner_codes, factor = rounded_to_fp8(inner)
            inner = inner_codes.to(tl.float32)
        if ROUTED:
            factor *= tl.load(weights_ptr + slot, mask=is_group, other=0.0).to(tl.float32)
        total += weighed(
            codes, inner, factor, down_scale_ptr, d, is_row, expert, group, is_group, s_stride_e, s_stride_d, A, KIND
        )
    y = tl.sum(tl.sum(total, axis=2), axis=1)
    tl.store(y_ptr + t * D + d, y.to(y_ptr.dtype.element_ty), mask=is_row)

"""Gated blocks and products on quantised weights for few rows: every code is streamed once, tensor cores multiply.

Sums along a row on scalar units cost more instructions than memory leaves time for, once a weight is a byte or less.
Here a tile of weights is the tall operand, and rows of x the narrow one: all of them where one weight serves all, and
one of them, with seven columns idle, where each slot (a token and one of its experts) has its own. Routed, the first
kernel has a program for each slot and tile of F, the second one for each token, tile of D and share of the token's
groups. What several programs make together, the last of them to arrive finishes, in the order of the parts, so that
bits do not depend on who that is.
"""

import triton
import triton.language as tl

from ..arrival import arrived_last
from ..dependent_launch import begin_kernel
from .moe_math import FP8, GROUP, INT4, codes_of, fp8_to_bf16, group_scale, int4_halves, swiglu_of

REPLACES = ("linear", "swiglu", "mlp", "experts", "experts_fp8", "quantize_activation")


@triton.jit
def dot_wide(w, x):
    """[BLOCK_G, outputs, columns] float32 of [BLOCK_G, outputs, K] and [BLOCK_G, columns, K]: a group is a warp's work.

    e4m3 times e4m3 is done in float16, which holds every code: the sums are those of float32.
    """
    if x.dtype == tl.float8e4nv:
        product = tl.dot(w.to(tl.float16), tl.permute(x.to(tl.float16), (0, 2, 1)))
    else:
        product = tl.dot(w.to(x.dtype), tl.permute(x, (0, 2, 1)), input_precision="ieee")
    return product


@triton.jit
def groups_product(
    w_ptr,
    w_at,  # [BLOCK_G] of each group's expert
    x_ptr,
    x_at,  # [BLOCK_G] of each group's first row
    x_stride,
    is_row,  # [COLUMNS]
    o,  # [outputs]
    is_output,
    group,  # [BLOCK_G], in a row of the weight
    is_group,
    K,
    w_stride,
    KIND: tl.constexpr,
    WHOLE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Codes of BLOCK_G groups of 128 inputs times x, [BLOCK_G, outputs, COLUMNS] float32."""
    row = tl.arange(0, COLUMNS).to(tl.int64)
    k = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_input = is_group[:, None] & (k >= 0) if WHOLE else is_group[:, None] & (k < K)
    at = x_ptr + x_at[:, None, None] + row[None, :, None] * x_stride + k[:, None, :]
    x = tl.load(at, mask=is_row[None, :, None] & is_input[:, None, :], other=0.0)
    if KIND == INT4:
        byte = group[:, None] * (GROUP // 2) + tl.arange(0, GROUP // 2)[None, :]
        is_byte = is_group[:, None] & (byte >= 0) if WHOLE else is_group[:, None] & (2 * byte < K)
        at = w_ptr + w_at[:, None, None] + o[None, :, None] * w_stride + byte[:, None, :]
        even, odd = int4_halves(tl.load(at, mask=is_output[None, :, None] & is_byte[:, None, :], other=0))
        x_even, x_odd = tl.split(tl.reshape(x, (BLOCK_G, COLUMNS, GROUP // 2, 2)))
        product = dot_wide(even, x_even) + dot_wide(odd, x_odd)
    else:
        at = w_ptr + w_at[:, None, None] + o[None, :, None] * w_stride + k[:, None, :]
        codes = tl.load(at, mask=is_output[None, :, None] & is_input[:, None, :], other=0.0)
        if x.dtype == tl.bfloat16:
            codes = fp8_to_bf16(codes)
        product = dot_wide(codes, x)
    return product


@triton.jit
def load_scales(s_ptr, s_at, o, is_output, group, is_group, s_stride, KIND: tl.constexpr):
    """Of each group: [BLOCK_G, outputs] of int4; [BLOCK_G, 1] of FP8, where a program lies in one block of outputs."""
    if KIND == FP8:
        at = s_ptr + s_at + tl.min(o, axis=0) // GROUP * s_stride + group
        scale = tl.load(at, mask=is_group, other=0.0)[:, None]
    else:
        at = s_ptr + s_at[:, None] + (o * s_stride)[None, :] + group[:, None]
        scale = tl.load(at, mask=is_group[:, None] & is_output[None, :], other=0.0)
    return scale.to(tl.float32)


@triton.jit
def of_experts(values, a, chosen):
    """Values [BLOCK_A] of a token's experts, those of ``chosen`` [BLOCK_G]."""
    return tl.sum(tl.where(a[None, :] == chosen[:, None], values[None, :], 0), axis=1)


@triton.jit
def round_group(inner_ptr, codes_ptr, scale_ptr, first, F):
    """e4m3 codes of the group that begins at ``first``, of what other programs wrote: from the level-2 cache."""
    f = first + tl.arange(0, GROUP)
    inner = tl.load(inner_ptr + f, mask=f < F, other=0.0, cache_modifier=".cg")
    scale = group_scale(inner, 0)
    tl.store(codes_ptr + f, codes_of(inner, scale), mask=f < F)
    tl.store(scale_ptr, scale)


@triton.jit
def _up_stream_kernel(
    x_ptr,  # [T, D], row stride x_stride_t, column stride 1; e4m3 codes with ROUND
    x_scale_ptr,  # [T, ceil(D / 128)] float32, contiguous; any pointer without ROUND
    ids_ptr,  # [T, A]
    gate_ptr,  # [E, F, D], strides w_stride_e, w_stride_f, 1
    up_ptr,
    gate_scale_ptr,  # strides s_stride_e, s_stride_f, 1
    up_scale_ptr,
    inner_ptr,  # [T A, F], contiguous; float32 with ROUND
    codes_ptr,  # [T A, F] e4m3, contiguous, with ROUND
    codes_scale_ptr,  # [T A, ceil(F / 128)] float32, contiguous, with ROUND
    arrived_ptr,  # [programs along axis 0, ceil(F / 128)] int32, zero before and after, with ROUND
    x_stride_t,
    w_stride_e,
    w_stride_f,
    s_stride_e,
    s_stride_f,
    D,
    F,
    A,
    rows,  # of a program: 1 if ROUTED, else T
    limit,
    ROUTED: tl.constexpr,
    KIND: tl.constexpr,
    ROUND: tl.constexpr,
    CLAMP: tl.constexpr,
    WHOLE: tl.constexpr,  # D is whole groups
    COLUMNS: tl.constexpr,  # >= rows
    BLOCK_F: tl.constexpr,  # divides 128
    BLOCK_G: tl.constexpr,  # groups of 128 inputs at once, a warp's work each
):
    begin_kernel()
    slot = tl.program_id(0).to(tl.int64)
    f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_output, o = f < F, f.to(tl.int64)
    row = tl.arange(0, COLUMNS)
    is_row = row < rows
    g, nowhere = tl.arange(0, BLOCK_G), tl.zeros((BLOCK_G,), tl.int64)
    w_at, s_at = nowhere, nowhere
    if ROUTED:
        expert = tl.load(ids_ptr + slot).to(tl.int64)
        w_at, s_at = nowhere + expert * w_stride_e, nowhere + expert * s_stride_e
    groups = tl.cdiv(D, GROUP)
    x_ptr += slot // A * x_stride_t
    x_scale_ptr += slot // A * groups
    gate = tl.zeros((BLOCK_G, BLOCK_F, COLUMNS), tl.float32)
    up = tl.zeros((BLOCK_G, BLOCK_F, COLUMNS), tl.float32)
    # Scales are read a step ahead: read where they are used, a program would wait for them in every step.
    gate_scale = load_scales(gate_scale_ptr, s_at, o, is_output, g, g < groups, s_stride_f, KIND)
    up_scale = load_scales(up_scale_ptr, s_at, o, is_output, g, g < groups, s_stride_f, KIND)
    factor = tl.full((BLOCK_G, COLUMNS), 1.0, tl.float32)
    if ROUND:
        is_factor = is_row[None, :] & (g < groups)[:, None]
        factor = tl.load(x_scale_ptr + row[None, :] * groups + g[:, None], mask=is_factor, other=0.0)
    for first in range(0, groups, BLOCK_G):
        group = first + g
        ahead = group + BLOCK_G
        next_gate_scale = load_scales(gate_scale_ptr, s_at, o, is_output, ahead, ahead < groups, s_stride_f, KIND)
        next_up_scale = load_scales(up_scale_ptr, s_at, o, is_output, ahead, ahead < groups, s_stride_f, KIND)
        gates = groups_product(
            gate_ptr, w_at, x_ptr, nowhere, x_stride_t, is_row, o, is_output, group, group < groups, D, w_stride_f,
            KIND, WHOLE, COLUMNS, BLOCK_G,
        )  # fmt: skip
        ups = groups_product(
            up_ptr, w_at, x_ptr, nowhere, x_stride_t, is_row, o, is_output, group, group < groups, D, w_stride_f,
            KIND, WHOLE, COLUMNS, BLOCK_G,
        )  # fmt: skip
        gates, ups = gates * gate_scale[:, :, None], ups * up_scale[:, :, None]
        if ROUND:
            is_factor = is_row[None, :] & (ahead < groups)[:, None]
            next_factor = tl.load(x_scale_ptr + row[None, :] * groups + ahead[:, None], mask=is_factor, other=0.0)
            gates, ups = gates * factor[:, None, :], ups * factor[:, None, :]
            factor = next_factor
        gate += gates
        up += ups
        gate_scale, up_scale = next_gate_scale, next_up_scale
    gate, up = tl.sum(gate, axis=0), tl.sum(up, axis=0)
    inner = swiglu_of(gate, up, limit, CLAMP)
    at = (slot + row)[None, :] * F + f[:, None]
    tl.store(inner_ptr + at, inner.to(inner_ptr.dtype.element_ty), mask=is_output[:, None] & is_row[None, :])
    if ROUND:
        group = tl.program_id(1) * BLOCK_F // GROUP
        first = group * GROUP
        parts = tl.cdiv(tl.minimum(F - first, GROUP), BLOCK_F)
        if arrived_last(arrived_ptr + slot * tl.cdiv(F, GROUP) + group, parts):
            for r in range(rows):
                place = (slot + r) * F
                scale_at = codes_scale_ptr + (slot + r) * tl.cdiv(F, GROUP) + group
                round_group(inner_ptr + place, codes_ptr + place, scale_at, first, F)


@triton.jit
def _down_stream_kernel(
    x_ptr,  # [T A, F], row stride x_stride, column stride 1; e4m3 codes with ROUND
    x_scale_ptr,  # [T A, ceil(F / 128)] float32, contiguous; any pointer without ROUND
    ids_ptr,  # [T, A]
    weights_ptr,  # [T, A]
    down_ptr,  # [E, D, F], strides w_stride_e, w_stride_d, 1
    down_scale_ptr,  # strides s_stride_e, s_stride_d, 1
    y_ptr,  # [T, D], contiguous
    parts_ptr,  # [SPLIT, T, D] float32, where SPLIT > 1
    arrived_ptr,  # [programs along axis 0, tiles] int32, zero before and after, where SPLIT > 1
    x_stride,
    w_stride_e,
    w_stride_d,
    s_stride_e,
    s_stride_d,
    D,
    F,
    A,
    rows,  # of a program: 1 if ROUTED, else T
    part_size,  # T D
    ROUTED: tl.constexpr,
    KIND: tl.constexpr,
    ROUND: tl.constexpr,
    WHOLE: tl.constexpr,  # F is whole groups
    BLOCK_A: tl.constexpr,  # next power of two >= A
    COLUMNS: tl.constexpr,  # >= rows
    BLOCK_D: tl.constexpr,  # divides 128
    BLOCK_G: tl.constexpr,  # groups of 128 inputs at once, of one expert or of several
    SPLIT: tl.constexpr,  # of a token's groups
):
    begin_kernel()
    t, tile, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    d = tile * BLOCK_D + tl.arange(0, BLOCK_D)
    is_output, o = d < D, d.to(tl.int64)
    row = tl.arange(0, COLUMNS)
    is_row = row < rows
    groups = tl.cdiv(F, GROUP)
    first, last = part * A * groups // SPLIT, (part + 1) * A * groups // SPLIT
    # Ids and weights of all experts are read once: an address that is read in the loop ends the compiler's pipeline.
    a = tl.arange(0, BLOCK_A)
    ids = tl.zeros((BLOCK_A,), tl.int64)
    weights = tl.full((BLOCK_A,), 1.0, tl.float32)
    if ROUTED:
        ids = tl.load(ids_ptr + t * A + a, mask=a < A, other=0).to(tl.int64)
        weights = tl.load(weights_ptr + t * A + a, mask=a < A, other=0.0).to(tl.float32)
    x_ptr += t * A * x_stride
    x_scale_ptr += t * A * groups
    total = tl.zeros((BLOCK_G, BLOCK_D, COLUMNS), tl.float32)
    factor = tl.full((BLOCK_G, COLUMNS), 1.0, tl.float32)
    number = first + tl.arange(0, BLOCK_G)
    s_at = of_experts(ids, a, number // groups) * s_stride_e
    scale = load_scales(down_scale_ptr, s_at, o, is_output, number % groups, number < last, s_stride_d, KIND)
    if ROUND:
        is_factor = is_row[None, :] & (number < last)[:, None]
        factor = tl.load(x_scale_ptr + row[None, :] * groups + number[:, None], mask=is_factor, other=0.0)
    for step in range(first, last, BLOCK_G):
        number = step + tl.arange(0, BLOCK_G)
        chosen, group = number // groups, number % groups
        ahead = number + BLOCK_G
        s_at = of_experts(ids, a, ahead // groups) * s_stride_e
        next_scale = load_scales(down_scale_ptr, s_at, o, is_output, ahead % groups, ahead < last, s_stride_d, KIND)
        product = groups_product(
            down_ptr, of_experts(ids, a, chosen) * w_stride_e, x_ptr, chosen.to(tl.int64) * x_stride, x_stride, is_row,
            o, is_output, group, number < last, F, w_stride_d, KIND, WHOLE, COLUMNS, BLOCK_G,
        )  # fmt: skip
        product *= scale[:, :, None]
        if ROUTED:
            product *= of_experts(weights, a, chosen)[:, None, None]
        if ROUND:
            is_factor = is_row[None, :] & (ahead < last)[:, None]
            next_factor = tl.load(x_scale_ptr + row[None, :] * groups + ahead[:, None], mask=is_factor, other=0.0)
            product *= factor[:, None, :]
            factor = next_factor
        total += product
        scale = next_scale
    total = tl.sum(total, axis=0)
    at = (t + row)[None, :] * D + d[:, None]
    inside = is_output[:, None] & is_row[None, :]
    if SPLIT == 1:
        tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(parts_ptr + part * part_size + at, total, mask=inside)
        if arrived_last(arrived_ptr + t * tl.num_programs(1) + tile, SPLIT):
            y = tl.zeros((BLOCK_D, COLUMNS), tl.float32)
            for _ in range(SPLIT):
                y += tl.load(parts_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
                parts_ptr += part_size
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)

"""Triton kernel of ``prefill_attention``: a program for a query head and a tile of tokens.

Blocks of keys that no query of the tile sees are not visited, and only those on a border are masked. Tiles with the
most keys start first.
"""

import triton
import triton.language as tl

from ..dependent_launch import begin_kernel


@triton.jit
def _row_of(table_ptr, block, PAGE_SIZE: tl.constexpr, BLOCK_S: tl.constexpr):
    """Where a block's first key lies; its other keys follow."""
    row = block * BLOCK_S
    if PAGE_SIZE != 0:
        row = tl.load(table_ptr + row // PAGE_SIZE) * PAGE_SIZE + row % PAGE_SIZE
    return row


@triton.jit
def _keys_or_values(source, row, head, stride_s, stride_k, exists, PARTIAL, DESCRIPTORS, H, BLOCK_S, BLOCK_H):
    """[BLOCK_S, BLOCK_H]; with PARTIAL, rows that do not exist, and may hold NaN, are 0."""
    if DESCRIPTORS:
        tile = source.load([row, head * H])
        if PARTIAL:
            tile = tl.where(exists[:, None], tile, 0.0)
    else:
        s, h = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_H)
        pointers = source + row.to(tl.int64) * stride_s + head * stride_k + s[:, None] * stride_s + h[None, :]
        if PARTIAL:
            tile = tl.load(pointers, mask=exists[:, None] & (h < H)[None, :], other=0.0)
        elif BLOCK_H == H:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=(h < H)[None, :], other=0.0)
    return tile


@triton.jit
def _step(
    state,  # mixed [BLOCK_T, BLOCK_H], total [BLOCK_T], highest [BLOCK_T], scaled
    q,
    k_source,
    v_source,
    row,
    block,
    head,
    query_positions,
    strides,
    end,  # the first position without a key
    window,
    scale,
    MASKED: tl.constexpr,
    PARTIAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    H: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    mixed, total, highest = state
    k_stride_s, k_stride_k, v_stride_s, v_stride_k = strides
    keys = block * BLOCK_S + tl.arange(0, BLOCK_S)
    k = _keys_or_values(
        k_source, row, head, k_stride_s, k_stride_k, keys < end, PARTIAL, DESCRIPTORS, H, BLOCK_S, BLOCK_H
    )
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        visible = keys[None, :] <= query_positions[:, None]
        if HAS_WINDOW:
            visible = visible & (keys[None, :] > query_positions[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
    higher = tl.maximum(highest, tl.max(scores, axis=1) * scale)
    base = higher
    if MASKED:
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf - -inf would be NaN
    weights = tl.exp2(scores * scale - base[:, None])
    factor = tl.exp2(highest - base)
    total = total * factor + tl.sum(weights, axis=1)
    v = _keys_or_values(
        v_source, row, head, v_stride_s, v_stride_k, keys < end, PARTIAL, DESCRIPTORS, H, BLOCK_S, BLOCK_H
    )
    mixed = tl.dot(weights.to(v.dtype), v, mixed * factor[:, None], input_precision="ieee")
    return mixed, total, higher


@triton.jit
def prefill_attention_kernel(
    q_ptr,  # [T, N, H], column stride 1
    k_source,  # [rows, K, H], column stride 1: a pointer, or a descriptor of [rows, K * H]
    v_source,  # as k_source
    table_ptr,  # [max_pages]; any pointer if PAGE_SIZE is 0
    gate_ptr,  # [T, N], contiguous; any pointer without HAS_GATE
    y_ptr,  # [T, N, H], contiguous
    q_stride_t,
    q_stride_n,
    k_stride_s,
    k_stride_k,
    v_stride_s,
    v_stride_k,
    T,
    start,  # position of the first query
    window,
    scale,  # log2(e) / sqrt(H)
    G: tl.constexpr,  # query heads of a key-value head
    H: tl.constexpr,
    PAGE_SIZE: tl.constexpr,  # 0: the rows are the positions
    HAS_WINDOW: tl.constexpr,
    HAS_GATE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ONE_LOOP: tl.constexpr,  # mask every block: where few are without a border, one loop fills its pipeline once
    BLOCK_T: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,  # power of two >= H
):
    begin_kernel()
    n, num_heads = tl.program_id(0), tl.num_programs(0)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_T
    head = n // G
    t, h = first + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_H)
    in_tile = (t < T)[:, None] & (h < H)[None, :]
    token = t.to(tl.int64)
    q = tl.load(q_ptr + (token * q_stride_t + n * q_stride_n)[:, None] + h[None, :], mask=in_tile, other=0.0)
    query_positions = start + t
    end = start + T
    past = tl.minimum(start + first + BLOCK_T, end)  # one after the tile's last query

    # Blocks of keys: [low, inner) meet the window's edge, [inner, diagonal) are seen by all, [diagonal, last) by some;
    # of those, [whole, last) is the one whose keys do not all exist.
    low, inner = 0, 0
    if HAS_WINDOW:
        low = tl.maximum(start + first - window + 1, 0) // BLOCK_S
        inner = tl.cdiv(tl.maximum(past - window, 0), BLOCK_S)
    last = tl.cdiv(past, BLOCK_S)
    whole = tl.minimum(last, end // BLOCK_S)
    diagonal = tl.maximum(tl.minimum((start + first + 1) // BLOCK_S, whole), low)
    inner = tl.minimum(tl.maximum(inner, low), diagonal)

    state = (
        tl.zeros([BLOCK_T, BLOCK_H], tl.float32),
        tl.zeros([BLOCK_T], tl.float32),
        tl.full([BLOCK_T], float("-inf"), tl.float32),
    )
    strides = (k_stride_s, k_stride_k, v_stride_s, v_stride_k)
    # Pages are read a block ahead by hand: read where they are used, they would cost the compiler's pipeline a stage.
    next_row = _row_of(table_ptr, low, PAGE_SIZE, BLOCK_S)
    if ONE_LOOP:
        inner = whole
        diagonal = whole
    if HAS_WINDOW or ONE_LOOP:
        for block in range(low, inner):
            row = block * BLOCK_S if PAGE_SIZE == 0 else next_row
            next_row = _row_of(table_ptr, tl.minimum(block + 1, last - 1), PAGE_SIZE, BLOCK_S)
            state = _step(
                *(state, q, k_source, v_source, row, block, head, query_positions, strides, end, window, scale),
                *(True, False, HAS_WINDOW, DESCRIPTORS, H, BLOCK_S, BLOCK_H),
            )
    if not ONE_LOOP:
        for block in range(inner, diagonal):
            row = block * BLOCK_S if PAGE_SIZE == 0 else next_row
            next_row = _row_of(table_ptr, tl.minimum(block + 1, last - 1), PAGE_SIZE, BLOCK_S)
            state = _step(
                *(state, q, k_source, v_source, row, block, head, query_positions, strides, end, window, scale),
                *(False, False, HAS_WINDOW, DESCRIPTORS, H, BLOCK_S, BLOCK_H),
            )
        for block in range(diagonal, whole):
            row = block * BLOCK_S if PAGE_SIZE == 0 else next_row
            next_row = _row_of(table_ptr, tl.minimum(block + 1, last - 1), PAGE_SIZE, BLOCK_S)
            state = _step(
                *(state, q, k_source, v_source, row, block, head, query_positions, strides, end, window, scale),
                *(True, False, HAS_WINDOW, DESCRIPTORS, H, BLOCK_S, BLOCK_H),
            )
    if whole < last:
        row = whole * BLOCK_S if PAGE_SIZE == 0 else next_row
        state = _step(
            *(state, q, k_source, v_source, row, whole, head, query_positions, strides, end, window, scale),
            *(True, True, HAS_WINDOW, DESCRIPTORS, H, BLOCK_S, BLOCK_H),
        )

    mixed, total, _ = state
    y = mixed / tl.where(t < T, total, 1.0)[:, None]  # every query sees itself; rows beyond them may see no key
    rows = token * num_heads + n
    if HAS_GATE:
        gate = tl.load(gate_ptr + rows, mask=t < T, other=0.0).to(tl.float32)
        y = y * (1.0 / (1.0 + tl.exp(-gate)))[:, None]
    tl.store(y_ptr + rows[:, None] * H + h[None, :], y.to(y_ptr.dtype.element_ty), mask=in_tile)

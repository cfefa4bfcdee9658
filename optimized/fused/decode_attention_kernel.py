"""Triton kernels of ``decode_attention``: a program for a key-value head and a part, a split, of the context.

Splits leave normalised partial results and their log-sum-exps; ``combine_kernel`` adds them up in the order of the
context, few rows a program: done by the last split to arrive, that was a third of the time of one token at 4K, and
two thirds of that of four. It asks for the gate before it waits and for all splits at once: read behind them, and the
splits in turn, a call took 0.7 us longer for a window, 3 us for 128K (H200, 2026-11-24).
"""

import triton
import triton.language as tl

from ..dependent_launch import begin_kernel


@triton.jit
def _page_of(table_ptr, block, context, s, PAGE_SIZE: tl.constexpr, BLOCK_S: tl.constexpr):
    """The page of a block of keys, or of each of its keys where a block is wider than a page."""
    key = block * BLOCK_S
    if PAGE_SIZE % BLOCK_S != 0:
        key = tl.minimum(key + s, tl.maximum(context - 1, 0))
    return tl.load(table_ptr + key // PAGE_SIZE).to(tl.int64)


@triton.jit
def _shares(
    context,
    num_splits,
    window,
    Q: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BLOCK_S: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    SHARE: tl.constexpr,
):
    """First key that is seen, its block and the one after the last; where the first split begins, blocks of a split,
    splits with work, and the place of the first one's results.

    In a fixed order a split has the same keys and place whatever the length and the number of queries.
    """
    first_key = 0
    if HAS_WINDOW:
        first_key = tl.maximum(context - Q - window + 1, 0)
    first_block = first_key // BLOCK_S
    last_block = tl.cdiv(context, BLOCK_S)
    origin, place = first_block, first_block * 0
    blocks = tl.maximum(tl.cdiv(last_block - first_block, num_splits), MIN_BLOCKS)
    if SHARE > 0:
        blocks = tl.maximum(blocks * 0, SHARE)
        origin = first_block // SHARE * SHARE
        place = first_block // SHARE % num_splits
    num_used = tl.maximum(tl.cdiv(last_block - origin, blocks), 1)  # an empty context is one split's work, too
    return first_key, first_block, last_block, origin, blocks, num_used, place


@triton.jit
def _combined(
    partials_ptr,  # [splits, BLOCK_R, BLOCK_H] of this sequence and key-value head
    log_sums_ptr,  # [splits, BLOCK_R]
    num_used,
    place,  # of the first used one: the next ones follow, round the end
    num_splits,
    r,  # [BLOCK_V]
    h,
    in_rows,  # [BLOCK_V, BLOCK_H]
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    COMBINE_SPLITS: tl.constexpr,
    ALL_AT_ONCE: tl.constexpr,  # no more splits than that
    SHARE: tl.constexpr,
):
    """Partial results weighted by their sums, [BLOCK_V, BLOCK_H], COMBINE_SPLITS of them in flight."""
    last = num_used
    if SHARE > 0:
        last = num_splits
    highest = tl.full([BLOCK_V], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_V], tl.float32)
    mixed = tl.zeros([BLOCK_V, BLOCK_H], tl.float32)
    until = last
    if ALL_AT_ONCE:
        until = COMBINE_SPLITS
    for first in range(0, until, COMBINE_SPLITS):
        i = first + tl.arange(0, COMBINE_SPLITS)
        is_used = i < last
        if SHARE > 0:
            is_used = is_used & ((i - place + num_splits) % num_splits < num_used)
        rows = i[:, None] * BLOCK_R + r[None, :]
        # .cg: what other programs wrote comes from the level-2 cache, whatever this multiprocessor holds
        cells = rows[:, :, None] * BLOCK_H + h[None, None, :]
        mask = is_used[:, None, None] & in_rows[None, :, :]
        parts = tl.load(partials_ptr + cells, mask=mask, other=0.0, cache_modifier=".cg")
        log_sums = tl.load(log_sums_ptr + rows, mask=is_used[:, None], other=float("-inf"), cache_modifier=".cg")
        higher = tl.maximum(highest, tl.max(log_sums, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        factor, weights = tl.exp2(highest - base), tl.exp2(log_sums - base[None, :])
        mixed = mixed * factor[:, None] + tl.sum(parts * weights[:, :, None], axis=0)
        total = total * factor + tl.sum(weights, axis=0)
        highest = higher
    return mixed / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def _gate_factors(gates_ptr, in_rows, HAS_GATE: tl.constexpr):
    """Sigmoids of the gates [..]; 1 without."""
    factors = tl.full(in_rows.shape, 1.0, tl.float32)
    if HAS_GATE:
        gate = tl.load(gates_ptr, mask=in_rows, other=0.0).to(tl.float32)
        factors = 1.0 / (1.0 + tl.exp(-gate))
    return factors


@triton.jit
def _finish(y_ptr, factors, y, rows, h, in_tile, H: tl.constexpr):
    """Scale [.., BLOCK_H] by factors [..], round and store to rows of [T * N, H]."""
    y = y * factors[:, None]
    tl.store(y_ptr + rows[:, None] * H + h[None, :], y.to(y_ptr.dtype.element_ty), mask=in_tile)


@triton.jit
def decode_attention_kernel(
    q_ptr,  # [B * Q, N, H], column stride 1
    k_ptr,  # [pages, PAGE_SIZE, K, H], column stride 1
    v_ptr,  # as k
    table_ptr,  # [B, max_pages]
    context_lens_ptr,  # [B], new tokens included
    gate_ptr,  # [B * Q, N], column stride 1; any pointer without HAS_GATE
    y_ptr,  # [B * Q, N, H], contiguous
    partials_ptr,  # [B, K, splits, BLOCK_R, BLOCK_H] float32
    log_sums_ptr,  # [B, K, splits, BLOCK_R] float32, base 2
    q_stride_t,
    q_stride_n,
    k_stride_page,
    k_stride_slot,
    k_stride_k,
    v_stride_page,
    v_stride_slot,
    v_stride_k,
    table_stride,
    gate_stride,
    window,
    scale,  # log2(e) / sqrt(H)
    Q: tl.constexpr,  # new tokens of each sequence
    G: tl.constexpr,  # query heads of a key-value head
    H: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_GATE: tl.constexpr,
    BLOCK_R: tl.constexpr,  # power of two >= Q * G
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,  # power of two >= H
    MIN_BLOCKS: tl.constexpr,  # of a split: fewer splits for a short context
    SHARE: tl.constexpr,  # blocks of every split in a fixed order; 0: of a context, as many for each
):
    head, split = tl.program_id(0), tl.program_id(1)  # heads first: programs that run together read whole rows
    b = tl.program_id(2).to(tl.int64)
    num_kv_heads, num_splits = tl.num_programs(0), tl.num_programs(1)
    context = tl.load(context_lens_ptr + b)
    first_key, first_block, last_block, origin, blocks, num_used, place = _shares(
        context, num_splits, window, Q, HAS_WINDOW, BLOCK_S, MIN_BLOCKS, SHARE
    )
    if split >= num_used:
        return
    begin = tl.maximum(origin + split * blocks, first_block)
    end = tl.minimum(origin + (split + 1) * blocks, last_block)

    r, h, s = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_S)
    t, n = r // G, head * G + r % G
    in_tile = (r < Q * G)[:, None] & (h < H)[None, :]
    token = b * Q + t
    table_ptr += b * table_stride
    # Pages are read a block ahead by hand: read where they are used, they would cost the compiler's pipeline a stage;
    # read two blocks ahead, it does not pipeline at all.
    page = _page_of(table_ptr, begin, context, s, PAGE_SIZE, BLOCK_S)
    begin_kernel()
    q = tl.load(q_ptr + (token * q_stride_t + n * q_stride_n)[:, None] + h[None, :], mask=in_tile, other=0.0)
    query_positions = context - Q + t
    highest = tl.full([BLOCK_R], float("-inf"), tl.float32)
    mixed = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    # Few rows lie across all warps: their sums are taken once, at the end, not between warps in every block.
    LANES: tl.constexpr = BLOCK_S if BLOCK_R <= 32 else 1
    total = tl.zeros([BLOCK_R, LANES], tl.float32)
    k_ptr += head * k_stride_k
    v_ptr += head * v_stride_k
    for block in range(begin, end):
        next_page = _page_of(table_ptr, tl.minimum(block + 1, end - 1), context, s, PAGE_SIZE, BLOCK_S)
        keys = block * BLOCK_S + s
        readable = ((keys >= first_key) & (keys < context))[:, None] & (h < H)[None, :]  # what lies beyond may be NaN
        if PAGE_SIZE % BLOCK_S == 0:
            slot = tl.cast((block * BLOCK_S) % PAGE_SIZE, tl.int64)
            k_block = k_ptr + page * k_stride_page + slot * k_stride_slot
            v_block = v_ptr + page * v_stride_page + slot * v_stride_slot
            k = tl.load(k_block + s[:, None] * k_stride_slot + h[None, :], mask=readable, other=0.0)
            v = tl.load(v_block + s[:, None] * v_stride_slot + h[None, :], mask=readable, other=0.0)
        else:
            k_rows = page * k_stride_page + (keys % PAGE_SIZE) * k_stride_slot
            v_rows = page * v_stride_page + (keys % PAGE_SIZE) * v_stride_slot
            k = tl.load(k_ptr + k_rows[:, None] + h[None, :], mask=readable, other=0.0)
            v = tl.load(v_ptr + v_rows[:, None] + h[None, :], mask=readable, other=0.0)
        visible = keys[None, :] <= query_positions[:, None]
        if HAS_WINDOW:
            visible = visible & (keys[None, :] > query_positions[:, None] - window)
        scores = tl.where(visible, tl.dot(q, tl.trans(k), input_precision="ieee"), float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: -inf - -inf would be NaN
        weights = tl.exp2((scores - base[:, None]) * scale)  # the difference first: the highest has weight 1, exactly
        factor = tl.exp2((highest - base) * scale)
        highest = higher
        if LANES == 1:
            total = total * factor[:, None] + tl.sum(weights, axis=1)[:, None]
        else:
            total = total * factor[:, None] + weights
        mixed = tl.dot(weights.to(v.dtype), v, mixed * factor[:, None], input_precision="ieee")
        page = next_page

    sums = tl.sum(total, axis=1)
    divisor = tl.where(sums == 0.0, 1.0, sums)
    y = mixed / divisor[:, None]  # a row that sees no key is 0
    if num_used == 1:
        rows = token * (num_kv_heads * G) + n
        factors = _gate_factors(gate_ptr + token * gate_stride + n, r < Q * G, HAS_GATE)
        _finish(y_ptr, factors, y, rows, h, in_tile, H)
    else:
        pair = b * num_kv_heads + head
        log_sums_ptr += pair * num_splits * BLOCK_R
        partials_ptr += pair * num_splits * (BLOCK_R * BLOCK_H)
        own = (place + split) % num_splits * BLOCK_R + r
        log_sum = highest * scale + tl.log2(divisor)  # -inf where no key was seen
        tl.store(log_sums_ptr + own, log_sum)
        tl.store(partials_ptr + own[:, None] * BLOCK_H + h[None, :], y, mask=in_tile)


@triton.jit
def combine_kernel(
    context_lens_ptr,  # [B]
    gate_ptr,  # [B * Q, N], column stride 1; any pointer without HAS_GATE
    y_ptr,  # [B * Q, N, H], contiguous
    partials_ptr,  # [B, K, splits, BLOCK_R, BLOCK_H] float32
    log_sums_ptr,  # [B, K, splits, BLOCK_R] float32, base 2
    gate_stride,
    num_splits,
    window,
    Q: tl.constexpr,
    G: tl.constexpr,
    H: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_GATE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    MIN_BLOCKS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK_V: tl.constexpr,  # rows of a program
    COMBINE_SPLITS: tl.constexpr,
    ALL_AT_ONCE: tl.constexpr,
):
    """Adds up what the splits of ``decode_attention_kernel`` left, where there is more than one."""
    head, b = tl.program_id(0), tl.program_id(2).to(tl.int64)
    num_kv_heads = tl.num_programs(0)
    context = tl.load(context_lens_ptr + b)
    _, _, _, _, _, num_used, place = _shares(context, num_splits, window, Q, HAS_WINDOW, BLOCK_S, MIN_BLOCKS, SHARE)
    r, h = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_H)
    in_rows = r < Q * G
    in_tile = in_rows[:, None] & (h < H)[None, :]
    token, n = b * Q + r // G, head * G + r % G
    factors = _gate_factors(gate_ptr + token * gate_stride + n, in_rows, HAS_GATE)  # older than the kernel before
    begin_kernel()
    if num_used > 1:
        pair = b * num_kv_heads + head
        log_sums_ptr += pair * num_splits * BLOCK_R
        partials_ptr += pair * num_splits * (BLOCK_R * BLOCK_H)
        result = _combined(
            *(partials_ptr, log_sums_ptr, num_used, place, num_splits, r, h, in_tile),
            *(BLOCK_R, BLOCK_V, BLOCK_H, COMBINE_SPLITS, ALL_AT_ONCE, SHARE),
        )
        _finish(y_ptr, factors, result, token * (num_kv_heads * G) + n, h, in_tile, H)

"""Decode attention in Gluon, for bfloat16 on Hopper: pages are copied before the kernel ahead has ended.

That one writes the keys and values of the new tokens only, so copies of all others begin at once, and arrive while it
still runs: of two kernels that are mostly latency, the memory's is hidden. Blocks of keys lie in a ring in shared
memory, some of them on their way. Two kernels differ in who multiplies what:

    few_rows_kernel   up to 16 rows: a warp has keys of its own in every block, and their maxima and sums; all warps'
                      are added up once, at the end. Nobody waits for another warp's maximum, and no row is padding.
    many_rows_kernel  up to 64 rows: a warp has 16 rows and every key, on instructions of four warps.

For one token of eight heads the second takes 1250 clocks a block, most of them for rows of padding, and 10.2 us at 4K
where the first takes 9.2; the first has no registers for more rows (H200, 2026-11-24).
No interpreter, as Gluon has none: elsewhere, and in a fixed order, ``decode_attention_kernel``.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .decode_attention_kernel import _shares

REPLACES = ("attention", "head_gate")

MANY_ROWS = gl.constexpr(64)  # of an instruction of four warps


@gluon.jit
def copy_block(
    k_stage, v_stage, k_ptr, v_ptr, k_at, v_at, page, block, row, first_key, last_key,
    k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, PAGE_SIZE: gl.constexpr, BLOCK_S: gl.constexpr,
):  # fmt: skip
    """Start to copy a block's keys and values; keys that are not there become zeros: memory may hold NaN."""
    first = block * BLOCK_S
    slot = (first % PAGE_SIZE).to(gl.int64)
    key = first + row
    mask = (key >= first_key) & (key < last_key)
    k_block = k_ptr + (page.to(gl.int64) * k_stride_page + slot * k_stride_slot)
    v_block = v_ptr + (page.to(gl.int64) * v_stride_page + slot * v_stride_slot)
    async_copy.async_copy_global_to_shared(k_stage, k_block + k_at, mask=mask, cache_modifier=".cg")
    async_copy.async_copy_global_to_shared(v_stage, v_block + v_at, mask=mask, cache_modifier=".cg")


@gluon.jit
def first_pages(table_ptr, begin, most, COUNT: gl.constexpr, PAGE_SIZE: gl.constexpr, BLOCK_S: gl.constexpr):
    """Pages of the first blocks, read together: each read between two copies would wait for memory anew."""
    pages = ()
    for j in gl.static_range(COUNT):
        page = gl.load(table_ptr + gl.minimum(begin + j, most) * BLOCK_S // PAGE_SIZE)
        pages = pages + (page,)  # type: ignore[assignment]  # noqa: RUF005 Gluon adds tuples, and unpacks none
    return pages


@gluon.jit
def few_rows_kernel(
    q_ptr,  # as those of decode_attention_kernel; keys and values in words of 16 bytes
    k_ptr,
    v_ptr,
    table_ptr,
    context_lens_ptr,
    gate_ptr,
    y_ptr,
    partials_ptr,
    log_sums_ptr,
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
    scale,
    Q: gl.constexpr,
    G: gl.constexpr,
    H: gl.constexpr,  # a power of two
    PAGE_SIZE: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_GATE: gl.constexpr,
    BLOCK_R: gl.constexpr,  # 16
    BLOCK_S: gl.constexpr,  # divides PAGE_SIZE; 16 keys or more for each warp
    BLOCK_H: gl.constexpr,  # H
    MIN_BLOCKS: gl.constexpr,
    SHARE: gl.constexpr,
    STAGES: gl.constexpr,  # blocks in shared memory, two or more
    num_warps: gl.constexpr,  # 4: keys and values of two blocks are as large as four warps' sums
    launch_pdl: gl.constexpr = False,
):
    WARPS: gl.constexpr = num_warps
    KEYS: gl.constexpr = BLOCK_S // WARPS
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, MMA, 2)
    COPY: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 2, 16], [WARPS, 1, 1], [2, 1, 0])
    STAGE: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0])
    SUM: gl.constexpr = gl.BlockedLayout([WARPS, 1, 4], [1, 1, 32], [1, WARPS, 1], [2, 1, 0])  # a thread: all warps'
    ROW: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(0, SUM))
    head, split = gl.program_id(0), gl.program_id(1)
    b = gl.program_id(2).to(gl.int64)
    num_kv_heads, num_splits = gl.num_programs(0), gl.num_programs(1)
    context = gl.load(context_lens_ptr + b)
    first_key, first_block, last_block, origin, blocks, num_used, place = _shares(
        context, num_splits, window, Q, HAS_WINDOW, BLOCK_S, MIN_BLOCKS, SHARE
    )
    if split >= num_used:
        return
    begin = gl.maximum(origin + split * blocks, first_block)
    end = gl.minimum(origin + (split + 1) * blocks, last_block)
    last_key = gl.minimum(context, end * BLOCK_S)
    table_ptr += b * table_stride
    most = gl.maximum(end - 1, begin)
    pages = first_pages(table_ptr, begin, most, STAGES, PAGE_SIZE, BLOCK_S)
    warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, COPY)))[:, None, None]
    h = gl.arange(0, H, gl.SliceLayout(0, gl.SliceLayout(1, COPY)))[None, None, :]
    row = warp * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, gl.SliceLayout(2, COPY)))[None, :, None]
    k_at, v_at = row * k_stride_slot + h, row * v_stride_slot + h
    k_ptr += head * k_stride_k
    v_ptr += head * v_stride_k
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, WARPS, KEYS, H], STAGE)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, WARPS, KEYS, H], STAGE)
    old_blocks = gl.maximum(context - Q, 0) // BLOCK_S  # before the first one with a new key, which is being written
    for j in gl.static_range(STAGES - 1):
        if begin + j < gl.minimum(old_blocks, end):
            copy_block(
                ks.index(j), vs.index(j), k_ptr, v_ptr, k_at, v_at, pages[j], begin + j, row, first_key, last_key,
                k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, PAGE_SIZE, BLOCK_S,
            )  # fmt: skip
        async_copy.commit_group()
    if launch_pdl:
        gdc_wait()
        gdc_launch_dependents()
    q_row = gl.arange(0, BLOCK_R, gl.SliceLayout(0, gl.SliceLayout(2, COPY)))[None, :, None] + warp * 0
    q_at = (b * Q + q_row // G) * q_stride_t + (head * G + q_row % G) * q_stride_n
    q = gl.load(q_ptr + (q_at + h), mask=q_row + h * 0 < Q * G, other=0.0)
    for j in gl.static_range(STAGES - 1):
        if (begin + j >= old_blocks) & (begin + j < end):
            copy_block(
                ks.index(j), vs.index(j), k_ptr, v_ptr, k_at, v_at, pages[j], begin + j, row, first_key, last_key,
                k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, PAGE_SIZE, BLOCK_S,
            )  # fmt: skip
    async_copy.commit_group()
    r = gl.arange(0, BLOCK_R, ROW)
    if HAS_GATE:
        gate = gl.load(gate_ptr + (b * Q + r // G) * gate_stride + head * G + r % G, mask=r < Q * G, other=0.0)
    q = gl.convert_layout(q, LEFT)
    s_warp = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, MMA)))[:, None, None]
    s_row = gl.arange(0, BLOCK_R, gl.SliceLayout(0, gl.SliceLayout(2, MMA)))[None, :, None]
    s_key = s_warp * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, gl.SliceLayout(1, MMA)))[None, None, :]
    position = context - Q + s_row // G
    highest = gl.full([WARPS, BLOCK_R], float("-inf"), gl.float32, gl.SliceLayout(2, MMA))
    total = gl.full([WARPS, BLOCK_R, KEYS], 0.0, gl.float32, MMA)
    mixed = gl.full([WARPS, BLOCK_R, H], 0.0, gl.float32, MMA)
    page = pages[STAGES - 1]
    for i in range(end - begin):
        async_copy.wait_group(STAGES - 2)
        if begin + i >= old_blocks:  # its copy was begun after those of later blocks
            async_copy.wait_group(0)
        slot, ahead = (i + STAGES - 1) % STAGES, begin + i + STAGES - 1
        if ahead < end:
            copy_block(
                ks.index(slot), vs.index(slot), k_ptr, v_ptr, k_at, v_at, page, ahead, row, first_key, last_key,
                k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, PAGE_SIZE, BLOCK_S,
            )  # fmt: skip
            page = gl.load(table_ptr + gl.minimum(ahead + 1, most) * BLOCK_S // PAGE_SIZE)
        async_copy.commit_group()
        k = ks.index(i % STAGES).permute((0, 2, 1)).load(RIGHT)
        scores = mma_v2(q, k, gl.full([WARPS, BLOCK_R, KEYS], 0.0, gl.float32, MMA))
        first = (begin + i) * BLOCK_S
        is_edge = first + BLOCK_S > context - Q + 1
        if HAS_WINDOW:
            is_edge = is_edge | (first <= context - 1 - window)
        if is_edge:  # elsewhere every query sees every key
            keys = first + s_key
            visible = keys <= position
            if HAS_WINDOW:
                visible = visible & (keys > position - window)
            scores = gl.where(visible, scores, float("-inf"))
        v = vs.index(i % STAGES).load(RIGHT)
        higher = gl.maximum(highest, gl.max(scores, axis=2))
        base = gl.where(higher == float("-inf"), 0.0, higher)
        weights = gl.exp2((scores - base[:, :, None]) * scale)
        factor = gl.exp2((highest - base) * scale)[:, :, None]
        highest = higher
        total = total * factor + weights
        mixed = mma_v2(gl.convert_layout(weights.to(gl.bfloat16), LEFT), v, mixed * factor)
    async_copy.wait_group(0)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    sums = ks._reinterpret(gl.float32, [WARPS, BLOCK_R, H], STAGE)
    tops = gl.allocate_shared_memory(gl.float32, [WARPS, BLOCK_R], PLAIN)
    totals = gl.allocate_shared_memory(gl.float32, [WARPS, BLOCK_R], PLAIN)
    sums.store(mixed)
    tops.store(highest)
    totals.store(gl.sum(total, axis=2))
    top = tops.load(gl.SliceLayout(2, SUM))
    highest = gl.max(top, axis=0)
    base = gl.where(highest == float("-inf"), 0.0, highest)
    share = gl.exp2((top - base[None, :]) * scale)
    total = gl.sum(totals.load(gl.SliceLayout(2, SUM)) * share, axis=0)
    divisor = gl.where(total == 0.0, 1.0, total)  # a row that sees no key is 0
    log_sum = gl.convert_layout(highest * scale + gl.log2(divisor), ROW)
    y = gl.sum(sums.load(SUM) * share[:, :, None], axis=0) / gl.convert_layout(divisor, ROW)[:, None]
    y_h = gl.arange(0, H, gl.SliceLayout(0, gl.SliceLayout(0, SUM)))
    mask = (r < Q * G)[:, None] & (y_h < H)[None, :]
    if num_used == 1:
        if HAS_GATE:
            y = y * (1.0 / (1.0 + gl.exp(-gate.to(gl.float32))))[:, None]
        y_row = (b * Q + r // G) * (num_kv_heads * G) + head * G + r % G
        gl.store(y_ptr + y_row[:, None] * H + y_h[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        own = ((b * num_kv_heads + head) * num_splits + (place + split) % num_splits) * BLOCK_R + r
        gl.store(log_sums_ptr + own, log_sum, mask=r < Q * G)
        gl.store(partials_ptr + own[:, None] * H + y_h[None, :], y, mask=mask)


@gluon.jit
def many_rows_kernel(
    q_ptr,  # as those of few_rows_kernel
    k_ptr,
    v_ptr,
    table_ptr,
    context_lens_ptr,
    gate_ptr,
    y_ptr,
    partials_ptr,
    log_sums_ptr,
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
    scale,
    Q: gl.constexpr,
    G: gl.constexpr,
    H: gl.constexpr,  # a power of two
    PAGE_SIZE: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_GATE: gl.constexpr,
    BLOCK_R: gl.constexpr,  # 64 at most
    BLOCK_S: gl.constexpr,  # divides PAGE_SIZE
    BLOCK_H: gl.constexpr,  # H
    MIN_BLOCKS: gl.constexpr,
    SHARE: gl.constexpr,
    STAGES: gl.constexpr,  # blocks in shared memory, two or more
    num_warps: gl.constexpr,  # 4
    launch_pdl: gl.constexpr = False,
):
    S_MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_S, 16])
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, H, 16])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MMA, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, MMA)
    S_ROW: gl.constexpr = gl.SliceLayout(1, S_MMA)
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [num_warps, 1], [1, 0])
    STAGE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_S, H], gl.bfloat16)
    Q_STAGE: gl.constexpr = gl.NVMMASharedLayout.get_default_for([MANY_ROWS, H], gl.bfloat16)
    head, split = gl.program_id(0), gl.program_id(1)
    b = gl.program_id(2).to(gl.int64)
    num_kv_heads, num_splits = gl.num_programs(0), gl.num_programs(1)
    context = gl.load(context_lens_ptr + b)
    first_key, first_block, last_block, origin, blocks, num_used, place = _shares(
        context, num_splits, window, Q, HAS_WINDOW, BLOCK_S, MIN_BLOCKS, SHARE
    )
    if split >= num_used:
        return
    begin = gl.maximum(origin + split * blocks, first_block)
    end = gl.minimum(origin + (split + 1) * blocks, last_block)
    last_key = gl.minimum(context, end * BLOCK_S)
    table_ptr += b * table_stride
    most = gl.maximum(end - 1, begin)
    pages = first_pages(table_ptr, begin, most, STAGES, PAGE_SIZE, BLOCK_S)
    row = gl.arange(0, BLOCK_S, gl.SliceLayout(1, COPY))[:, None]
    h = gl.arange(0, H, gl.SliceLayout(0, COPY))[None, :]
    k_at, v_at = row * k_stride_slot + h, row * v_stride_slot + h
    k_ptr += head * k_stride_k
    v_ptr += head * v_stride_k
    ks = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_S, H], STAGE)
    vs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_S, H], STAGE)
    if launch_pdl:  # noqa: SIM102 one is known to the compiler
        if last_key > context - Q:  # the split with the new keys, which are being written
            gdc_wait()
    for j in gl.static_range(STAGES - 1):
        copy_block(
            ks.index(j), vs.index(j), k_ptr, v_ptr, k_at, v_at, pages[j], begin + j, row, first_key, last_key,
            k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, PAGE_SIZE, BLOCK_S,
        )  # fmt: skip
        async_copy.commit_group()
    if launch_pdl:
        gdc_wait()
        gdc_launch_dependents()
    q_row = gl.arange(0, MANY_ROWS, gl.SliceLayout(1, COPY))
    q_at = (b * Q + q_row // G) * q_stride_t + (head * G + q_row % G) * q_stride_n
    q = gl.load(q_ptr + (q_at[:, None] + h), mask=(q_row < Q * G)[:, None], other=0.0)
    r = gl.arange(0, MANY_ROWS, ROW)
    if HAS_GATE:
        gate = gl.load(gate_ptr + (b * Q + r // G) * gate_stride + head * G + r % G, mask=r < Q * G, other=0.0)
    q = gl.allocate_shared_memory(gl.bfloat16, [MANY_ROWS, H], Q_STAGE, q)
    s_row = gl.arange(0, MANY_ROWS, S_ROW)
    s_key = gl.arange(0, BLOCK_S, gl.SliceLayout(0, S_MMA))
    position = context - Q + s_row // G
    highest = gl.full([MANY_ROWS], float("-inf"), gl.float32, S_ROW)
    total = gl.full([MANY_ROWS], 0.0, gl.float32, S_ROW)
    mixed = gl.full([MANY_ROWS, H], 0.0, gl.float32, MMA)
    none = gl.full([MANY_ROWS, BLOCK_S], 0.0, gl.float32, S_MMA)
    page = pages[STAGES - 1]
    for i in range(end - begin):
        async_copy.wait_group(STAGES - 2)
        slot, ahead = (i + STAGES - 1) % STAGES, begin + i + STAGES - 1
        copy_block(
            ks.index(slot), vs.index(slot), k_ptr, v_ptr, k_at, v_at, page, ahead, row, first_key, last_key,
            k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, PAGE_SIZE, BLOCK_S,
        )  # fmt: skip
        async_copy.commit_group()
        page = gl.load(table_ptr + gl.minimum(ahead + 1, most) * BLOCK_S // PAGE_SIZE)
        fence_async_shared()
        scores = warpgroup_mma(q, ks.index(i % STAGES).permute((1, 0)), none, use_acc=False)
        first = (begin + i) * BLOCK_S
        is_edge = first + BLOCK_S > context - Q + 1
        if HAS_WINDOW:
            is_edge = is_edge | (first <= context - 1 - window)
        if is_edge:  # elsewhere every query sees every key
            keys = first + s_key
            visible = keys[None, :] <= position[:, None]
            if HAS_WINDOW:
                visible = visible & (keys[None, :] > position[:, None] - window)
            scores = gl.where(visible, scores, float("-inf"))
        higher = gl.maximum(highest, gl.max(scores, axis=1))
        base = gl.where(higher == float("-inf"), 0.0, higher)
        weights = gl.exp2((scores - base[:, None]) * scale)
        factor = gl.exp2((highest - base) * scale)
        highest = higher
        total = total * factor + gl.sum(weights, axis=1)
        weights = gl.convert_layout(weights.to(gl.bfloat16), LEFT)
        mixed = warpgroup_mma(weights, vs.index(i % STAGES), mixed * gl.convert_layout(factor, ROW)[:, None])
    async_copy.wait_group(0)
    divisor = gl.where(total == 0.0, 1.0, total)  # a row that sees no key is 0
    log_sum = highest * scale + gl.log2(divisor)
    y = mixed * (1.0 / gl.convert_layout(divisor, ROW))[:, None]
    y_h = gl.arange(0, H, gl.SliceLayout(0, MMA))
    mask = (r < Q * G)[:, None] & (y_h < H)[None, :]
    if num_used == 1:
        if HAS_GATE:
            y = y * (1.0 / (1.0 + gl.exp(-gate.to(gl.float32))))[:, None]
        y_row = (b * Q + r // G) * (num_kv_heads * G) + head * G + r % G
        gl.store(y_ptr + y_row[:, None] * H + y_h[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    else:
        own = ((b * num_kv_heads + head) * num_splits + (place + split) % num_splits) * BLOCK_R
        gl.store(log_sums_ptr + own + s_row, log_sum, mask=s_row < Q * G)
        gl.store(partials_ptr + (own + r)[:, None] * H + y_h[None, :], y, mask=mask)

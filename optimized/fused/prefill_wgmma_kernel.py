"""Prefill attention on Hopper, in Gluon: warps with different work that meet at barriers in shared memory.

``prefill_attention_kernel`` lets the tensor cores wait while a block's weights are made. Here one warp fills rings of
keys and values with the copy engine, and two groups of four warps have 64 rows of a tile each: a group multiplies the
next block's keys, mixes in the values of the block before, and makes the next weights meanwhile; and where it waits,
the other one multiplies. Of a thread's 240 registers 64 hold scores, then weights, 64 the sum of values and 32 the
weights that are being multiplied. After Shah et al., FlashAttention-3, arXiv 2407.08608.

A tile is 128 rows: of a query head, or, where the keys that a tile sees are few, of several heads that share them and
of fewer tokens. A windowed tile's blocks begin at its own last key: one block of as many keys as it has tokens, then
whole ones, of which only the last is cut by the window (512 keys: 4 1/4 blocks for 32 tokens of four heads, 5 for 128
tokens of one). Keys in pages, or without a window, are taken in blocks that begin at multiples of their size.

Tiles cost from one block to all of them, so programs take them from a counter, the longest first: with a fixed share
each, 32768 tokens took 7 % longer (H200, 2026-11-24).
"""

from dataclasses import dataclass

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .turns import hear, tell

REPLACES = ("attention", "head_gate")

GROUPS = gl.constexpr(2)  # of warps
HALF = gl.constexpr(64)  # rows of a group of warps; columns of a box of keys
BLOCK_S = gl.constexpr(128)
HEAD_DIM = gl.constexpr(128)
PIECE = gl.constexpr(16)  # values that are cleared together
HIDDEN = gl.constexpr(float("-inf"))


@dataclass(frozen=True)
class Plan:
    """What a kernel is compiled for.

    Attributes:
        group: query heads of a key-value head.
        heads: of a tile: 1, 2, 4 or 8; divides group.
        page_size: 0: the rows are the positions.
        windowed, gated: whether there is a window, and a gate.
        stages: blocks of a ring.
        turns: whether the groups of warps issue their products in turn.
    """

    group: int
    heads: int
    page_size: int
    windowed: bool
    gated: bool
    stages: int
    turns: bool

    @property
    def tokens(self) -> int:
        """Of a tile."""
        return 128 // self.heads

    @property
    def own_heads(self) -> int:
        """Of a group of warps: half the tile's heads and all its tokens, or its only head and half the tokens."""
        return max(self.heads // 2, 1)

    @property
    def own_tokens(self) -> int:
        """Of a group of warps."""
        return 64 // self.own_heads

    @property
    def is_anchored(self) -> bool:
        """Whether blocks begin at the tile's last key, rather than at multiples of their size."""
        return self.windowed and self.page_size == 0

    @property
    def top(self) -> int:
        """Keys of the first block, which holds the tile's last key."""
        return self.tokens if self.is_anchored else 128

    @property
    def tile(self) -> gl.NVMMASharedLayout:
        """Of a matrix in shared memory."""
        return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)

    @property
    def wide(self) -> gl.NVMMADistributedLayout:
        """Of 64 rows and 128 columns of scores or of outputs."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])

    @property
    def narrow(self) -> gl.NVMMADistributedLayout:
        """Of the first block's scores."""
        return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, self.top, 16])


@gluon.jit
def exp2(x):
    """In one instruction, here: moved past the wait for a product, it would no longer overlap with it."""
    return gl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], gl.float32, is_pure=False, pack=1)


@gluon.jit
def tile_of(work, sizes, plan: gl.constexpr):
    """A tile's first token and head, the first key of its top block, and how many whole blocks come before that.

    Blocks do not depend on how many tokens come after the tile's, nor do a query's bits.
    """
    tiles, columns, T, start, window = sizes
    first = (tiles - 1 - work // columns) * plan.tokens
    head = work % columns * plan.heads
    if plan.is_anchored:
        key = start + first
    else:
        last = gl.minimum(start + first + plan.tokens, start + T) - 1
        key = last // BLOCK_S * BLOCK_S
    low = 0
    if plan.windowed:
        low = gl.maximum(start + first - window + 1, 0)
    blocks = gl.cdiv(gl.maximum(key - low, 0), BLOCK_S)
    if plan.top != BLOCK_S:
        blocks = gl.maximum(blocks, 1)  # so that the last weights always are a whole block's
    return first, head, key, blocks


@gluon.jit
def bring(desc, memory, full, empty, place, key, column, pages, ROWS: gl.constexpr, plan: gl.constexpr):
    """Copy a block of keys or values to its place in a ring, once the block that was there has been read."""
    table_ptr, last_page = pages
    BOX: gl.constexpr = desc.block_type.shape[0]
    PIECES: gl.constexpr = ROWS // BOX
    BOXES: gl.constexpr = 2 * BLOCK_S // BOX  # of a place
    boxes = memory._reinterpret(memory.dtype, [plan.stages * BOXES, BOX, HALF], desc.layout)
    stage = place % plan.stages
    ready = full.index(stage)
    mbarrier.wait(empty.index(stage), place // plan.stages & 1 ^ 1)
    mbarrier.expect(ready, ROWS * HEAD_DIM * 2)
    for n in gl.static_range(PIECES):
        row = key + n * BOX
        if plan.page_size != 0:
            page = gl.load(table_ptr + gl.minimum(row // plan.page_size, last_page))
            row = page * plan.page_size + row % plan.page_size
        for half in gl.static_range(2):
            box = boxes.index(stage * BOXES + half * PIECES + n)
            tma.async_copy_global_to_shared(desc, [row, column + half * HALF], ready, box)


@gluon.jit
def fill_rings(given, plan: gl.constexpr):
    """One warp: queries, keys and values of every tile, in the order in which they are multiplied."""
    (
        q_desc, k_desc, v_desc, k_top_desc, v_top_desc, q, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty,
        works, told, taken, counter_ptr, table_ptr, num_works, sizes,
    ) = given  # fmt: skip
    TOP: gl.constexpr = plan.top
    T, start = sizes[2], sizes[3]
    last_page = 0
    if plan.page_size != 0:
        last_page = (start + T - 1) // plan.page_size
    pages = (table_ptr, last_page)
    begun, turn = 0, 0
    work = gl.program_id(0)
    tell(works, told, taken, work, turn)
    while work < num_works:
        following = gl.num_programs(0) + gl.atomic_add(counter_ptr, 1, sem="relaxed")
        first, head, key, blocks = tile_of(work, sizes, plan)
        column = head // plan.group * HEAD_DIM
        for group in gl.static_range(GROUPS):
            ready = q_full.index(group)
            mbarrier.wait(q_empty.index(group), turn & 1 ^ 1)
            mbarrier.expect(ready, HALF * HEAD_DIM * 2)
            if plan.heads == 1:
                tma.async_copy_global_to_shared(q_desc, [first + group * HALF, head, 0], ready, q.index(group))
            else:
                tma.async_copy_global_to_shared(
                    q_desc, [first, head + group * plan.own_heads, 0], ready, q.index(group)
                )
            if group == 0:
                bring(k_top_desc, k, k_full, k_empty, begun, key, column, pages, TOP, plan)
        for n in range(1, blocks + 1):
            bring(k_desc, k, k_full, k_empty, begun + n, key - n * BLOCK_S, column, pages, BLOCK_S, plan)
            if n == 1:
                bring(v_top_desc, v, v_full, v_empty, begun, key, column, pages, TOP, plan)
            else:
                before = key - (n - 1) * BLOCK_S
                bring(v_desc, v, v_full, v_empty, begun + n - 1, before, column, pages, BLOCK_S, plan)
        if blocks == 0:
            bring(v_top_desc, v, v_full, v_empty, begun, key, column, pages, TOP, plan)
        else:
            bring(v_desc, v, v_full, v_empty, begun + blocks, key - blocks * BLOCK_S, column, pages, BLOCK_S, plan)
        begun += blocks + 1
        turn += 1
        work = following
        tell(works, told, taken, work, turn)


@gluon.jit
def hide(scores, key, position, lowest, HAS_LOWEST: gl.constexpr):
    """Scores of keys that a query does not see become -inf."""
    columns = gl.arange(0, scores.shape[1], gl.SliceLayout(0, scores.type.layout))
    seen = columns[None, :] <= (position - key)[:, None]
    if HAS_LOWEST:
        seen = seen & (columns[None, :] >= (lowest - key)[:, None])
    return gl.where(seen, scores, HIDDEN)


@gluon.jit
def soften(scores, total, highest, scale):
    """One block of an online softmax.

    Returns:
        The weights, the new sum and maximum, and the factor for what was summed before.
    """
    higher = gl.maximum(highest, gl.max(scores, axis=1) * scale)
    base = gl.where(higher == HIDDEN, 0.0, higher)  # nothing seen yet: -inf - -inf would be NaN
    weights = exp2(scores * scale - base[:, None])
    factor = exp2(highest - base)
    return weights, total * factor + gl.sum(weights, axis=1), higher, factor


@gluon.jit
def operand(weights, plan: gl.constexpr):
    return gl.convert_layout(weights.to(gl.bfloat16), gl.DotOperandLayout(0, plan.wide, 2))


@gluon.jit
def step(state, before, q, k_block, v_block, rings, turns, place, key, rows, is_cut, scale, never, plan: gl.constexpr):
    """Multiply a block of keys, and mix in the values of the block before while this one's weights are made."""
    scores, mixed, total, highest = state
    k_full, k_empty, v_full, v_empty = rings
    mine, others, issued = turns
    position, lowest = rows
    k_stage, v_stage = place % plan.stages, (place - 1) % plan.stages
    v_phase = (place - 1) // plan.stages & 1
    weights = operand(before, plan)
    mbarrier.wait(k_full.index(k_stage), place // plan.stages & 1)
    if plan.turns:
        mbarrier.wait(mine, issued & 1)
    scores = warpgroup_mma(q, k_block.permute((1, 0)), scores, use_acc=never, is_async=True)
    mbarrier.wait(v_full.index(v_stage), v_phase)
    mixed = warpgroup_mma(weights, v_block, mixed, is_async=True)
    if plan.turns:
        mbarrier.arrive(others)
    scores = warpgroup_mma_wait(1, [scores])
    mbarrier.arrive(k_empty.index(k_stage))
    if is_cut:
        scores = hide(scores, key, position, lowest, plan.windowed)
    scores, total, highest, factor = soften(scores, total, highest, scale)
    mbarrier.wait(v_full.index(v_stage), v_phase)  # long over; but ptxas moves the next wait up to the last branch
    mixed, weights = warpgroup_mma_wait(0, [mixed, weights])
    mbarrier.arrive(v_empty.index(v_stage))
    mixed = mixed * gl.convert_layout(factor, gl.SliceLayout(1, plan.wide))[:, None]
    return scores, mixed, total, highest


@gluon.jit
def clear(v, ready, phase, stage, exist, plan: gl.constexpr):
    """Write zeros for the values of a block from row ``exist`` on, which may hold NaN; both groups write the same."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    PIECES: gl.constexpr = BLOCK_S // PIECE
    pieces = v._reinterpret(v.dtype, [plan.stages * 2 * PIECES, PIECE, HALF], plan.tile)
    row = gl.arange(0, PIECE, gl.SliceLayout(1, COPY))
    if exist < BLOCK_S:
        mbarrier.wait(ready, phase)
        for n in range(exist // PIECE, PIECES):
            for half in gl.static_range(2):
                piece = pieces.index((2 * stage + half) * PIECES + n)
                values = piece.load(COPY)
                piece.store(gl.where((n * PIECE + row < exist)[:, None], values, 0.0))
        fence_async_shared()


@gluon.jit
def attend(given, GROUP: gl.constexpr, plan: gl.constexpr):
    """Four warps: 64 rows of every tile; tokens in order, and the heads of a token side by side."""
    (
        y_desc, q, k, v, out, q_full, q_empty, k_full, k_empty, v_full, v_empty, all_turns, works, told, taken,
        gate_ptr, num_works, sizes, num_heads, scale,
    ) = given  # fmt: skip
    TOP: gl.constexpr = plan.top
    TOPS: gl.constexpr = BLOCK_S // TOP  # that have room in a place
    ROW: gl.constexpr = gl.SliceLayout(1, plan.wide)
    TOP_ROW: gl.constexpr = gl.SliceLayout(1, plan.narrow)
    rings = (k_full, k_empty, v_full, v_empty)
    T, start, window = sizes[2], sizes[3], sizes[4]
    queries = q._reinterpret(q.dtype, [GROUPS, HALF, HEAD_DIM], plan.tile).index(GROUP)
    answers = out._reinterpret(out.dtype, [GROUPS, HALF, HEAD_DIM], plan.tile).index(GROUP)
    k_tops = k._reinterpret(k.dtype, [plan.stages * TOPS, TOP, HEAD_DIM], plan.tile)
    v_tops = v._reinterpret(v.dtype, [plan.stages * TOPS, TOP, HEAD_DIM], plan.tile)
    never = num_works < 0  # scores start anew, but in the registers of those before: a constant would take others
    row = gl.arange(0, HALF, ROW)
    mine, others = all_turns.index(GROUP), all_turns.index((GROUP + 1) % GROUPS)
    begun, turn, issued = 0, 0, 1 - GROUP  # the first group need not wait for the other's first turn
    scores = gl.full([HALF, BLOCK_S], 0.0, gl.float32, plan.wide)
    work = hear(works, told, taken, turn)
    while work < num_works:
        first, head, key, blocks = tile_of(work, sizes, plan)
        if plan.heads == 1:
            first += GROUP * HALF
        else:
            head += GROUP * plan.own_heads
        token = first + row // plan.own_heads
        position = start + token
        lowest = position
        inner = 0  # the first key that all rows see
        if plan.windowed:
            lowest = gl.maximum(position - window + 1, 0)
            inner = gl.maximum(start + first + plan.own_tokens - window, 0)
        gate = lowest.to(gl.float32)
        if plan.gated:
            at = token * num_heads + head + row % plan.own_heads
            gate = gl.load(gate_ptr + at, mask=token < T, other=0.0).to(gl.float32)

        stage, phase = begun % plan.stages, begun // plan.stages & 1
        mbarrier.wait(q_full.index(GROUP), turn & 1)
        mbarrier.wait(k_full.index(stage), phase)
        top = scores if TOP == BLOCK_S else gl.full([HALF, TOP], 0.0, gl.float32, plan.narrow)
        top = warpgroup_mma(queries, k_tops.index(stage * TOPS).permute((1, 0)), top, use_acc=never, is_async=True)
        top = warpgroup_mma_wait(0, [top])
        mbarrier.arrive(k_empty.index(stage))
        top = hide(top, key, gl.convert_layout(position, TOP_ROW), gl.convert_layout(lowest, TOP_ROW), plan.windowed)
        total, highest = gl.full([HALF], 0.0, gl.float32, TOP_ROW), gl.full([HALF], HIDDEN, gl.float32, TOP_ROW)
        top, total, highest, factor = soften(top, total, highest, scale)
        total, highest = gl.convert_layout(total, ROW), gl.convert_layout(highest, ROW)
        if plan.page_size != 0:
            clear(v, v_full.index(stage), phase, stage, start + T - key, plan)
        mixed = gl.full([HALF, HEAD_DIM], 0.0, gl.float32, plan.wide)

        if TOP == BLOCK_S:
            state = (top, mixed, total, highest)
            done = 0
        else:
            key -= BLOCK_S
            k_stage = (begun + 1) % plan.stages
            state = step(
                (scores, mixed, total, highest), top, queries, k.index(k_stage), v_tops.index(stage * TOPS), rings,
                (mine, others, issued), begun + 1, key, (position, lowest),
                (key + BLOCK_S - 1 > start + first) | (key < inner), scale, never, plan,
            )  # fmt: skip
            done = 1
        for n in range(done + 1, blocks + 1):
            key -= BLOCK_S
            k_stage, v_stage = (begun + n) % plan.stages, (begun + n - 1) % plan.stages
            state = step(
                state, state[0], queries, k.index(k_stage), v.index(v_stage), rings,
                (mine, others, issued + n - 1), begun + n, key, (position, lowest),
                (key + BLOCK_S - 1 > start + first) | (key < inner), scale, never, plan,
            )  # fmt: skip
        scores, mixed, total, highest = state
        issued += blocks
        begun += blocks + 1
        mbarrier.arrive(q_empty.index(GROUP))

        stage = (begun - 1) % plan.stages
        mbarrier.wait(v_full.index(stage), (begun - 1) // plan.stages & 1)
        mixed = warpgroup_mma(operand(scores, plan), v.index(stage), mixed, is_async=True)
        factor = 1.0 / gl.where(total == 0.0, 1.0, total)  # every query sees itself; rows beyond them may see no key
        if plan.gated:
            factor = factor / (1.0 + gl.exp(-gate))
        mixed = warpgroup_mma_wait(0, [mixed])
        mbarrier.arrive(v_empty.index(stage))
        y = mixed * factor[:, None]
        tma.store_wait(0)
        answers.store(y.to(gl.bfloat16))
        fence_async_shared()
        tma.async_copy_shared_to_global(y_desc, [first, head, 0], out.index(GROUP))
        turn += 1
        work = hear(works, told, taken, turn)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_works", "tiles", "columns", "T", "start", "window", "num_heads"])
def prefill_wgmma_kernel(
    q_desc,  # [T, N, H], in boxes of own_tokens x own_heads x H
    k_desc,  # [rows, K * H], in boxes of 64 columns: of a whole block, or of a page
    v_desc,
    k_top_desc,  # the same in boxes for the top block
    v_top_desc,
    y_desc,  # [T, N, H], as q
    counter_ptr,  # int32, 0: of tiles that programs took after their first
    table_ptr,  # [max_pages] int32; any pointer without pages
    gate_ptr,  # [T, N], contiguous; any pointer without a gate
    num_works,  # tiles * columns
    tiles,  # of tokens
    columns,  # of heads
    T,
    start,  # position of the first query
    window,
    num_heads,
    scale,  # log2(e) / sqrt(H)
    plan: gl.constexpr,
    num_warps: gl.constexpr,  # 4
):
    STAGES: gl.constexpr = plan.stages
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    q = gl.allocate_shared_memory(gl.bfloat16, [GROUPS, plan.own_tokens, plan.own_heads, HEAD_DIM], q_desc.layout)
    out = gl.allocate_shared_memory(gl.bfloat16, [GROUPS, plan.own_tokens, plan.own_heads, HEAD_DIM], y_desc.layout)
    k = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_S, HEAD_DIM], plan.tile)
    v = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BLOCK_S, HEAD_DIM], plan.tile)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(k_empty.index(stage), count=GROUPS)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(v_empty.index(stage), count=GROUPS)
    q_full = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], BARRIER)
    turns = gl.allocate_shared_memory(gl.int64, [GROUPS, 1], BARRIER)
    for group in gl.static_range(GROUPS):
        mbarrier.init(q_full.index(group), count=1)
        mbarrier.init(q_empty.index(group), count=1)
        mbarrier.init(turns.index(group), count=1)
    works = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    told = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    taken = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    for slot in gl.static_range(2):
        mbarrier.init(told.index(slot), count=1)
        mbarrier.init(taken.index(slot), count=GROUPS)
    fence_async_shared()
    sizes = (tiles, columns, T, start, window)
    to_attend = (
        y_desc, q, k, v, out, q_full, q_empty, k_full, k_empty, v_full, v_empty, turns, works, told, taken,
        gate_ptr, num_works, sizes, num_heads, scale,
    )  # fmt: skip
    to_fill = (
        q_desc, k_desc, v_desc, k_top_desc, v_top_desc, q, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty,
        works, told, taken, counter_ptr, table_ptr, num_works, sizes,
    )  # fmt: skip
    gl.warp_specialize(
        [(attend, (to_attend, 0, plan)), (attend, (to_attend, 1, plan)), (fill_rings, (to_fill, plan))],
        [4, 1],
        [240, 24],
    )

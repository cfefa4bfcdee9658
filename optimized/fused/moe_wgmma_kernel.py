"""Grouped products for many rows on Hopper, in Gluon: warps with different work that meet at barriers in shared memory.

``moe_grouped`` gathers rows by pointers and scales the sums of FP8 while the tensor cores wait. Here rows lie sorted by
expert (``moe_places``), in blocks of 128, so that one warp fills a ring of tiles with the copy engine. Two groups of
four warps multiply 64 rows each by the same 256 outputs: 128 of gate and as many of up, or 256 of the down projection.
While one group scales the sums of 128 inputs, or makes its outputs, the other keeps the tensor cores busy. Of a
thread's 240 registers, 128 hold sums and, for FP8, 64 the product of 128 inputs, which is scaled and added to them.
Where a block has no more than 64 rows, the second group only passes the ring on.

Such blocks take half the time, so programs take their tiles from a counter. Those at work together then stay
neighbours, and find the same rows, and the weights of few experts, in the level-2 cache: with a fixed share of the
tiles each, a layer took a tenth longer in FP8, and a sixth or more in bfloat16 (H200, 16384 tokens).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .fp8_scale import fp8_scale
from .moe_math import exp
from .turns import hear, tell

REPLACES = ("swiglu", "experts", "experts_fp8")

GROUPS = gl.constexpr(2)  # of warps
HALF = gl.constexpr(64)  # rows of a group of warps
TILE = gl.constexpr(128)  # outputs that share scales: of one weight tile


@gluon.jit
def swiglu(gate, up, limit, CLAMP: gl.constexpr):
    """As ``moe_math.swiglu_of``, with a quotient to 2 ulp of float32: its exact one takes a branch for each element."""
    activated = gl.fdiv(gate, 1.0 + exp(-gate))
    if CLAMP:
        activated = gl.where(activated > limit, limit, activated)  # NaN passes
        up = gl.where(up > limit, limit, gl.where(up < -limit, -limit, up))
    return activated * up


@gluon.jit
def coded(y):
    """e4m3 codes of [64, 128] and the scale [64] of each row, as ``moe_math.rounded_to_fp8``."""
    bits = gl.abs(y).to(gl.int32, bitcast=True)  # ordered as the magnitudes, NaN above infinity; a float max drops NaN
    scale, inverse = fp8_scale(gl.max(bits, axis=1))
    none = gl.full_like(y, 0.0)
    near = y * inverse[:, None]
    rest = gl.fma(-near, scale[:, None] + none, y)
    return gl.fma(rest, inverse[:, None] + none, near).to(gl.float8e4nv), scale


@gluon.jit
def add_scaled(total, product, scale):
    """``total + product * scale[:, None]``, here: moved past the next product, it would hold two sets of registers."""
    return gl.inline_asm_elementwise(
        "fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f", [product, scale[:, None], total], gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def halves(y, LAYOUT: gl.constexpr):
    """Columns 0 .. 127 and 128 .. 255 of [64, 256]: they lie in different registers of the same threads."""
    first, second = gl.split(gl.permute(gl.reshape(y, (HALF, 2, TILE)), (0, 2, 1)))
    return gl.convert_layout(first, LAYOUT), gl.convert_layout(second, LAYOUT)


@gluon.jit
def put(y_desc, out, y, row, column):
    """Hand [64, 128] to the copy engine, once it has read what was there before."""
    tma.store_wait(0)
    out.store(y.to(y_desc.dtype))
    fence_async_shared()
    tma.async_copy_shared_to_global(y_desc, [row, column], out)


@gluon.jit
def fill_ring(
    given, GATED: gl.constexpr, STAGES: gl.constexpr, AT_ONCE: gl.constexpr,
):  # fmt: skip
    """One warp: rows and weights of every tile, in the order in which they are multiplied."""
    (
        x_desc, first_desc, second_desc, x, w, full, empty, works, told, taken, counter_ptr, experts_ptr, rows_ptr,
        blocks, tiles, steps, w_rows,
    ) = given  # fmt: skip
    BLOCK_K: gl.constexpr = x_desc.block_type.shape[1]
    X_BYTES: gl.constexpr = HALF * 128
    W_BYTES: gl.constexpr = 2 * TILE * 128
    begun, turn = 0, 0
    work = gl.program_id(0)
    tell(works, told, taken, work, turn)
    while work < blocks * tiles:
        following = gl.num_programs(0) + gl.atomic_add(counter_ptr, 1, sem="relaxed")
        block, tile = work // tiles, work % tiles
        expert = gl.load(experts_ptr + block)
        groups = (gl.load(rows_ptr + block) + HALF - 1) // HALF
        row = block * (GROUPS * HALF)
        if GATED:
            first_row = expert * w_rows + tile * TILE
            second_row = first_row
        else:
            first_row = expert * w_rows + tile * (2 * TILE)
            second_row = first_row + TILE
        for at_once in range(steps // AT_ONCE):
            for n in gl.static_range(AT_ONCE):
                mbarrier.wait(empty.index((begun + n) % STAGES), (begun + n) // STAGES & 1 ^ 1)
            for n in gl.static_range(AT_ONCE):
                stage = (begun + n) % STAGES
                column = (at_once * AT_ONCE + n) * BLOCK_K
                ready = full.index(stage)
                for group in gl.static_range(GROUPS):
                    mbarrier.expect(ready, (group + 1) * X_BYTES + W_BYTES, pred=groups == group + 1)
                tma.async_copy_global_to_shared(first_desc, [first_row, column], ready, w.index(2 * stage))
                tma.async_copy_global_to_shared(second_desc, [second_row, column], ready, w.index(2 * stage + 1))
                for group in gl.static_range(GROUPS):
                    tma.async_copy_global_to_shared(
                        x_desc, [row + group * HALF, column], ready, x.index(GROUPS * stage + group),
                        pred=group < groups,
                    )  # fmt: skip
            begun += AT_ONCE
        work = following
        turn += 1
        tell(works, told, taken, work, turn)


@gluon.jit
def multiply_codes(
    x, w, full, empty, x_scale_at, first_scale_at, second_scale_at, begun, steps,
    GROUP: gl.constexpr, STAGES: gl.constexpr, MMA: gl.constexpr,
):  # fmt: skip
    """Sums [64, 128] of both weights; a step is 128 inputs, for which a row has a scale, and either weight."""
    first = gl.full([HALF, TILE], 0.0, gl.float32, MMA)
    second = gl.full([HALF, TILE], 0.0, gl.float32, MMA)
    product = first
    never = steps < 0  # a product starts anew, but in the registers of the one before: a constant would take others
    x_scale, first_scale = gl.load(x_scale_at), gl.load(first_scale_at)
    second_scale = gl.load(second_scale_at)
    for k in range(steps):
        stage = (begun + k) % STAGES
        following = gl.minimum(k + 1, steps - 1)
        by_first, by_second = x_scale * first_scale, x_scale * second_scale
        x_scale, first_scale = gl.load(x_scale_at + following), gl.load(first_scale_at + following)
        second_scale = gl.load(second_scale_at + following)
        rows = x.index(GROUPS * stage + GROUP)
        mbarrier.wait(full.index(stage), (begun + k) // STAGES & 1)
        w_first, w_second = w.index(2 * stage).permute((1, 0)), w.index(2 * stage + 1).permute((1, 0))
        product = warpgroup_mma(rows, w_first, product, use_acc=never, is_async=True)
        product = warpgroup_mma_wait(0, [product])
        first = add_scaled(first, product, by_first)
        product = warpgroup_mma(rows, w_second, product, use_acc=never, is_async=True)
        product = warpgroup_mma_wait(0, [product])
        mbarrier.arrive(empty.index(stage))
        second = add_scaled(second, product, by_second)
    return first, second


@gluon.jit
def multiply_plain(
    x, w, full, empty, begun, steps,
    GROUP: gl.constexpr, STAGES: gl.constexpr, MMA: gl.constexpr,
):  # fmt: skip
    """Sums [64, 128] of both weights, one instruction for both; a step is 64 inputs, and one is always under way."""
    WIDE: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 2 * TILE, 16])
    wide = w._reinterpret(w.dtype, [STAGES, 2 * TILE, w.shape[2]], w.layout)
    total = gl.full([HALF, 2 * TILE], 0.0, gl.float32, WIDE)
    for k in range(steps):
        stage = (begun + k) % STAGES
        mbarrier.wait(full.index(stage), (begun + k) // STAGES & 1)
        rows = x.index(GROUPS * stage + GROUP)
        total = warpgroup_mma(rows, wide.index(stage).permute((1, 0)), total, is_async=True)
        total = warpgroup_mma_wait(1, [total])
        mbarrier.arrive(empty.index((begun + k + STAGES - 1) % STAGES), pred=k > 0)
    total = warpgroup_mma_wait(0, [total])
    mbarrier.arrive(empty.index((begun + steps - 1) % STAGES))
    return halves(total, MMA)


@gluon.jit
def multiply(
    given, GROUP: gl.constexpr, GATED: gl.constexpr, CLAMP: gl.constexpr, CODES: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Four warps: 64 rows of every tile, from row 64 GROUP of its block on."""
    (
        y_desc, x, w, out, full, empty, works, told, taken, experts_ptr, rows_ptr, x_scale_ptr, first_scale_ptr,
        second_scale_ptr, y_scale_ptr, factors_ptr, s_stride_e, s_stride_o, blocks, tiles, steps, limit,
    ) = given  # fmt: skip
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 32 if CODES else 16])
    ROW: gl.constexpr = gl.SliceLayout(1, MMA)
    begun, turn = 0, 0
    work = hear(works, told, taken, turn)
    while work < blocks * tiles:
        block, tile = work // tiles, work % tiles
        if gl.load(rows_ptr + block) > HALF * GROUP:
            first_row = (block * GROUPS + GROUP) * HALF
            row = first_row + gl.arange(0, HALF, ROW)
            if CODES:
                expert = gl.load(experts_ptr + block)
                first_at = first_scale_ptr + expert * s_stride_e
                second_at = second_scale_ptr + expert * s_stride_e
                if GATED:
                    first_at += tile * s_stride_o
                    second_at += tile * s_stride_o
                else:
                    first_at += 2 * tile * s_stride_o
                    second_at += (2 * tile + 1) * s_stride_o
                first, second = multiply_codes(
                    x, w, full, empty, x_scale_ptr + row * steps, first_at, second_at, begun, steps,
                    GROUP, STAGES, MMA,
                )  # fmt: skip
            else:
                first, second = multiply_plain(x, w, full, empty, begun, steps, GROUP, STAGES, MMA)
            if GATED:
                y = swiglu(first, second, limit, CLAMP)
                if CODES:
                    y, scale = coded(y)
                    gl.store(y_scale_ptr + row * tiles + tile, scale)
                put(y_desc, out.index(GROUP), y, first_row, tile * TILE)
            else:
                factor = gl.load(factors_ptr + row)[:, None]
                put(y_desc, out.index(GROUP), first * factor, first_row, tile * (2 * TILE))
                put(y_desc, out.index(GROUP), second * factor, first_row, tile * (2 * TILE) + TILE)
        else:
            for k in range(steps):
                stage = (begun + k) % STAGES
                mbarrier.wait(full.index(stage), (begun + k) // STAGES & 1)
                mbarrier.arrive(empty.index(stage))
        begun += steps
        turn += 1
        work = hear(works, told, taken, turn)
    tma.store_wait(0)


@gluon.jit
def wgmma_kernel(
    x_desc,  # [places, K], in boxes of 64 x 128 bytes
    first_desc,  # [E w_rows, K], in boxes of 128 x 128 bytes: gate, or down
    second_desc,  # up, or down
    y_desc,  # [places, O], in boxes of 64 x 128
    x_scale_ptr,  # [places, K / 128] float32, where x are codes
    first_scale_ptr,  # strides s_stride_e, s_stride_o, 1
    second_scale_ptr,
    y_scale_ptr,  # [places, O / 128] float32, where GATED makes codes
    factors_ptr,  # [places] float32, of the down projection
    experts_ptr,  # [blocks] int32
    rows_ptr,  # [blocks] int32: slots of a block, at least one
    num_blocks_ptr,  # int32
    counter_ptr,  # int32, 0: of tiles that programs took after their first
    w_rows,  # from one expert to the next
    s_stride_e,
    s_stride_o,
    tiles,  # of outputs: O / 128 if GATED, else O / 256
    steps,  # K in boxes
    limit,
    GATED: gl.constexpr,
    CLAMP: gl.constexpr,
    CODES: gl.constexpr,
    STAGES: gl.constexpr,
    AT_ONCE: gl.constexpr,  # stages that are filled together: half of them at most; divides steps
    num_warps: gl.constexpr,  # 4
):
    BOX: gl.constexpr = x_desc.block_type.shape[1]
    x = gl.allocate_shared_memory(x_desc.dtype, [GROUPS * STAGES, HALF, BOX], x_desc.layout)
    w = gl.allocate_shared_memory(first_desc.dtype, [2 * STAGES, TILE, BOX], first_desc.layout)
    out = gl.allocate_shared_memory(y_desc.dtype, [GROUPS, HALF, TILE], y_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=GROUPS)
    works = gl.allocate_shared_memory(gl.int32, [2, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    told = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    taken = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(2):
        mbarrier.init(told.index(slot), count=1)
        mbarrier.init(taken.index(slot), count=GROUPS)
    fence_async_shared()
    blocks = gl.load(num_blocks_ptr)
    given = (
        y_desc, x, w, out, full, empty, works, told, taken, experts_ptr, rows_ptr, x_scale_ptr, first_scale_ptr,
        second_scale_ptr, y_scale_ptr, factors_ptr, s_stride_e, s_stride_o, blocks, tiles, steps, limit,
    )  # fmt: skip
    to_fill = (
        x_desc, first_desc, second_desc, x, w, full, empty, works, told, taken, counter_ptr, experts_ptr, rows_ptr,
        blocks, tiles, steps, w_rows,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (multiply, (given, 0, GATED, CLAMP, CODES, STAGES)),
            (multiply, (given, 1, GATED, CLAMP, CODES, STAGES)),
            (fill_ring, (to_fill, GATED, STAGES, AT_ONCE)),
        ],
        [4, 1],
        [240, 24],
    )

"""Gated blocks and products on quantised weights for few rows, in Gluon: codes are copied early, and read to where they
are multiplied.

A program copies the words of the next steps to shared memory while it multiplies those of this one; a thread's own
words then come to its registers as a matrix instruction takes them (``moe_direct_tiles``). The first copies start
before the kernel ahead has finished, where their expert is known. Read to registers instead, a step ahead, codes came
when they were wanted and not before: the compiler sinks such loads to the end of a step, where their registers are free
again (H200, 2026-11-24: one token's qkv projection in FP8 17.3 us so, 15.2 now).

Of several rows, inputs are copied step by step beside the codes. A single row is made ready once
(``moe_direct_inputs``), where that spares more instructions than it takes: half of those of int4, and rounding to e4m3.

Bfloat16 rows only, whole tiles and groups, and no interpreter, as Gluon has none: elsewhere ``moe_stream``.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .moe_direct_inputs import prepare, prepare_of
from .moe_direct_tiles import (
    COLUMNS,
    GROUP,
    INT4,
    X_WORDS,
    inputs_at,
    left_of,
    mma_of,
    multiplied,
    place_of,
    read_words,
    ready_inputs,
    ready_product,
    right_of,
    sums_of,
    words_of,
)
from .moe_math import swiglu_of

REPLACES = ("linear", "swiglu", "mlp", "experts")


@gluon.constexpr_function
def copy_of(KIND, num_warps):
    """Words as they are copied: whole lines of a row."""
    words = words_of(KIND)
    return gl.BlockedLayout([1, 1, 4], [1, 128 // words, words // 4], [num_warps, 1, 1], [2, 1, 0])


@gluon.constexpr_function
def x_copy_of(KIND, num_warps):
    return gl.BlockedLayout([1, 1 if KIND == INT4 else 2, 1], [1, 16, 2], [num_warps, 1, 1], [1, 2, 0])


@gluon.constexpr_function
def stage_of(KIND):
    """Words in shared memory: what eight threads read at once lies in all banks."""
    return gl.SwizzledSharedLayout(16, 1, words_of(KIND) // 16, [2, 1, 0])


@gluon.constexpr_function
def power_of_two_from(n):
    return 1 << (n - 1).bit_length()


@gluon.jit
def fetch(buffers, w_ptrs, step, STEPS: gl.constexpr, STAGES: gl.constexpr, STRIDE: gl.constexpr):
    """Start to copy a step's words to their place in shared memory; past the last step, of none."""
    is_there = gl.full(w_ptrs.shape, step < STEPS, gl.int1, w_ptrs.type.layout)
    async_copy.async_copy_global_to_shared(
        buffers.index(step % STAGES), w_ptrs + step * STRIDE, mask=is_there, cache_modifier=".cg"
    )


@gluon.jit
def fetch_x(x_buffers, x_ptrs, is_row, step, STEPS: gl.constexpr, STAGES: gl.constexpr, STRIDE: gl.constexpr):
    """Start to copy what a step's words are multiplied by."""
    async_copy.async_copy_global_to_shared(
        x_buffers.index(step % STAGES), x_ptrs + step * STRIDE, mask=is_row & (step < STEPS)
    )


@gluon.constexpr_function
def scales_of(KIND, num_warps):
    """Scales as they are read, [steps, tiles] or [steps, tiles, outputs]: steps are neighbours in memory."""
    if KIND == INT4:
        return gl.BlockedLayout([1, 1, 1], [8, 1, 4], [1, 1, num_warps], [0, 1, 2])
    return gl.BlockedLayout([1, 1], [32, 1], [1, num_warps], [0, 1])


@gluon.jit
def scales_from(
    scale_ptr,
    ids_ptr,
    first,
    stride_e,
    stride_o,
    ROUTED: gl.constexpr,
    KIND: gl.constexpr,
    STEPS: gl.constexpr,
    BATCH: gl.constexpr,
    BLOCK_G: gl.constexpr,
    BLOCK_O: gl.constexpr,
    num_warps: gl.constexpr,
):
    """The scales of all steps: of int4 [steps, BATCH, BLOCK_O], of FP8 [steps, BATCH]; float32."""
    READ: gl.constexpr = scales_of(KIND, num_warps)
    PAIR: gl.constexpr = gl.SliceLayout(2, READ) if KIND == INT4 else READ
    step = gl.arange(0, power_of_two_from(STEPS), gl.SliceLayout(1, PAIR))
    tile = gl.arange(0, BATCH, gl.SliceLayout(0, PAIR))
    at = (tile % BLOCK_G).to(gl.int64)
    if ROUTED:
        at += gl.load(ids_ptr + tile // BLOCK_G, cache_modifier=".cg").to(gl.int64) * stride_e
    ptrs = scale_ptr + (at[None, :] + (step * BLOCK_G)[:, None])
    is_step = (step < STEPS)[:, None] & (at >= 0)[None, :]
    if KIND == INT4:
        row = first + gl.arange(0, BLOCK_O, gl.SliceLayout(0, gl.SliceLayout(1, READ)))
        ptrs = ptrs[:, :, None] + (row * stride_o)[None, None, :]
        is_step = is_step[:, :, None] & (row >= 0)[None, None, :]
    else:
        ptrs += first // GROUP * stride_o
    return gl.load(ptrs, mask=is_step).to(gl.float32)


@gluon.jit
def kept(scales):
    """In shared memory, to be read step by step."""
    RANK: gl.constexpr = len(scales.shape)
    WRITE: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0] if RANK == 3 else [1, 0])
    buffer = gl.allocate_shared_memory(gl.float32, scales.shape, WRITE, scales)
    READ: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0] if RANK == 3 else [0])
    return buffer._reinterpret(gl.float32, scales.shape, READ)


@gluon.jit
def up_direct_kernel(
    x_ptr,  # [T, D] in 64-bit words, row stride x_stride
    ids_ptr,  # [T, A]
    gate_ptr,  # [E, F, D] in 32-bit words, strides w_stride_e, w_stride_f
    up_ptr,
    gate_scale_ptr,  # strides s_stride_e, s_stride_f, 1
    up_scale_ptr,
    inner_ptr,  # [T A, F], contiguous
    x_stride,
    w_stride_e,
    w_stride_f,
    s_stride_e,
    s_stride_f,
    F,
    A,
    rows,  # of a program: 1 if ROUTED, else T
    limit,
    ROUTED: gl.constexpr,
    IDS_OLDER: gl.constexpr,  # than the kernel before this one
    KIND: gl.constexpr,
    ROUNDS: gl.constexpr,  # x to e4m3, a scale for 128
    CLAMP: gl.constexpr,
    ROWS: gl.constexpr,  # of x that are read for a program: 1, or as many as there are columns
    BLOCK_F: gl.constexpr,
    STEPS: gl.constexpr,  # BLOCK_G groups of 128 inputs each
    BLOCK_G: gl.constexpr,  # groups at once; divides all of them
    STAGES: gl.constexpr,
    num_warps: gl.constexpr,  # divides BLOCK_G
    launch_pdl: gl.constexpr = False,
):
    WORDS: gl.constexpr = words_of(KIND)
    MMA: gl.constexpr = mma_of(num_warps)
    LEFT: gl.constexpr = left_of(KIND, num_warps)
    RIGHT: gl.constexpr = right_of(KIND, num_warps)
    COPY: gl.constexpr = copy_of(KIND, num_warps)
    X_COPY: gl.constexpr = x_copy_of(KIND, num_warps)
    STAGE: gl.constexpr = stage_of(KIND)
    X_STAGE: gl.constexpr = gl.SwizzledSharedLayout(2, 1, 2, [1, 2, 0])
    READY: gl.constexpr = ROWS == 1
    PREPARE: gl.constexpr = prepare_of(KIND, num_warps)
    SUMS: gl.constexpr = sums_of(KIND, READY, BLOCK_G, BLOCK_F, num_warps)
    WIDTH: gl.constexpr = 4 if READY and KIND == INT4 else COLUMNS
    TILE: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, SUMS))
    SCALE: gl.constexpr = gl.SliceLayout(2, SUMS) if KIND == INT4 else TILE
    if launch_pdl and ROUTED and not IDS_OLDER:
        gdc_wait()
        gdc_launch_dependents()
    slot = gl.program_id(0).to(gl.int64)
    f_first = gl.program_id(1) * BLOCK_F
    if ROUTED:
        expert = gl.load(ids_ptr + slot, cache_modifier=".cg").to(gl.int64)
        gate_ptr += expert * w_stride_e
        up_ptr += expert * w_stride_e
        gate_scale_ptr += expert * s_stride_e
        up_scale_ptr += expert * s_stride_e
    f = f_first + gl.arange(0, BLOCK_F, gl.SliceLayout(0, gl.SliceLayout(2, COPY)))
    tile = gl.arange(0, BLOCK_G, gl.SliceLayout(1, gl.SliceLayout(2, COPY)))
    word = gl.arange(0, WORDS, gl.SliceLayout(0, gl.SliceLayout(1, COPY)))
    w_at = (f * w_stride_f)[None, :, None] + (tile * WORDS)[:, None, None] + word[None, None, :]
    gate_ptrs, up_ptrs = gate_ptr + w_at, up_ptr + w_at
    gates = gl.allocate_shared_memory(gl.int32, [STAGES, BLOCK_G, BLOCK_F, WORDS], STAGE)
    ups = gl.allocate_shared_memory(gl.int32, [STAGES, BLOCK_G, BLOCK_F, WORDS], STAGE)
    gate_scales = scales_from(
        gate_scale_ptr, ids_ptr, f_first, 0, s_stride_f, False, KIND, STEPS, BLOCK_G, BLOCK_G, BLOCK_F, num_warps
    )
    up_scales = scales_from(
        up_scale_ptr, ids_ptr, f_first, 0, s_stride_f, False, KIND, STEPS, BLOCK_G, BLOCK_G, BLOCK_F, num_warps
    )
    for step in gl.static_range(STAGES - 1):
        fetch(gates, gate_ptrs, step, STEPS, STAGES, BLOCK_G * WORDS)
        fetch(ups, up_ptrs, step, STEPS, STAGES, BLOCK_G * WORDS)
    if launch_pdl and (IDS_OLDER or not ROUTED):
        gdc_wait()
        gdc_launch_dependents()
    if READY:
        r = gl.arange(0, power_of_two_from(STEPS) * BLOCK_G, gl.SliceLayout(1, PREPARE))
        x_rows = x_ptr + slot // A * x_stride + r * X_WORDS
        xs, x_scales, lesses = prepare(x_rows, r < STEPS * BLOCK_G, BLOCK_G, KIND, ROUNDS, PREPARE)
    else:
        row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(1, X_COPY)))
        x_tile = gl.arange(0, BLOCK_G, gl.SliceLayout(1, gl.SliceLayout(2, X_COPY)))
        x_word = place_of(gl.arange(0, X_WORDS, gl.SliceLayout(0, gl.SliceLayout(2, X_COPY))), KIND)
        x_at = (x_tile * X_WORDS)[:, None, None] + x_word[None, :, None] + (row * x_stride)[None, None, :]
        x_ptrs = x_ptr + slot // A * x_stride + x_at
        is_row = (row < rows)[None, None, :] & (x_at >= 0)
        xs = gl.allocate_shared_memory(gl.int64, [STAGES, BLOCK_G, X_WORDS, ROWS], X_STAGE)
        for step in gl.static_range(STAGES - 1):
            fetch_x(xs, x_ptrs, is_row, step, STEPS, STAGES, BLOCK_G * X_WORDS)
    async_copy.commit_group()
    gate_scales, up_scales = kept(gate_scales), kept(up_scales)
    async_copy.wait_group(0)
    gate = gl.full([BLOCK_G, BLOCK_F, WIDTH], 0.0, gl.float32, SUMS)
    up = gl.full([BLOCK_G, BLOCK_F, WIDTH], 0.0, gl.float32, SUMS)
    for step in range(STEPS):
        async_copy.wait_group(STAGES - 2)
        gate_scale, up_scale = gate_scales.index(step).load(SCALE), up_scales.index(step).load(SCALE)
        gate_words = read_words(gates.index(step % STAGES), KIND, READY, num_warps)
        up_words = read_words(ups.index(step % STAGES), KIND, READY, num_warps)
        if READY:
            x = ready_inputs(xs.index(step), KIND, num_warps)
            x_scale, less = x_scales.index(step).load(TILE), lesses.index(step).load(TILE)
        else:
            x, x_other = inputs_at(xs.index(step % STAGES), KIND, RIGHT)
            fetch_x(xs, x_ptrs, is_row, step + STAGES - 1, STEPS, STAGES, BLOCK_G * X_WORDS)
        fetch(gates, gate_ptrs, step + STAGES - 1, STEPS, STAGES, BLOCK_G * WORDS)
        fetch(ups, up_ptrs, step + STAGES - 1, STEPS, STAGES, BLOCK_G * WORDS)
        async_copy.commit_group()
        if READY:
            gate += ready_product(gate_words, x, gate_scale, x_scale, less, KIND, SUMS, num_warps)
            up += ready_product(up_words, x, up_scale, x_scale, less, KIND, SUMS, num_warps)
        else:
            gate += multiplied(gate_words, gate_scale, x, x_other, KIND, LEFT, MMA)
            up += multiplied(up_words, up_scale, x, x_other, KIND, LEFT, MMA)
    async_copy.wait_group(0)  # those past the last step: memory that sums meet in
    SUM: gl.constexpr = gl.SliceLayout(0, SUMS)
    gate, up = gl.sum(gate, axis=0), gl.sum(up, axis=0)
    inner = swiglu_of(gate, up, limit, CLAMP)
    n = gl.arange(0, WIDTH, gl.SliceLayout(0, SUM))
    at = (slot + n)[None, :] * F + (f_first + gl.arange(0, BLOCK_F, gl.SliceLayout(1, SUM)))[:, None]
    gl.store(inner_ptr + at, inner.to(inner_ptr.dtype.element_ty), mask=(n < rows)[None, :] & (at >= 0))


@gluon.jit
def down_direct_kernel(
    x_ptr,  # [T A, F] in 64-bit words, row stride x_stride
    ids_ptr,  # [T, A]
    weights_ptr,  # [T, A]
    w_ptr,  # [E, D, F] in 32-bit words, strides w_stride_e, w_stride_d
    scale_ptr,  # strides s_stride_e, s_stride_d, 1
    y_ptr,  # [T, D], contiguous
    x_stride,
    w_stride_e,
    w_stride_d,
    s_stride_e,
    s_stride_d,
    D,
    rows,  # of a program: 1 if ROUTED, else T
    ROUTED: gl.constexpr,
    KIND: gl.constexpr,
    ROUNDS: gl.constexpr,  # x to e4m3, a scale for 128
    A: gl.constexpr,  # a power of two; 1 without ROUTED
    ROWS: gl.constexpr,
    BLOCK_D: gl.constexpr,
    STEPS: gl.constexpr,
    BLOCK_G: gl.constexpr,  # groups of each expert at once; divides all of them
    STAGES: gl.constexpr,
    num_warps: gl.constexpr,  # divides A BLOCK_G
    launch_pdl: gl.constexpr = False,
):
    BATCH: gl.constexpr = A * BLOCK_G
    WORDS: gl.constexpr = words_of(KIND)
    MMA: gl.constexpr = mma_of(num_warps)
    LEFT: gl.constexpr = left_of(KIND, num_warps)
    RIGHT: gl.constexpr = right_of(KIND, num_warps)
    COPY: gl.constexpr = copy_of(KIND, num_warps)
    X_COPY: gl.constexpr = x_copy_of(KIND, num_warps)
    STAGE: gl.constexpr = stage_of(KIND)
    X_STAGE: gl.constexpr = gl.SwizzledSharedLayout(2, 1, 2, [1, 2, 0])
    READY: gl.constexpr = ROWS == 1 and (KIND == INT4 or ROUNDS)
    PREPARE: gl.constexpr = prepare_of(KIND, num_warps)
    SUMS: gl.constexpr = sums_of(KIND, READY, BATCH, BLOCK_D, num_warps)
    WIDTH: gl.constexpr = 4 if READY and KIND == INT4 else COLUMNS
    TILE: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, SUMS))
    SCALE: gl.constexpr = gl.SliceLayout(2, SUMS) if KIND == INT4 else TILE
    t = gl.program_id(0).to(gl.int64)
    d_first = gl.program_id(1) * BLOCK_D
    tile = gl.arange(0, BATCH, gl.SliceLayout(1, gl.SliceLayout(2, COPY)))
    d = d_first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, gl.SliceLayout(2, COPY)))
    word = gl.arange(0, WORDS, gl.SliceLayout(0, gl.SliceLayout(1, COPY)))
    w_ptrs = w_ptr + ((d * w_stride_d)[None, :, None] + (tile % BLOCK_G * WORDS)[:, None, None] + word[None, None, :])
    if ROUTED:
        expert = gl.load(ids_ptr + t * A + tile // BLOCK_G, cache_modifier=".cg").to(gl.int64)
        w_ptrs += (expert * w_stride_e)[:, None, None]
    buffers = gl.allocate_shared_memory(gl.int32, [STAGES, BATCH, BLOCK_D, WORDS], STAGE)
    scales = scales_from(
        scale_ptr, ids_ptr + t * A, d_first, s_stride_e, s_stride_d, ROUTED, KIND, STEPS, BATCH, BLOCK_G, BLOCK_D,
        num_warps,
    )  # fmt: skip
    for step in gl.static_range(STAGES - 1):
        fetch(buffers, w_ptrs, step, STEPS, STAGES, BLOCK_G * WORDS)
    if launch_pdl:
        gdc_wait()  # for x: ids are older than what the kernel before writes
        gdc_launch_dependents()
    if READY:
        r = gl.arange(0, power_of_two_from(STEPS) * BATCH, gl.SliceLayout(1, PREPARE))
        x_at = r % BATCH // BLOCK_G * x_stride + (r // BATCH * BLOCK_G + r % BLOCK_G) * X_WORDS
        xs, x_scales, lesses = prepare(x_ptr + t * A * x_stride + x_at, r < STEPS * BATCH, BATCH, KIND, ROUNDS, PREPARE)
    else:
        row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(1, X_COPY)))
        x_tile = gl.arange(0, BATCH, gl.SliceLayout(1, gl.SliceLayout(2, X_COPY)))
        x_word = place_of(gl.arange(0, X_WORDS, gl.SliceLayout(0, gl.SliceLayout(2, X_COPY))), KIND)
        x_at = (x_tile // BLOCK_G * x_stride + x_tile % BLOCK_G * X_WORDS)[:, None, None] + x_word[None, :, None]
        x_at += (row * x_stride)[None, None, :]
        x_ptrs = x_ptr + t * A * x_stride + x_at
        is_row = (row < rows)[None, None, :] & (x_at >= 0)
        xs = gl.allocate_shared_memory(gl.int64, [STAGES, BATCH, X_WORDS, ROWS], X_STAGE)
        for step in gl.static_range(STAGES - 1):
            fetch_x(xs, x_ptrs, is_row, step, STEPS, STAGES, BLOCK_G * X_WORDS)
    async_copy.commit_group()
    scales = kept(scales)
    async_copy.wait_group(0)
    total = gl.full([BATCH, BLOCK_D, WIDTH], 0.0, gl.float32, SUMS)
    for step in range(STEPS):
        async_copy.wait_group(STAGES - 2)
        scale, words = scales.index(step).load(SCALE), read_words(buffers.index(step % STAGES), KIND, READY, num_warps)
        if READY:
            x = ready_inputs(xs.index(step), KIND, num_warps)
            x_scale, less = x_scales.index(step).load(TILE), lesses.index(step).load(TILE)
        else:
            x, x_other = inputs_at(xs.index(step % STAGES), KIND, RIGHT)
            fetch_x(xs, x_ptrs, is_row, step + STAGES - 1, STEPS, STAGES, BLOCK_G * X_WORDS)
        fetch(buffers, w_ptrs, step + STAGES - 1, STEPS, STAGES, BLOCK_G * WORDS)
        async_copy.commit_group()
        if READY:
            total += ready_product(words, x, scale, x_scale, less, KIND, SUMS, num_warps)
        else:
            total += multiplied(words, scale, x, x_other, KIND, LEFT, MMA)
    async_copy.wait_group(0)  # those past the last step: memory that sums meet in
    if ROUTED:
        m_tile = gl.arange(0, BATCH, TILE)
        total *= gl.load(weights_ptr + t * A + m_tile // BLOCK_G).to(gl.float32)[:, None, None]
    SUM: gl.constexpr = gl.SliceLayout(0, SUMS)
    y = gl.sum(total, axis=0)
    n = gl.arange(0, WIDTH, gl.SliceLayout(0, SUM))
    at = (t + n)[None, :] * D + (d_first + gl.arange(0, BLOCK_D, gl.SliceLayout(1, SUM)))[:, None]
    gl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(n < rows)[None, :] & (at >= 0))

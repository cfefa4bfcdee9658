"""Gated blocks and products on quantised weights for few rows, in Gluon: codes are read to where they are multiplied.

``moe_stream`` stages codes in shared memory, and has the compiler bring them into the layout of a matrix product
through shared memory once more: a warp mostly waits for that. Here layouts are explicit. A tile is 16 outputs by a
group's 16 or 32 words of codes, a warp's work. A thread reads four neighbouring words of a row; which input a place
along K stands for is free, as long as x follows, so these words are what a matrix instruction takes from this very
thread. The j-th codes of a tile's words times the j-th inputs of each word are one product; the 4 or 8 products of a
tile are added up in float32, then scaled. Words of the next step are read before those of this one are multiplied; the
first ones, where their expert is known, before the kernel ahead has finished.

Bfloat16 rows only, whole tiles and groups, and no interpreter, as Gluon has none: elsewhere ``moe_stream``.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .moe_math import swiglu_of

REPLACES = ("linear", "swiglu", "mlp", "experts")

GROUP = gl.constexpr(128)
INT4 = gl.constexpr(2)
COLUMNS = gl.constexpr(8)  # rows of x, of a matrix instruction
OFFSET = gl.constexpr(136.0)  # of an unpacked int4 code: 128, and the 8 that stands for zero


@gluon.jit
def unpack_int4(words):
    """Eight bf16 tensors: 128 more than code j of each word."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, c, d;
        prmt.b32 a, $8, $9, 0x5410;
        prmt.b32 b, $8, $9, 0x7632;
        lop3.b32 $0, a, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $4, b, 0x000F000F, 0x43004300, 0xEA;
        shr.u32 c, a, 4;
        shr.u32 d, b, 4;
        lop3.b32 $1, c, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $5, d, 0x000F000F, 0x43004300, 0xEA;
        shr.u32 c, a, 8;
        shr.u32 d, b, 8;
        lop3.b32 $2, c, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $6, d, 0x000F000F, 0x43004300, 0xEA;
        shr.u32 c, a, 12;
        shr.u32 d, b, 12;
        lop3.b32 $3, c, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $7, d, 0x000F000F, 0x43004300, 0xEA;
        }
        """,
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r",
        [words],
        dtype=(gl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def unpack_fp8(words):
    """Four bf16 tensors: code j of each word, by the bits as in ``fp8_to_bf16``."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, s, scale, zero;
        mov.b32 scale, 0x7B807B80;
        mov.b32 zero, 0x80008000;
        prmt.b32 a, $4, $5, 0x4400;
        and.b32 s, a, 0x7F007F00;
        shr.u32 s, s, 4;
        lop3.b32 $0, a, 0x80008000, s, 0xEA;
        prmt.b32 a, $4, $5, 0x5511;
        and.b32 s, a, 0x7F007F00;
        shr.u32 s, s, 4;
        lop3.b32 $1, a, 0x80008000, s, 0xEA;
        prmt.b32 a, $4, $5, 0x6622;
        and.b32 s, a, 0x7F007F00;
        shr.u32 s, s, 4;
        lop3.b32 $2, a, 0x80008000, s, 0xEA;
        prmt.b32 a, $4, $5, 0x7733;
        and.b32 s, a, 0x7F007F00;
        shr.u32 s, s, 4;
        lop3.b32 $3, a, 0x80008000, s, 0xEA;
        fma.rn.bf16x2 $0, $0, scale, zero;
        fma.rn.bf16x2 $1, $1, scale, zero;
        fma.rn.bf16x2 $2, $2, scale, zero;
        fma.rn.bf16x2 $3, $3, scale, zero;
        }
        """,
        "=&r,=&r,=&r,=&r,r,r",
        [words],
        dtype=(gl.bfloat16,) * 4,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def unpack_bf16(pairs):
    """Four bf16 tensors: element j of each 64-bit word of four."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, c, d;
        mov.b64 {a, b}, $4;
        mov.b64 {c, d}, $5;
        prmt.b32 $0, a, c, 0x5410;
        prmt.b32 $1, a, c, 0x7632;
        prmt.b32 $2, b, d, 0x5410;
        prmt.b32 $3, b, d, 0x7632;
        }
        """,
        "=&r,=&r,=&r,=&r,l,l",
        [pairs],
        dtype=(gl.bfloat16,) * 4,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def as_left(words, KIND: gl.constexpr, LEFT: gl.constexpr):
    """Words as a thread read them, four neighbours, to the left operand: of int4 a thread has no more, and they become
    what it holds of two blocks of eight.
    """
    B: gl.constexpr = words.shape[0]
    if KIND == INT4:
        halves = gl.permute(gl.reshape(words, [B, words.shape[1], 4, 2, 2]), [0, 1, 3, 2, 4])
        words = gl.reshape(halves, [B, words.shape[1], 16])
    return gl.convert_layout(words, LEFT)


@gluon.jit
def as_right(x, RIGHT: gl.constexpr):
    """[B, 4, 2, 2, 8], by word, of what a thread read, to the right operand that goes with ``as_left``."""
    return gl.convert_layout(gl.reshape(gl.permute(x, [0, 2, 1, 3, 4]), [x.shape[0], 16, COLUMNS]), RIGHT)


@gluon.jit
def inputs_of(x_ptrs, KIND: gl.constexpr, RIGHT: gl.constexpr):
    """64-bit words [B, words, 8]: the first four inputs of each word of codes, and the other four of one of int4."""
    x = gl.load(x_ptrs)
    other = x
    if KIND == INT4:
        halves = gl.permute(gl.reshape(x, [x.shape[0], 4, 2, 2, 2, COLUMNS]), [0, 1, 2, 3, 5, 4])
        first, second = gl.split(halves)
        x, other = as_right(first, RIGHT), as_right(second, RIGHT)
    return x, other


@gluon.jit
def product(words, x, x_other, KIND: gl.constexpr, MMA: gl.constexpr):
    """[B, outputs, 8] float32: words of codes [B, outputs, words] times the inputs of each, [B, words, 8]."""
    total = gl.full([words.shape[0], words.shape[1], COLUMNS], 0.0, gl.float32, MMA)
    x0, x1, x2, x3 = unpack_bf16(x)
    if KIND == INT4:
        w0, w1, w2, w3, w4, w5, w6, w7 = unpack_int4(words)
        x4, x5, x6, x7 = unpack_bf16(x_other)
        total = mma_v2(w0, x0, total)
        total = mma_v2(w1, x1, total)
        total = mma_v2(w2, x2, total)
        total = mma_v2(w3, x3, total)
        total = mma_v2(w4, x4, total)
        total = mma_v2(w5, x5, total)
        total = mma_v2(w6, x6, total)
        total = mma_v2(w7, x7, total)
        less = gl.full(words.shape, -OFFSET, gl.bfloat16, words.type.layout)
        total = mma_v2(less, x0, total)
        total = mma_v2(less, x1, total)
        total = mma_v2(less, x2, total)
        total = mma_v2(less, x3, total)
        total = mma_v2(less, x4, total)
        total = mma_v2(less, x5, total)
        total = mma_v2(less, x6, total)
        total = mma_v2(less, x7, total)
    else:
        w0, w1, w2, w3 = unpack_fp8(words)
        total = mma_v2(w0, x0, total)
        total = mma_v2(w1, x1, total)
        total = mma_v2(w2, x2, total)
        total = mma_v2(w3, x3, total)
    return total


@gluon.jit
def scaled(part, scale, KIND: gl.constexpr):
    """By a scale of each output of a tile, [B, outputs], or of each tile, [B]."""
    return part * (scale.to(gl.float32)[:, :, None] if KIND == INT4 else scale[:, None, None])


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
    groups,  # of 128 inputs
    F,
    A,
    rows,  # of a program: 1 if ROUTED, else T
    limit,
    ROUTED: gl.constexpr,
    KIND: gl.constexpr,
    CLAMP: gl.constexpr,
    BLOCK_F: gl.constexpr,
    BLOCK_G: gl.constexpr,  # groups at once; divides all of them
    num_warps: gl.constexpr,  # divides BLOCK_G
    launch_pdl: gl.constexpr = False,
):
    WORDS: gl.constexpr = 16 if KIND == INT4 else 32  # of a group, 32 bits each
    X_WORDS: gl.constexpr = 32  # of x, 64 bits each
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [num_warps, 1, 1], [1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MMA, WORDS // 8)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, MMA, WORDS // 8)
    FOURS: gl.constexpr = gl.BlockedLayout([1, 1, 4], [1, 8, 4], [num_warps, 1, 1], [2, 1, 0])
    EIGHTS: gl.constexpr = gl.BlockedLayout([1, 8, 1], [1, 4, 8], [num_warps, 1, 1], [1, 2, 0])
    READ: gl.constexpr = FOURS if KIND == INT4 else LEFT
    X_READ: gl.constexpr = EIGHTS if KIND == INT4 else RIGHT
    if launch_pdl and ROUTED:
        gdc_wait()  # for ids
        gdc_launch_dependents()
    slot = gl.program_id(0).to(gl.int64)
    f_first = gl.program_id(1) * BLOCK_F
    if ROUTED:
        expert = gl.load(ids_ptr + slot).to(gl.int64)
        gate_ptr += expert * w_stride_e
        up_ptr += expert * w_stride_e
        gate_scale_ptr += expert * s_stride_e
        up_scale_ptr += expert * s_stride_e
    steps = groups // BLOCK_G
    f = f_first + gl.arange(0, BLOCK_F, gl.SliceLayout(0, gl.SliceLayout(2, READ)))
    tile = gl.arange(0, BLOCK_G, gl.SliceLayout(1, gl.SliceLayout(2, READ)))
    word = gl.arange(0, WORDS, gl.SliceLayout(0, gl.SliceLayout(1, READ)))
    w_at = (f * w_stride_f)[None, :, None] + (tile * WORDS)[:, None, None] + word[None, None, :]
    gate_ptrs, up_ptrs = gate_ptr + w_at, up_ptr + w_at
    gate_words, up_words = gl.load(gate_ptrs), gl.load(up_ptrs)
    group = gl.arange(0, BLOCK_G, gl.SliceLayout(1, gl.SliceLayout(2, MMA)))
    if KIND == INT4:
        s_f = f_first + gl.arange(0, BLOCK_F, gl.SliceLayout(0, gl.SliceLayout(2, MMA)))
        s_at = (s_f * s_stride_f)[None, :] + group[:, None]
    else:
        s_at = f_first // GROUP * s_stride_f + group
    gate_scale, up_scale = gl.load(gate_scale_ptr + s_at), gl.load(up_scale_ptr + s_at)
    if launch_pdl and not ROUTED:
        gdc_wait()
        gdc_launch_dependents()
    row = gl.minimum(gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(1, X_READ))), rows - 1)
    x_tile = gl.arange(0, BLOCK_G, gl.SliceLayout(1, gl.SliceLayout(2, X_READ)))
    x_word = gl.arange(0, X_WORDS, gl.SliceLayout(0, gl.SliceLayout(2, X_READ)))
    x_at = (x_tile * X_WORDS)[:, None, None] + x_word[None, :, None] + (row * x_stride)[None, None, :]
    x_ptrs = x_ptr + slot // A * x_stride + x_at
    gate = gl.full([BLOCK_G, BLOCK_F, COLUMNS], 0.0, gl.float32, MMA)
    up = gl.full([BLOCK_G, BLOCK_F, COLUMNS], 0.0, gl.float32, MMA)
    for step in range(steps):
        ahead = step + 1
        is_ahead = gl.full([BLOCK_G, BLOCK_F, WORDS], ahead < steps, gl.int1, READ)
        next_gate_words = gl.load(gate_ptrs + ahead * (BLOCK_G * WORDS), mask=is_ahead)
        next_up_words = gl.load(up_ptrs + ahead * (BLOCK_G * WORDS), mask=is_ahead)
        s_ahead = gl.minimum(ahead, steps - 1) * BLOCK_G
        next_gate, next_up = gl.load(gate_scale_ptr + s_ahead + s_at), gl.load(up_scale_ptr + s_ahead + s_at)
        x, x_other = inputs_of(x_ptrs + step * (BLOCK_G * X_WORDS), KIND, RIGHT)
        gate += scaled(product(as_left(gate_words, KIND, LEFT), x, x_other, KIND, MMA), gate_scale, KIND)
        up += scaled(product(as_left(up_words, KIND, LEFT), x, x_other, KIND, MMA), up_scale, KIND)
        gate_words, up_words, gate_scale, up_scale = next_gate_words, next_up_words, next_gate, next_up
    SUM: gl.constexpr = gl.SliceLayout(0, MMA)
    gate, up = gl.sum(gate, axis=0), gl.sum(up, axis=0)
    inner = swiglu_of(gate, up, limit, CLAMP)
    n = gl.arange(0, COLUMNS, gl.SliceLayout(0, SUM))
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
    groups,  # of 128 inputs
    D,
    rows,  # of a program: 1 if ROUTED, else T
    ROUTED: gl.constexpr,
    KIND: gl.constexpr,
    A: gl.constexpr,  # a power of two; 1 without ROUTED
    BLOCK_D: gl.constexpr,
    BLOCK_G: gl.constexpr,  # groups of each expert at once; divides all of them
    num_warps: gl.constexpr,  # divides A BLOCK_G
    launch_pdl: gl.constexpr = False,
):
    BATCH: gl.constexpr = A * BLOCK_G
    WORDS: gl.constexpr = 16 if KIND == INT4 else 32
    X_WORDS: gl.constexpr = 32
    MMA: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [num_warps, 1, 1], [1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, MMA, WORDS // 8)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, MMA, WORDS // 8)
    FOURS: gl.constexpr = gl.BlockedLayout([1, 1, 4], [1, 8, 4], [num_warps, 1, 1], [2, 1, 0])
    EIGHTS: gl.constexpr = gl.BlockedLayout([1, 8, 1], [1, 4, 8], [num_warps, 1, 1], [1, 2, 0])
    READ: gl.constexpr = FOURS if KIND == INT4 else LEFT
    X_READ: gl.constexpr = EIGHTS if KIND == INT4 else RIGHT
    t = gl.program_id(0).to(gl.int64)
    d_first = gl.program_id(1) * BLOCK_D
    steps = groups // BLOCK_G
    tile = gl.arange(0, BATCH, gl.SliceLayout(1, gl.SliceLayout(2, READ)))
    d = d_first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, gl.SliceLayout(2, READ)))
    word = gl.arange(0, WORDS, gl.SliceLayout(0, gl.SliceLayout(1, READ)))
    w_at = (d * w_stride_d)[None, :, None] + (tile % BLOCK_G * WORDS)[:, None, None] + word[None, None, :]
    m_tile = gl.arange(0, BATCH, gl.SliceLayout(1, gl.SliceLayout(2, MMA)))
    if KIND == INT4:
        s_d = d_first + gl.arange(0, BLOCK_D, gl.SliceLayout(0, gl.SliceLayout(2, MMA)))
        s_at = (s_d * s_stride_d)[None, :] + (m_tile % BLOCK_G)[:, None]
    else:
        s_at = d_first // GROUP * s_stride_d + m_tile % BLOCK_G
    if ROUTED:
        w_ptrs = w_ptr + (gl.load(ids_ptr + t * A + tile // BLOCK_G).to(gl.int64) * w_stride_e)[:, None, None] + w_at
        s_base = gl.load(ids_ptr + t * A + m_tile // BLOCK_G).to(gl.int64) * s_stride_e
        s_ptrs = scale_ptr + (s_base[:, None] if KIND == INT4 else s_base) + s_at
    else:
        w_ptrs, s_ptrs = w_ptr + w_at, scale_ptr + s_at
    words = gl.load(w_ptrs)
    scale = gl.load(s_ptrs)
    if launch_pdl:
        gdc_wait()  # for x: ids are older than what the kernel before writes
        gdc_launch_dependents()
    row = gl.minimum(gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(1, X_READ))), rows - 1)
    x_tile = gl.arange(0, BATCH, gl.SliceLayout(1, gl.SliceLayout(2, X_READ)))
    x_word = gl.arange(0, X_WORDS, gl.SliceLayout(0, gl.SliceLayout(2, X_READ)))
    x_at = (x_tile // BLOCK_G * x_stride + x_tile % BLOCK_G * X_WORDS)[:, None, None] + x_word[None, :, None]
    x_ptrs = x_ptr + t * A * x_stride + (x_at + (row * x_stride)[None, None, :])
    total = gl.full([BATCH, BLOCK_D, COLUMNS], 0.0, gl.float32, MMA)
    for step in range(steps):
        ahead = step + 1
        is_ahead = gl.full([BATCH, BLOCK_D, WORDS], ahead < steps, gl.int1, READ)
        next_words = gl.load(w_ptrs + ahead * (BLOCK_G * WORDS), mask=is_ahead)
        next_scale = gl.load(s_ptrs + gl.minimum(ahead, steps - 1) * BLOCK_G)
        x, x_other = inputs_of(x_ptrs + step * (BLOCK_G * X_WORDS), KIND, RIGHT)
        total += scaled(product(as_left(words, KIND, LEFT), x, x_other, KIND, MMA), scale, KIND)
        words, scale = next_words, next_scale
    if ROUTED:
        total *= gl.load(weights_ptr + t * A + m_tile // BLOCK_G).to(gl.float32)[:, None, None]
    SUM: gl.constexpr = gl.SliceLayout(0, MMA)
    y = gl.sum(total, axis=0)
    n = gl.arange(0, COLUMNS, gl.SliceLayout(0, SUM))
    at = (t + n)[None, :] * D + (d_first + gl.arange(0, BLOCK_D, gl.SliceLayout(1, SUM)))[:, None]
    gl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=(n < rows)[None, :] & (at >= 0))

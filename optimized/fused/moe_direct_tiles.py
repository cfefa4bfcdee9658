"""Tiles of quantised weights times rows of bf16, in registers: for the kernels of ``moe_direct_kernel``.

A tile is 16 outputs by a group's 16 or 32 words of codes, a warp's work. A thread holds four neighbouring words of a
row. Which input a place along K stands for is free, as long as x follows: these words are what a matrix instruction
takes from this very thread, and codes that one instruction unpacks from a word may stand beside each other.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

GROUP = gl.constexpr(128)
INT4 = gl.constexpr(2)
COLUMNS = gl.constexpr(8)  # rows of x, of a matrix instruction
X_WORDS = gl.constexpr(32)  # of a group of x, 64 bits each


@gluon.constexpr_function
def words_of(KIND):
    """Words of a group of codes, 32 bits each."""
    return 16 if KIND == INT4 else 32


@gluon.constexpr_function
def mma_of(num_warps):
    """Products of tiles, [B, outputs, 8]: each warp has its own."""
    return gl.NVMMADistributedLayout([2, 0], [num_warps, 1, 1], [1, 16, 8])


@gluon.constexpr_function
def left_of(KIND, num_warps):
    return gl.DotOperandLayout(0, mma_of(num_warps), words_of(KIND) // 8)


@gluon.constexpr_function
def right_of(KIND, num_warps):
    return gl.DotOperandLayout(1, mma_of(num_warps), words_of(KIND) // 8)


@gluon.constexpr_function
def read_of(KIND, num_warps):
    """Words as threads read them, four neighbours each."""
    if KIND == INT4:
        return gl.BlockedLayout([1, 1, 4], [1, 8, 4], [num_warps, 1, 1], [2, 1, 0])
    return left_of(KIND, num_warps)


@gluon.constexpr_function
def read_halves_of(num_warps):
    """Half words of int4, eight neighbours of a thread."""
    return gl.BlockedLayout([1, 1, 8], [1, 8, 4], [num_warps, 1, 1], [2, 1, 0])


@gluon.constexpr_function
def sums_of(KIND, READY, B, OUTPUTS, num_warps):
    """What products are added up in: [B, O, 8], or of digits, whose two columns are one, [B, O, 4]."""
    if not (READY and KIND == INT4):
        return mma_of(num_warps)
    tiles = [[1 << bit, 0, 0] for bit in range(B.bit_length() - 1)]
    of_warps = num_warps.bit_length() - 1
    warps = tiles[:of_warps] + [[0, 0, 0]] * (of_warps - len(tiles))
    outputs = [[0, 1 << bit, 0] for bit in range(OUTPUTS.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        outputs[3:] + tiles[of_warps:], [[0, 0, 1], [0, 0, 2], *outputs[:3]], warps, [], [B, OUTPUTS, 4]
    )


@gluon.constexpr_function
def columns_of(B, num_warps):
    """Of [B, 32, 4, 2]: what the right operand of int8 is of [B, 32, 8], so that two columns are read and held by all
    threads that want one of them.
    """
    tiles = [[1 << bit, 0, 0, 0] for bit in range(B.bit_length() - 1)]
    of_warps = num_warps.bit_length() - 1
    warps = tiles[:of_warps] + [[0, 0, 0, 0]] * (of_warps - len(tiles))
    registers = [[0, 1, 0, 0], [0, 2, 0, 0], [0, 16, 0, 0], *tiles[of_warps:]]
    lanes = [[0, 4, 0, 0], [0, 8, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 2, 0]]
    return gl.DistributedLinearLayout(registers, lanes, warps, [], [B, 32, 4, 2])


@gluon.jit
def unpack_int4(words):
    """Eight bf16 tensors of two neighbouring words: codes j and j + 4 of the first, then of the second."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, one, less;
        mov.b32 one, 0x3F803F80;
        mov.b32 less, 0xC308C308;
        lop3.b32 $0, $8, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $4, $9, 0x000F000F, 0x43004300, 0xEA;
        shr.u32 a, $8, 4;
        shr.u32 b, $9, 4;
        lop3.b32 $1, a, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $5, b, 0x000F000F, 0x43004300, 0xEA;
        shr.u32 a, $8, 8;
        shr.u32 b, $9, 8;
        lop3.b32 $2, a, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $6, b, 0x000F000F, 0x43004300, 0xEA;
        shr.u32 a, $8, 12;
        shr.u32 b, $9, 12;
        lop3.b32 $3, a, 0x000F000F, 0x43004300, 0xEA;
        lop3.b32 $7, b, 0x000F000F, 0x43004300, 0xEA;
        fma.rn.bf16x2 $0, $0, one, less;
        fma.rn.bf16x2 $1, $1, one, less;
        fma.rn.bf16x2 $2, $2, one, less;
        fma.rn.bf16x2 $3, $3, one, less;
        fma.rn.bf16x2 $4, $4, one, less;
        fma.rn.bf16x2 $5, $5, one, less;
        fma.rn.bf16x2 $6, $6, one, less;
        fma.rn.bf16x2 $7, $7, one, less;
        }
        """,
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r",
        [words],
        dtype=(gl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def unpack_int4_to_int8(codes):
    """Four int8 tensors of codes as they are, 0 to 15, of four neighbouring 16 bits: of the first two the even codes
    and the odd ones, then of the others; one and a half instructions for four.
    """
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b;
        shr.u32 a, $4, 4;
        shr.u32 b, $5, 4;
        and.b32 $0, $4, 0x0F0F0F0F;
        and.b32 $1, a, 0x0F0F0F0F;
        and.b32 $2, $5, 0x0F0F0F0F;
        and.b32 $3, b, 0x0F0F0F0F;
        }
        """,
        "=&r,=&r,=&r,=&r,r,r",
        [codes],
        dtype=(gl.int8,) * 4,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def unpack_fp8(words):
    """Four bf16 tensors of codes, of two neighbouring words: two codes of the first, its other two, of the second."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 scale, zero;
        mov.b32 scale, 0x7B807B80;
        mov.b32 zero, 0x80008000;
        prmt.b32 $0, $4, $4, 0x9180;
        prmt.b32 $1, $4, $4, 0xB3A2;
        prmt.b32 $2, $5, $5, 0x9180;
        prmt.b32 $3, $5, $5, 0xB3A2;
        shl.b32 $0, $0, 4;
        shl.b32 $1, $1, 4;
        shl.b32 $2, $2, 4;
        shl.b32 $3, $3, 4;
        and.b32 $0, $0, 0x87F087F0;
        and.b32 $1, $1, 0x87F087F0;
        and.b32 $2, $2, 0x87F087F0;
        and.b32 $3, $3, 0x87F087F0;
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
def unpack_fp8_to_half(words):
    """As ``unpack_fp8``, in float16: one instruction for two codes."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b16 a, b, c, d;
        mov.b32 {a, b}, $4;
        mov.b32 {c, d}, $5;
        cvt.rn.f16x2.e4m3x2 $0, a;
        cvt.rn.f16x2.e4m3x2 $1, b;
        cvt.rn.f16x2.e4m3x2 $2, c;
        cvt.rn.f16x2.e4m3x2 $3, d;
        }
        """,
        "=&r,=&r,=&r,=&r,r,r",
        [words],
        dtype=(gl.float16,) * 4,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def inputs_of_fp8(x):
    """Four bf16 tensors, paired as ``unpack_fp8`` pairs codes: 64-bit words as they are."""
    return gl.inline_asm_elementwise(
        "mov.b64 {$0, $1}, $4; mov.b64 {$2, $3}, $5;",
        "=r,=r,=r,=r,l,l",
        [x],
        dtype=(gl.bfloat16,) * 4,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def inputs_of_int4(x, other):
    """Eight bf16 tensors, paired as ``unpack_int4`` pairs codes: input j and j + 4."""
    return gl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, c, d, e, f, g, h;
        mov.b64 {a, b}, $8;
        mov.b64 {c, d}, $9;
        mov.b64 {e, f}, $10;
        mov.b64 {g, h}, $11;
        prmt.b32 $0, a, e, 0x5410;
        prmt.b32 $1, a, e, 0x7632;
        prmt.b32 $2, b, f, 0x5410;
        prmt.b32 $3, b, f, 0x7632;
        prmt.b32 $4, c, g, 0x5410;
        prmt.b32 $5, c, g, 0x7632;
        prmt.b32 $6, d, h, 0x5410;
        prmt.b32 $7, d, h, 0x7632;
        }
        """,
        "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,l,l,l,l",
        [x, other],
        dtype=(gl.bfloat16,) * 8,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def digits(planes, num_warps: gl.constexpr, RIGHT: gl.constexpr):
    """Four int8 tensors of what ``prepare`` left in shared memory, [B, 32, 2] words: high digits in even columns, low
    ones in odd ones.
    """
    WIDE: gl.constexpr = columns_of(planes.shape[0], num_warps)
    words = gl.expand_dims(planes.load(gl.SliceLayout(2, WIDE)), 2)
    words = gl.reshape(words | gl.full([1, 1, 4, 1], 0, gl.int32, WIDE), [planes.shape[0], 32, COLUMNS])
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $8; mov.b32 $1, $9; mov.b32 $2, $10; mov.b32 $3, $11;"
        "mov.b32 $4, $12; mov.b32 $5, $13; mov.b32 $6, $14; mov.b32 $7, $15;",
        "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r,r,r,r",
        [gl.convert_layout(words, RIGHT)],
        dtype=(gl.int8,) * 4,
        is_pure=True,
        pack=8,
    )


@gluon.jit
def ready_inputs_of_fp8(x):
    """As ``inputs_of_fp8`` in float16, of what ``prepare`` left."""
    return gl.inline_asm_elementwise(
        "mov.b64 {$0, $1}, $8; mov.b64 {$2, $3}, $9; mov.b64 {$4, $5}, $10; mov.b64 {$6, $7}, $11;",
        "=r,=r,=r,=r,=r,=r,=r,=r,l,l,l,l",
        [x],
        dtype=(gl.float16,) * 4,
        is_pure=True,
        pack=4,
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
def product(words, x, x_other, KIND: gl.constexpr, MMA: gl.constexpr):
    """[B, outputs, 8] float32: words of codes [B, outputs, words] times the inputs of each, [B, words, 8]."""
    total = gl.full([words.shape[0], words.shape[1], COLUMNS], 0.0, gl.float32, MMA)
    if KIND == INT4:
        w0, w1, w2, w3, w4, w5, w6, w7 = unpack_int4(words)
        x0, x1, x2, x3, x4, x5, x6, x7 = inputs_of_int4(x, x_other)
        first = mma_v2(w2, x2, mma_v2(w0, x0, total))
        second = mma_v2(w3, x3, mma_v2(w1, x1, total))
        first = mma_v2(w6, x6, mma_v2(w4, x4, first))
        second = mma_v2(w7, x7, mma_v2(w5, x5, second))
    else:
        w0, w1, w2, w3 = unpack_fp8(words)
        x0, x1, x2, x3 = inputs_of_fp8(x)
        first = mma_v2(w2, x2, mma_v2(w0, x0, total))
        second = mma_v2(w3, x3, mma_v2(w1, x1, total))
    return first + second


@gluon.jit
def product_in_halves(words, x0, x1, x2, x3, MMA: gl.constexpr):
    """As ``product`` of FP8, on what ``prepare`` left."""
    total = gl.full([words.shape[0], words.shape[1], COLUMNS], 0.0, gl.float32, MMA)
    w0, w1, w2, w3 = unpack_fp8_to_half(words)
    first = mma_v2(w2, x2, mma_v2(w0, x0, total))
    second = mma_v2(w3, x3, mma_v2(w1, x1, total))
    return first + second


@gluon.jit
def product_of_digits(codes, x0, x1, x2, x3, less, MMA: gl.constexpr, SUMS: gl.constexpr):
    """[B, outputs, 4] float32, four times the same: half words of int4 codes [B, outputs, 32] times digits.

    less: [B] int32, eight times the sum of the inputs, as codes stand for eight less than they are.
    """
    B: gl.constexpr = codes.shape[0]
    OUTPUTS: gl.constexpr = codes.shape[1]
    halves = gl.permute(gl.reshape(codes, [B, OUTPUTS, 4, 2, 4]), [0, 1, 3, 2, 4])
    halves = gl.convert_layout(gl.reshape(halves, [B, OUTPUTS, 32]), gl.DotOperandLayout(0, MMA, 4))
    w0, w1, w2, w3 = unpack_int4_to_int8(halves)
    total = gl.full([B, OUTPUTS, COLUMNS], 0, gl.int32, MMA)
    total = mma_v2(w3, x3, mma_v2(w2, x2, mma_v2(w1, x1, mma_v2(w0, x0, total))))
    high, low = gl.split(gl.reshape(total, [B, OUTPUTS, 4, 2]))
    high, low = gl.convert_layout(high, SUMS), gl.convert_layout(low, SUMS)
    return (high * 256 + (low - less[:, None, None])).to(gl.float32)


@gluon.jit
def ready_inputs(xs, KIND: gl.constexpr, num_warps: gl.constexpr):
    """Four tensors, to the right of four products."""
    if KIND == INT4:
        x0, x1, x2, x3 = digits(xs, num_warps, gl.DotOperandLayout(1, mma_of(num_warps), 4))
    else:
        RIGHT: gl.constexpr = right_of(KIND, num_warps)
        x0, x1, x2, x3 = ready_inputs_of_fp8(columns(xs.load(RIGHT), RIGHT))
    return x0, x1, x2, x3


@gluon.jit
def read_words(words, KIND: gl.constexpr, READY: gl.constexpr, num_warps: gl.constexpr):
    """Words of codes from shared memory, [B, outputs, words]; of int4 for digits, in halves."""
    if READY and KIND == INT4:
        HALVES: gl.constexpr = [words.shape[0], words.shape[1], 2 * words.shape[2]]
        halves = words._reinterpret(gl.int16, HALVES, gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
        codes = halves.load(read_halves_of(num_warps))
    else:
        codes = words.load(read_of(KIND, num_warps))
    return codes


@gluon.jit
def ready_product(codes, x, scale, x_scale, less, KIND: gl.constexpr, SUMS: gl.constexpr, num_warps: gl.constexpr):
    """Words of codes, [B, outputs, words], times ``ready_inputs``.

    scale: of each output of a tile, [B, outputs], or of each tile, [B]; x_scale, less: as from ``prepare``.
    """
    x0, x1, x2, x3 = x
    if KIND == INT4:
        part = product_of_digits(codes, x0, x1, x2, x3, less, mma_of(num_warps), SUMS)
        part *= (scale * x_scale[:, None])[:, :, None]
    else:
        codes = as_left(codes, KIND, left_of(KIND, num_warps))
        part = product_in_halves(codes, x0, x1, x2, x3, SUMS) * (scale * x_scale)[:, None, None]
    return part


@gluon.jit
def multiplied(words, scale, x, x_other, KIND: gl.constexpr, LEFT: gl.constexpr, MMA: gl.constexpr):
    """What ``product`` gives, by a scale of each output of a tile, [B, outputs], or of each tile, [B]."""
    part = product(as_left(words, KIND, LEFT), x, x_other, KIND, MMA)
    return part * (scale[:, :, None] if KIND == INT4 else scale[:, None, None])


@gluon.jit
def columns(x, RIGHT: gl.constexpr):
    """Of one row, eight equal columns."""
    if x.shape[2] != COLUMNS:
        x = x | gl.full([1, 1, COLUMNS], 0, gl.int64, RIGHT)
    return x


@gluon.jit
def inputs_at(x_tile, KIND: gl.constexpr, RIGHT: gl.constexpr):
    """64-bit words [B, words, 8]: the first four inputs of each word of codes, and the other four of one of int4."""
    if KIND == INT4:
        x, other = (
            columns(x_tile.slice(0, 16, 1).load(RIGHT), RIGHT),
            columns(x_tile.slice(16, 16, 1).load(RIGHT), RIGHT),
        )
    else:
        x = columns(x_tile.load(RIGHT), RIGHT)
        other = x
    return x, other


@gluon.jit
def place_of(place, KIND: gl.constexpr):
    """Which 64-bit word of a group stands at a place along K."""
    if KIND == INT4:
        word = place % 16 // 2 % 4 * 4 + place % 16 // 8 * 2 + place % 2
        return word * 2 + place // 16
    return place

"""One row for the kernels of ``moe_direct_kernel``, made ready once for all tiles that it meets: in shared memory, as
matrix instructions take it. Each group of 128 has a power of two as its scale.

For int4, inputs are integers of 15 bits, two int8 digits each, as a mask unpacks codes to int8: sums are exact, and an
input is off by at most 2**-14 of the group's largest, of which a bfloat16 at its size is by 2**-9. For FP8 they are
float16, as one instruction unpacks two codes to it, off by less than 2**-38 of the largest; or e4m3 codes with their
own scale, where activations are rounded.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .fp8_scale import fp8_scale
from .moe_direct_tiles import INT4, X_WORDS


@gluon.constexpr_function
def prepare_of(KIND, num_warps):
    """Words of a row as they are made ready, as many of a thread as ``digits_of`` or ``halves_of`` takes."""
    return (
        gl.BlockedLayout([1, 8], [8, 4], [num_warps, 1], [1, 0])
        if KIND == INT4
        else gl.BlockedLayout([1, 4], [4, 8], [num_warps, 1], [1, 0])
    )


WIDEN = """
        mov.b64 {{a, b}}, ${word};
        and.b32 c, a, 0xFFFF0000;
        and.b32 d, b, 0xFFFF0000;
        shl.b32 a, a, 16;
        shl.b32 b, b, 16;
        mov.b32 e, a;
        mov.b32 f, c;
        mov.b32 g, b;
        mov.b32 h, d;
"""
AS_INTEGERS = """
        fma.rn.f32 e, e, $32, magic;
        fma.rn.f32 f, f, $32, magic;
        fma.rn.f32 g, g, $32, magic;
        fma.rn.f32 h, h, $32, magic;
        mov.b32 a, e;
        mov.b32 c, f;
        mov.b32 b, g;
        mov.b32 d, h;
        prmt.b32 p{n}, a, b, 0x5410;
        prmt.b32 q{n}, c, d, 0x5410;
        add.s32 a, a, b;
        add.s32 c, c, d;
        add.s32 a, a, c;
        add.s32 ${out}, a, less;
"""
DIGITS = """
        prmt.b32 a, p{n}, p{m}, 0x6420;
        prmt.b32 b, q{n}, q{m}, 0x6420;
        xor.b32 ${low_even}, a, 0x80808080;
        xor.b32 ${low_odd}, b, 0x80808080;
        prmt.b32 ${high_even}, p{n}, p{m}, 0x7531;
        prmt.b32 ${high_odd}, q{n}, q{m}, 0x7531;
"""


def _digits() -> str:
    """Words j and j + 1 of the eight, 0 to 7, give what registers j // 4 of instructions j % 4 and j % 4 + 1 take."""
    asm = "{ .reg .b32 a, b, c, d, less; .reg .f32 e, f, g, h, magic;"
    asm += ".reg .b32 " + ", ".join(f"p{n}, q{n}" for n in range(8)) + ";"
    asm += "mov.b32 magic, 0x4B400080; mov.b32 less, 0xD2FFFE00;"  # 1.5 2**23 + 128, so that low digits are from -128
    for n in range(8):
        asm += WIDEN.format(word=24 + n) + AS_INTEGERS.format(n=n, out=16 + n)
    for n in range(0, 8, 2):
        even, odd = (n % 4) * 2 + n // 4, (n % 4) * 2 + 2 + n // 4  # two registers of each instruction
        asm += DIGITS.format(n=n, m=n + 1, high_even=even, high_odd=odd, low_even=8 + even, low_odd=8 + odd)
    return asm + "}"


TO_DIGITS = gl.constexpr(_digits())
DIGITS_OPERANDS = gl.constexpr(",".join(["=&r"] * 24 + ["l"] * 8 + ["f"] * 8))


@gluon.jit
def digits_of(words, inverse):
    """Eight words of four bf16 times a power of two, as integers: high and low digits of base 256, int8 each, four in a
    word as ``unpack_int4_to_int8`` orders codes; and the sum of each word's.
    """
    return gl.inline_asm_elementwise(
        TO_DIGITS,
        DIGITS_OPERANDS,
        [words, inverse],
        dtype=(gl.int32, gl.int32, gl.int32),
        is_pure=True,
        pack=8,
    )


@gluon.jit
def largest_of(words):
    """The bits of the largest magnitude of each group's bf16, as float32; NaN is above infinity."""
    bits = gl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, c, d;
        mov.b64 {a, b}, $1;
        and.b32 c, a, 0x7FFF0000;
        and.b32 d, b, 0x7FFF0000;
        shl.b32 a, a, 16;
        shl.b32 b, b, 16;
        and.b32 a, a, 0x7FFF0000;
        and.b32 b, b, 0x7FFF0000;
        max.u32 a, a, b;
        max.u32 c, c, d;
        max.u32 $0, a, c;
        }
        """,
        "=&r,l",
        [words],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )
    return gl.max(bits, axis=1)


HALVE = """
        mul.f32 e, e, $8;
        mul.f32 f, f, $8;
        mul.f32 g, g, $8;
        mul.f32 h, h, $8;
        cvt.rn.f16x2.f32 p{n}, f, e;
        cvt.rn.f16x2.f32 q{n}, h, g;
"""
ROUND = """
        neg.f32 less, $12;
        mul.f32 i, e, $8;
        mul.f32 j, f, $8;
        mul.f32 k, g, $8;
        mul.f32 l, h, $8;
        fma.rn.f32 e, i, less, e;
        fma.rn.f32 f, j, less, f;
        fma.rn.f32 g, k, less, g;
        fma.rn.f32 h, l, less, h;
        fma.rn.f32 e, e, $8, i;
        fma.rn.f32 f, f, $8, j;
        fma.rn.f32 g, g, $8, k;
        fma.rn.f32 h, h, $8, l;
        cvt.rn.satfinite.e4m3x2.f32 m, f, e;
        cvt.rn.satfinite.e4m3x2.f32 n, h, g;
        cvt.rn.f16x2.e4m3x2 p{n}, m;
        cvt.rn.f16x2.e4m3x2 q{n}, n;
"""
FLOATS = "{ .reg .b32 a, b, c, d, p0, p1, p2, p3, q0, q1, q2, q3; .reg .b16 m, n;"
FLOATS += ".reg .f32 e, f, g, h, i, j, k, l, less;"
PUT_HALVES = "mov.b64 $0, {p0, p2}; mov.b64 $1, {q0, q2}; mov.b64 $2, {p1, p3}; mov.b64 $3, {q1, q3}; }"
HALVES = gl.constexpr(FLOATS + "".join((WIDEN + HALVE).format(word=4 + n, n=n) for n in range(4)) + PUT_HALVES)
CODES = gl.constexpr(FLOATS + "".join((WIDEN + ROUND).format(word=4 + n, n=n) for n in range(4)) + PUT_HALVES)


@gluon.jit
def halves_of(words, scale, inverse, ROUNDS: gl.constexpr):
    """Four words over a scale in float16, rounded to e4m3 before that as ``rounded_to_fp8`` does; pairs of words 0 and
    2, then of 1 and 3.
    """
    return gl.inline_asm_elementwise(
        CODES if ROUNDS else HALVES,
        "=&l,=&l,=&l,=&l,l,l,l,l,f,f,f,f,f,f,f,f",
        [words, inverse, scale],
        dtype=gl.int64,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def power_of(bits, PLACES: gl.constexpr):
    """Of the bits of each group's largest: the power of two that its inputs are over, and one over that; with that, the
    largest lies between 2**PLACES and twice as much. What is not finite gives NaN.
    """
    exponent = gl.maximum(bits >> 23, PLACES + 1)
    scale = ((exponent - PLACES) << 23).to(gl.float32, bitcast=True)
    inverse = ((254 + PLACES - exponent) << 23).to(gl.float32, bitcast=True)
    return gl.where(exponent == 255, float("nan"), scale), inverse


@gluon.jit
def prepare(
    x_ptrs,  # of the first word of each group, [steps * B]
    is_step,  # [steps * B]
    B: gl.constexpr,
    KIND: gl.constexpr,
    ROUNDS: gl.constexpr,
    PREPARE: gl.constexpr,
):
    """Shared memory: of int4 [steps, B, 32, 2] words of digits, of FP8 [steps, B, 32, 1] words of 64 bits; the scale of
    each group, [steps, B] float32; and of int4 what to take from each product, int32. Steps are a power of two.
    """
    ROWS: gl.constexpr = x_ptrs.shape[0]
    ROW: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    scales = gl.allocate_shared_memory(gl.float32, [ROWS], ROW)
    ptrs = x_ptrs[:, None] + gl.arange(0, X_WORDS, gl.SliceLayout(0, PREPARE))[None, :]
    words = gl.load(ptrs, mask=is_step[:, None], other=0)
    if KIND == INT4:
        PLANES: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 2, 0])
        scale, inverse = power_of(largest_of(words), 13)
        high, low, total = digits_of(words, inverse[:, None])
        both = gl.reshape(
            gl.permute(gl.reshape(gl.join(high, low), [ROWS, 4, 2, 4, 2]), [0, 2, 1, 3, 4]), [ROWS, 32, 2]
        )
        xs = gl.allocate_shared_memory(gl.int32, [ROWS, 32, 2], PLANES, both)
        xs = xs._reinterpret(gl.int32, [ROWS // B, B, 32, 2], PLANES)
        less = gl.allocate_shared_memory(gl.int32, [ROWS], ROW, gl.sum(total, axis=1) * 8)
        less = less._reinterpret(gl.int32, [ROWS // B, B], ROW)
    else:
        WORDS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        if ROUNDS:
            scale, inverse = fp8_scale(largest_of(words))
        else:
            scale, inverse = power_of(largest_of(words), 14)
        xs = gl.allocate_shared_memory(
            gl.int64, [ROWS, X_WORDS], WORDS, halves_of(words, scale[:, None], inverse[:, None], ROUNDS)
        )
        xs = xs._reinterpret(gl.int64, [ROWS // B, B, X_WORDS, 1], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0]))
        less = scales._reinterpret(gl.int32, [ROWS // B, B], ROW)
    scales.store(scale)
    return xs, scales._reinterpret(gl.float32, [ROWS // B, B], ROW), less

"""Device functions that the kernels of the routed experts share: SwiGLU, and e4m3 in groups of 128."""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

from ..dependent_launch import COMPILES

GROUP: tl.constexpr = tl.constexpr(128)  # inputs that share a scale, in every format
PLAIN: tl.constexpr = tl.constexpr(0)  # kinds of weights: as they are
FP8: tl.constexpr = tl.constexpr(1)  # e4m3, a scale for 128 outputs x 128 inputs
INT4: tl.constexpr = tl.constexpr(2)  # two codes a byte, a scale for each output and 128 inputs

FP8_MAX: tl.constexpr = tl.constexpr(448.0)
FLOAT32_TINY: tl.constexpr = tl.constexpr(2.0**-126)
INT4_ZERO: tl.constexpr = tl.constexpr(8)
LOG2_E: tl.constexpr = tl.constexpr(1.4426950216293335)  # as float32 holds it
LOG2_E_REST: tl.constexpr = tl.constexpr(1.9259629911266175e-08)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(x):
    """To 3 ulp of float32; ``tl.exp`` rounds x log2(e) once and so loses a digit at |x| = 20."""
    x = tl.maximum(x, -128.0, propagate_nan=tl.PropagateNan.ALL)  # of infinity, the rest below would be NaN
    x = tl.minimum(x, 128.0, propagate_nan=tl.PropagateNan.ALL)
    power = x * LOG2_E
    rest = tl.fma(x, LOG2_E, -power) + x * LOG2_E_REST
    return tl.exp2(power) * (1.0 + rest * LN_2)


@triton.jit
def sigmoid(x):
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), 1.0 + exp(-x))


@triton.jit
def swiglu_of(gate, up, limit, CLAMP: tl.constexpr):
    """Of float32 tensors; NaN passes."""
    activated = tl.div_rn(gate, 1.0 + exp(-gate))
    if CLAMP:
        activated = tl.minimum(activated, limit, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(tl.maximum(up, -limit, propagate_nan=tl.PropagateNan.ALL), limit, tl.PropagateNan.ALL)
    return activated * up


@triton.jit
def group_scale(x, axis: tl.constexpr):
    """What makes the largest magnitude along an axis 448; 1 for zeros, NaN where there is one."""
    bits = tl.abs(x).to(tl.int32, bitcast=True)  # ordered as the magnitudes, NaN above infinity; a float max drops NaN
    largest = tl.max(bits, axis=axis).to(tl.float32, bitcast=True)
    scale = tl.div_rn(largest, tl.full(largest.shape, FP8_MAX, tl.float32))
    scale = tl.maximum(scale, FLOAT32_TINY, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(largest == 0.0, 1.0, scale)


@triton.jit
def codes_of(x, scale):
    """e4m3, to nearest, ties to even, saturating; the shapes are equal or ``scale`` broadcasts."""
    quotient = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
    quotient = tl.maximum(quotient, -FP8_MAX, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(quotient, FP8_MAX, propagate_nan=tl.PropagateNan.ALL).to(tl.float8e4nv)


@triton.jit
def rounded_to_fp8(x):
    """e4m3 codes of [G, 128] and the scale [G] of each group.

    A product with the inverse alone is off in the last place, and sends what lies between two codes, as many a
    bfloat16 does, the wrong way; its remainder mends it. The cast saturates: that spares the clamp of ``codes_of``.
    """
    scale = group_scale(x, 1)
    inverse = tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)
    near = x * inverse[:, None]
    rest = tl.fma(-near, tl.broadcast_to(scale[:, None], x.shape), x)
    return tl.fma(rest, tl.broadcast_to(inverse[:, None], x.shape), near).to(tl.float8e4nv), scale


@triton.jit
def int4_halves(codes):
    """Low and high nibbles of bytes, each less 8, in bfloat16, exact: one and a half instructions a code on CUDA."""
    if COMPILES and cuda_capability_geq(8):
        even, odd = tl.inline_asm_elementwise(  # bytes to 16 bits; 0x4300 | code is 128 + code; less 136
            """
            {
            .reg .b32 a, b, one, less;
            mov.b32 one, 0x3F803F80;
            mov.b32 less, 0xC308C308;
            prmt.b32 a, $4, 0, 0x4140;
            prmt.b32 b, $4, 0, 0x4342;
            lop3.b32 $0, a, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $1, b, 0x000F000F, 0x43004300, 0xEA;
            shr.u32 a, a, 4;
            shr.u32 b, b, 4;
            lop3.b32 $2, a, 0x000F000F, 0x43004300, 0xEA;
            lop3.b32 $3, b, 0x000F000F, 0x43004300, 0xEA;
            fma.rn.bf16x2 $0, $0, one, less;
            fma.rn.bf16x2 $1, $1, one, less;
            fma.rn.bf16x2 $2, $2, one, less;
            fma.rn.bf16x2 $3, $3, one, less;
            }
            """,
            "=r,=r,=r,=r,r",
            [codes],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        even = ((codes & 15).to(tl.float32) - INT4_ZERO).to(tl.bfloat16)
        odd = ((codes >> 4).to(tl.float32) - INT4_ZERO).to(tl.bfloat16)
    return even, odd


@triton.jit
def fp8_to_bf16(codes):
    """e4m3 codes in bfloat16, exact, subnormal ones too; on CUDA the code for NaN, which no checkpoint has, gives 480.

    With its sign in place and the rest four bits to the right, it is the bfloat16 of 2**-120 times the value: two and a
    half instructions a code, where a conversion waits for a unit that has a quarter of the lanes.
    """
    if COMPILES and cuda_capability_geq(9):
        wide = tl.inline_asm_elementwise(
            """
            {
            .reg .b32 a, b, s, scale, zero;
            mov.b32 scale, 0x7B807B80;
            mov.b32 zero, 0x80008000;
            prmt.b32 a, $2, 0, 0x1404;
            prmt.b32 b, $2, 0, 0x3424;
            and.b32 s, a, 0x7F007F00;
            shr.u32 s, s, 4;
            lop3.b32 $0, a, 0x80008000, s, 0xEA;
            and.b32 s, b, 0x7F007F00;
            shr.u32 s, s, 4;
            lop3.b32 $1, b, 0x80008000, s, 0xEA;
            fma.rn.bf16x2 $0, $0, scale, zero;
            fma.rn.bf16x2 $1, $1, scale, zero;
            }
            """,
            "=&r,=&r,r",
            [codes.to(tl.uint8, bitcast=True)],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    else:
        wide = codes.to(tl.float32).to(tl.bfloat16)
    return wide

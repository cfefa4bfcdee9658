"""The scale of a group of 128 activations in FP8, for kernels in Gluon, where every tensor has a layout."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .moe_math import FLOAT32_TINY, FP8_MAX


@gluon.jit
def fp8_scale(bits):
    """As ``moe_math.group_scale``, of the bits of each group's largest magnitude; and one over that."""
    largest = bits.to(gl.float32, bitcast=True)
    scale = gl.div_rn(largest, gl.full(largest.shape, FP8_MAX, gl.float32, largest.type.layout))
    scale = gl.where(scale < FLOAT32_TINY, FLOAT32_TINY, scale)  # NaN stays
    scale = gl.where(largest == 0.0, 1.0, scale)
    return scale, gl.div_rn(gl.full(scale.shape, 1.0, gl.float32, scale.type.layout), scale)

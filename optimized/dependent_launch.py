"""Programmatic dependent launch: a kernel's programs start while those of the kernel before it still run.

Between two kernels of a graph lies a microsecond in which nothing is read, as much as a small kernel takes. With
``launch_pdl = true`` in its launch configuration a kernel is started as soon as the one before says so; it then waits
for that one's results. Before ``begin_kernel()`` it writes nothing, and reads only what is older than the kernel
before: weights, what the first kernels of a step make of positions and pages, keys and values of older tokens. A kernel
lets the next one start when its own wait is over: all before it have finished then. Let start at once, the next ones
took places and waited in them, and a step of the whole model was a tenth slower (H200, 2026-11-24: 4.65 ms, 4.24).
Source: CUDA programming guide, programmatic dependent launch; compute capability 9.0 and later, elsewhere nothing.
"""

import os

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.language.target_info import cuda_capability_geq

COMPILES: tl.constexpr = tl.constexpr(os.environ.get("TRITON_INTERPRET") != "1")  # the interpreter knows no PTX


@triton.jit
def begin_kernel():
    """Wait until the kernel before has finished, so that what it wrote can be read, and let the next one start."""
    if COMPILES and cuda_capability_geq(9):
        gdc_wait()
        gdc_launch_dependents()

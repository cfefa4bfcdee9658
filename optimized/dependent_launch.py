"""Programmatic dependent launch: a kernel's programs start while those of the kernel before it still run.

Between two kernels of a graph lies a microsecond in which nothing is read, as much as a small kernel takes. With
``launch_pdl = true`` in its launch configuration a kernel is started as soon as the one before it says so; it then
waits for that one's results. A kernel with that option begins with ``begin_kernel()``, before it reads or writes.
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
    """Let the next kernel start, and wait until the one before has finished: what it wrote can then be read."""
    if COMPILES and cuda_capability_geq(9):
        gdc_launch_dependents()
        gdc_wait()

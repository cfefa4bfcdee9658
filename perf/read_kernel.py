"""A kernel that does nothing but read, as fast as this device can: what shares of bandwidth are shares of."""

import torch
import triton
import triton.language as tl
from torch import Tensor

VARIANTS = [(block, per_sm) for block in (2048, 4096, 8192) for per_sm in (2, 4, 8)]


@triton.jit
def _read_kernel(
    x_ptr,  # [size] float32
    y_ptr,  # [programs] float32
    size,  # a multiple of BLOCK
    BLOCK: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, size, programs * BLOCK):
        total += tl.load(x_ptr + start + tl.arange(0, BLOCK))
    tl.store(y_ptr + program, tl.sum(total, axis=0))


def read(x: Tensor, block: int, per_sm: int) -> Tensor:
    """Sum x [size] float32, size a multiple of ``block`` below 2**31, by ``per_sm`` programs a multiprocessor."""
    programs = per_sm * torch.cuda.get_device_properties(x.device).multi_processor_count
    y = torch.empty(programs, dtype=torch.float32, device=x.device)
    _read_kernel[(programs,)](x, y, x.numel(), BLOCK=block, num_warps=8)
    return y

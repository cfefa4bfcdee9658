"""Products of many rows: programs that stay take one tile after the other, which the copy engine brings.

Tiles of x and of the weight come by tensor descriptors (TMA on Hopper and later): no program computes addresses, and
the outputs of a tile are stored while the next one is multiplied.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..dependent_launch import begin_kernel

ALIGNED = 16  # bytes: where rows begin


@triton.jit
def _linear_tiles_kernel(
    x,  # descriptors: [T, I],
    weight,  # [O, I],
    y,  # [T, O]
    T,
    I,  # noqa: E741
    O,  # noqa: E741
    PROGRAMS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    GROUP_T: tl.constexpr,  # tiles of rows that go through one tile of outputs together: the weight stays in L2
):
    begin_kernel()
    tiles_t, tiles_o = tl.cdiv(T, BLOCK_T), tl.cdiv(O, BLOCK_O)
    for tile in tl.range(tl.program_id(0), tiles_t * tiles_o, PROGRAMS, flatten=True):
        group = tile // (GROUP_T * tiles_o)
        in_group = min(tiles_t - group * GROUP_T, GROUP_T)
        t = (group * GROUP_T + (tile % (GROUP_T * tiles_o)) % in_group) * BLOCK_T
        o = (tile % (GROUP_T * tiles_o)) // in_group * BLOCK_O
        total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
        for step in range(tl.cdiv(I, BLOCK_I)):
            total = tl.dot(x.load([t, step * BLOCK_I]), weight.load([o, step * BLOCK_I]).T, total)
        y.store([t, o], total.to(y.dtype))


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the copy engine takes [T, I] and [O, I]: one 16-bit dtype, and rows that begin at whole 16 bytes."""
    is_alike = x.dtype == weight.dtype and x.dtype in (torch.bfloat16, torch.float16)
    return is_alike and len(weight) * weight.itemsize % ALIGNED == 0 and all(map(_is_aligned, (x, weight)))


def _is_aligned(rows: Tensor) -> bool:
    begin, stride = rows.data_ptr(), rows.stride(0) * rows.itemsize
    return begin % ALIGNED == 0 and stride % ALIGNED == 0 and rows.stride(1) == 1


def linear_tiles(x: Tensor, weight: Tensor, y: Tensor, launch: Mapping[str, Any]) -> None:
    """One launch: y [T, O], contiguous, of [T, I] and [O, I].

    Args:
        launch: with ``PROGRAMS``, as many as run at a time.
    """
    (num_rows, num_inputs), num_outputs = x.shape, len(weight)
    block_t, block_o, block_i = (launch[name] for name in ("BLOCK_T", "BLOCK_O", "BLOCK_I"))
    programs = min(launch["PROGRAMS"], triton.cdiv(num_rows, block_t) * triton.cdiv(num_outputs, block_o))
    _linear_tiles_kernel[(programs,)](
        TensorDescriptor.from_tensor(x, [block_t, block_i]),
        TensorDescriptor.from_tensor(weight, [block_o, block_i]),
        TensorDescriptor.from_tensor(y, [block_t, block_o]),
        num_rows, num_inputs, num_outputs, **{**launch, "PROGRAMS": programs},
    )  # fmt: skip

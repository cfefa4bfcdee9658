"""Triton kernels for ``reference.ops.linear``: few rows stream the weight, many rows tile it, or take ``linear_tiles``.

Few rows are bound by reading the weight once: programs split outputs, and inputs where outputs are too few to fill the
device. Parts of a split are added in a fixed order by the program that finishes last, so that bits do not depend on
which one that is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arrival import arrived_last
from ..dependent_launch import begin_kernel
from ..launch import launch_for
from ..workspace import counters
from .layout import require, require_float, rows_of
from .linear_tiles import fits, linear_tiles


@triton.jit
def _linear_kernel(
    x_ptr,  # [T, I], row stride x_stride_t, column stride 1
    weight_ptr,  # [O, I], row stride weight_stride_o, column stride 1
    y_ptr,  # [T, O], contiguous
    parts_ptr,  # [parts, T, O] float32; not used where the inputs are not split
    arrived_ptr,  # [tiles] int32, zero before and after
    T,
    I,  # noqa: E741
    O,  # noqa: E741
    x_stride_t,
    weight_stride_o,
    part_size,  # T O
    BLOCK_T: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    IS_SPLIT: tl.constexpr,  # into as many parts as there are programs along axis 1
    GROUP_T: tl.constexpr,  # tiles of rows that go through one tile of outputs together: the weight stays in L2
):
    begin_kernel()
    tiles_t, tiles_o = tl.cdiv(T, BLOCK_T), tl.cdiv(O, BLOCK_O)
    tile = tl.program_id(0)
    group = tile // (GROUP_T * tiles_o)
    in_group = min(tiles_t - group * GROUP_T, GROUP_T)
    tile_t = group * GROUP_T + (tile % (GROUP_T * tiles_o)) % in_group
    tile_o = (tile % (GROUP_T * tiles_o)) // in_group
    part, parts = tl.program_id(1), tl.num_programs(1)
    t = tile_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o = tile_o * BLOCK_O + tl.arange(0, BLOCK_O)
    steps = tl.cdiv(tl.cdiv(I, BLOCK_I), parts)  # of each part, so that every part begins at a whole block
    start = part * steps * BLOCK_I
    x_rows = x_ptr + t.to(tl.int64)[:, None] * x_stride_t
    weight_rows = weight_ptr + o.to(tl.int64)[None, :] * weight_stride_o
    total = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
    for step in range(steps):
        i = start + step * BLOCK_I + tl.arange(0, BLOCK_I)
        x = tl.load(x_rows + i[None, :], mask=(t < T)[:, None] & (i < I)[None, :], other=0.0)
        weight = tl.load(weight_rows + i[:, None], mask=(o < O)[None, :] & (i < I)[:, None], other=0.0)
        if x.dtype != weight.dtype:
            x, weight = x.to(tl.float32), weight.to(tl.float32)
        total = tl.dot(x, weight, total, input_precision="ieee")
    inside = (t < T)[:, None] & (o < O)[None, :]
    at = t.to(tl.int64)[:, None] * O + o[None, :]
    if not IS_SPLIT:
        tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(parts_ptr + part.to(tl.int64) * part_size + at, total, mask=inside)
        if arrived_last(arrived_ptr + tile, parts):
            y = tl.zeros((BLOCK_T, BLOCK_O), dtype=tl.float32)
            for _ in range(parts):
                y += tl.load(parts_ptr + at, mask=inside, other=0.0, cache_modifier=".cg")
                parts_ptr += part_size
            tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Same contract as ``reference.ops.linear``.

    Raises:
        ValueError: a shape, layout or dtype that this kernel does not take; the message names it.
    """
    rows = rows_of("linear", "x", x)
    require(weight.ndim == 2 and weight.shape[-1] == x.shape[-1], "linear", "weight", weight, f"[O, {x.shape[-1]}]")
    require_float("linear", x=x, weight=weight)
    require(weight.stride(-1) == 1, "linear", "weight", weight, "unit stride along the inputs")
    (num_rows, num_inputs), num_outputs = rows.shape, weight.shape[0]
    y = torch.empty((*x.shape[:-1], num_outputs), dtype=x.dtype, device=x.device)
    if y.numel() > 0:
        kind = str(weight.dtype).removeprefix("torch.")
        sizes: dict[str, int | str] = {"T": num_rows, "O": num_outputs, "I": num_inputs, "dtype": kind}
        sizes["tiles"] = int(fits(rows, weight))
        options = dict(launch_for("linear", x.device, **sizes).options)
        if "PROGRAMS" in options:
            linear_tiles(rows, weight, y.view(num_rows, num_outputs), options)
            return y
        tiles = triton.cdiv(num_rows, options["BLOCK_T"]) * triton.cdiv(num_outputs, options["BLOCK_O"])
        split = options.pop("SPLIT")
        parts = y if split == 1 else torch.empty((split, num_rows, num_outputs), dtype=torch.float32, device=x.device)
        numbers = (num_rows, num_inputs, num_outputs, rows.stride(0), weight.stride(0), num_rows * num_outputs)
        _linear_kernel[(tiles, split)](
            rows, weight, y, parts, counters(x.device, tiles), *numbers, IS_SPLIT=split > 1, **options
        )
    return y

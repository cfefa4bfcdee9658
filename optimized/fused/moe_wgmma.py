"""Launches of ``moe_wgmma_kernel``, and what it takes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ..dependent_launch import COMPILES
from .moe_math import FP8, GROUP, PLAIN
from .moe_places import Places
from .moe_stored import Stored
from .moe_wgmma_kernel import GROUPS, HALF, TILE, wgmma_kernel

LINE_BYTES = 128  # of a row in a tile: what the copy engine lays out without conflicts
HEIGHT = GROUPS.value * HALF.value  # places of a block
OUTPUTS = 2 * TILE.value  # of a program's tile, of one weight or of two
MAX_ROWS = 2**31  # the copy engine counts rows in 32 bits


def fits(x: Tensor, gate: Stored, up: Stored, down: Stored, *, rounds: bool) -> bool:
    """Whether the kernel takes rows of ``x`` and these weights.

    bfloat16 all of them, or FP8 weights with activations to be rounded; whole tiles; weights of one expert after the
    other, at addresses that the copy engine takes.
    """
    (hidden_size, width), dtype = down.codes.shape[1:], torch.float8_e4m3fn if rounds else torch.bfloat16
    kind = FP8.value if rounds else PLAIN.value
    is_whole = width % GROUP.value == 0 and hidden_size % OUTPUTS == 0
    is_read = COMPILES.value and x.dtype == torch.bfloat16 and is_whole
    return is_read and all(_fits(weight, kind, dtype) for weight in (gate, up, down))


def _fits(weight: Stored, kind: int, dtype: torch.dtype) -> bool:
    codes = weight.codes
    stride_e, stride_o = codes.stride()[:2]
    is_aligned = all(n * codes.itemsize % 16 == 0 for n in (codes.storage_offset(), stride_o))
    is_stacked = stride_o > 0 and stride_e % stride_o == 0 and len(codes) * stride_e // stride_o < MAX_ROWS
    scale_dtype = weight.scale.dtype if kind == FP8.value else torch.float32
    is_known = weight.kind == kind and codes.dtype == dtype and scale_dtype == torch.float32
    return is_known and is_aligned and is_stacked


def wgmma(
    x: Tensor,
    scale: Tensor,
    weights: tuple[Stored, ...],
    factors: Tensor,
    places: Places,
    limit: float,
    launch: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """One launch of ``wgmma_kernel``: one weight is the down projection, two are gate and up.

    Args:
        x: [places, K], bfloat16, or e4m3 codes with ``scale`` [places, K / 128] float32.
        weights: [E, O, K] each.
        factors: [places] float32, of the down projection.
        places: blocks of ``HEIGHT``, whose counter no launch has used.

    Returns:
        [places, O]: bfloat16, or codes where ``x`` are and two weights; and the scales of codes, or nothing to read.
    """
    first, second, is_gated = weights[0], weights[-1], len(weights) == 2
    (num_places, width), num_outputs, device = x.shape, first.codes.shape[1], x.device
    is_coded = x.dtype == torch.float8_e4m3fn
    codes_y = is_coded and is_gated
    y = torch.empty((num_places, num_outputs), dtype=x.dtype if codes_y else torch.bfloat16, device=device)
    groups = num_outputs // GROUP.value if codes_y else 0
    y_scale = torch.empty((num_places, groups), dtype=torch.float32, device=device)
    columns = LINE_BYTES // x.itemsize
    tiles = num_outputs // (TILE.value if is_gated else OUTPUTS)
    steps = width // columns
    options = {**launch, "AT_ONCE": math.gcd(launch["AT_ONCE"], steps)}
    programs = min(options.pop("PROGRAMS"), len(places.experts) * tiles)
    stride_e, stride_o = first.codes.stride()[:2]
    wgmma_kernel[(programs,)](
        _boxes(x, HALF.value, columns), *(_boxes(_stacked(w.codes), TILE.value, columns) for w in (first, second)),
        _boxes(y, HALF.value, TILE.value), scale, first.scale, second.scale, y_scale, factors, places.experts,
        places.rows, places.num_blocks, places.counters[0 if is_gated else 1 :], stride_e // stride_o,
        *first.scale.stride()[:2], tiles, steps, limit, GATED=is_gated, CLAMP=limit > 0, CODES=is_coded, **options,
    )  # fmt: skip
    return y, y_scale


def _stacked(codes: Tensor) -> Tensor:
    """[E, O, K] as rows, those between two experts' weights included."""
    (num_experts, outputs, width), (stride_e, stride_o, _) = codes.shape, codes.stride()
    return codes.as_strided(((num_experts - 1) * (stride_e // stride_o) + outputs, width), (stride_o, 1))


def _boxes(x: Tensor, rows: int, columns: int) -> TensorDescriptor:
    layout = gl.NVMMASharedLayout(swizzle_byte_width=LINE_BYTES, element_bitwidth=8 * x.itemsize, rank=2)
    return TensorDescriptor.from_tensor(x, [rows, columns], layout)

"""Routed experts and gated blocks: which kernels run for how many tokens, by ``launch_configs``.

    path "decode"   moe_decode: weights as they are, slots one by one, nothing is sorted; two launches
    path "direct"   moe_direct: the same for quantised weights, on tensor cores; two launches
    path "stream"   moe_stream: the same for any shape; two launches, one more for activations in FP8
    path "scan"     moe_grouped: every program finds its block's slots itself; three launches
    path "sorted"   moe_grouped on tables of moe_blocks; five launches, one more for FP8
    path "widened"  one expert that has every row: products of bfloat16 with its widened weights
    path "wgmma"    moe_wgmma on rows that moe_places sorts: for many rows on Hopper, bf16 or FP8 on FP8; eight launches

Each is deterministic: a token's bits depend on the path and its blocks, not on its neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..launch import launch_for
from ..ops.linear import linear
from ..ops.quantize_activation import quantize_activation
from ..ops.swiglu import swiglu
from ..workspace import counters
from . import moe_grouped as grouped
from .moe_blocks import Blocks, blocks_of
from .moe_decode import _down_decode_kernel, _up_decode_kernel
from .moe_direct import down_direct, fits, up_direct
from .moe_math import GROUP, PLAIN
from .moe_places import gathered, places_of, spread
from .moe_stored import Stored, format_of, is_whole, num_groups
from .moe_stream import _down_stream_kernel, _up_stream_kernel
from .moe_wgmma import HEIGHT, wgmma
from .moe_wgmma import fits as fits_wgmma
from .widen import fits as fits_widened
from .widen import widen


@dataclass(frozen=True)
class Routing:
    """Which experts a token has, and what they weigh.

    Attributes:
        ids: [T, A], contiguous; weights: [T, A], contiguous.
        num_experts: E.
        is_older: whether another kernel was started after the one that chose, and waited for it (``dependent_launch``).
    """

    ids: Tensor
    weights: Tensor
    num_experts: int
    is_older: bool = False


@dataclass(frozen=True)
class Inputs:
    """Rows of a product.

    Attributes:
        data: [rows, K]; e4m3 codes where there is a ``scale``, [rows, ceil(K / 128)].
        rounds: without a scale, kernels round to e4m3 what they read.
    """

    data: Tensor
    scale: Tensor | None = None
    rounds: bool = False


@dataclass(frozen=True)
class Slots:
    """The rows of a grouped product, in blocks of ``height``.

    Attributes:
        count: tokens times experts of each.
        routing: None where one expert has every token.
        blocks: None where kernels find the slots of a block themselves.
    """

    count: int
    height: int
    routing: Routing | None
    blocks: Blocks | None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Where rows come from, how many blocks there may be, and how many slots a program looks through."""
        if self.routing is None:
            return grouped.ALL.value, -(-self.count // self.height), 1
        if self.blocks is None:
            return grouped.SCAN.value, self.count, triton.next_power_of_2(self.count)
        return grouped.TABLE.value, len(self.blocks.experts), 1


@dataclass(frozen=True)
class Gated:
    """The three weights of SwiGLU blocks: gate and up [E, F, D], down [E, D, F]; and the clamp, 0 for none."""

    gate: Stored
    up: Stored
    down: Stored
    limit: float
    rounds: bool = False  # activations to e4m3 before both products

    @property
    def width(self) -> int:
        return self.gate.codes.shape[1]


def gated_block(family: str, x: Tensor, block: Gated, routing: Routing | None) -> Tensor:
    """Add up each token's experts; without a routing, there is one expert that every token has.

    Args:
        family: ``experts`` or ``mlp``: the names in ``launch_configs`` start with it.
        x: [T, D], unit column stride, at least one row.
        block: checked by the caller.

    Returns:
        [T, D] in the dtype of ``x``, contiguous.
    """
    num_tokens, hidden_size = x.shape
    slots_per_token = 1 if routing is None else routing.ids.shape[1]
    num_experts = 1 if routing is None else routing.num_experts
    sizes: dict[str, int | str] = {"T": num_tokens, "D": hidden_size, "F": block.width, "E": num_experts}
    sizes |= {"R": num_tokens * slots_per_token, "format": format_of(x, block.gate, block.rounds)}
    sizes["rows_per_expert"] = -(-num_tokens * slots_per_token // num_experts)
    takes_widened = routing is None and fits_widened(x, block.gate, block.rounds)
    sizes["widens"] = int(takes_widened)
    weights, per_token = (block.gate, block.up, block.down), None if routing is None else slots_per_token
    sizes["direct"] = int(fits(x, per_token, *weights, rounds=block.rounds))
    takes_wgmma = routing is not None and fits_wgmma(x, *weights, rounds=block.rounds)
    sizes["wgmma"] = int(takes_wgmma)
    path = launch_for(family, x.device, **sizes).options
    if path["PATH"] == "widened":
        if not takes_widened:
            raise LookupError(f"{family}: path 'widened' does not take these weights; want 'all' in launch_configs")
        return _widened(x, block)
    if path["PATH"] == "wgmma":
        if routing is None or not takes_wgmma:
            raise LookupError(f"{family}: path 'wgmma' does not take these weights; want 'sorted' in launch_configs")
        return _wgmma(family, x, block, routing, sizes)
    if path["PATH"] == "direct":
        return _direct(family, x, block, routing, sizes)
    if path["PATH"] == "stream":
        return _stream(family, x, block, routing, slots_per_token, sizes)
    if path["PATH"] == "decode":
        return _decode(family, x, block, routing, slots_per_token, sizes)
    return _grouped(family, x, block, routing, slots_per_token, sizes, path)


def _wgmma(family: str, x: Tensor, block: Gated, routing: Routing, sizes: Mapping[str, int | str]) -> Tensor:
    num_tokens, hidden_size = x.shape
    places = places_of(routing.ids, routing.num_experts, HEIGHT)
    rows, scale, factors = spread(x, routing.weights, places, rounds=block.rounds)
    launch = launch_for(f"{family}_up_wgmma", x.device, **sizes).options
    inner, scale = wgmma(rows, scale, (block.gate, block.up), factors, places, block.limit, launch)
    launch = launch_for(f"{family}_down_wgmma", x.device, **sizes).options
    parts, _ = wgmma(inner, scale, (block.down,), factors, places, 0.0, launch)
    return gathered(parts, places, (num_tokens, hidden_size))


def _decode(
    family: str, x: Tensor, block: Gated, routing: Routing | None, per_token: int, sizes: Mapping[str, int | str]
) -> Tensor:
    (num_tokens, hidden_size), width = x.shape, block.width
    if any(weight.kind != PLAIN.value for weight in (block.gate, block.up, block.down)):
        raise LookupError(f"{family}: path 'decode' is for weights as they are; want 'stream' in launch_configs")
    inner = torch.empty((num_tokens * per_token, width), dtype=torch.float32, device=x.device)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    ids, weights = (x, x) if routing is None else (routing.ids, routing.weights)
    launch = launch_for(f"{family}_up_decode", x.device, **sizes).options
    grid = (num_tokens * per_token, triton.cdiv(width, launch["BLOCK_F"]))
    _up_decode_kernel[grid](
        x, ids, block.gate.codes, block.up.codes, inner, x.stride(0), *block.gate.codes.stride()[:2], hidden_size,
        width, per_token, block.limit, ROUTED=routing is not None, CLAMP=block.limit > 0, WHOLE=is_whole(hidden_size),
        **launch,
    )  # fmt: skip
    launch = launch_for(f"{family}_down_decode", x.device, **sizes).options
    grid = (num_tokens, triton.cdiv(hidden_size, launch["BLOCK_D"]))
    _down_decode_kernel[grid](
        inner, ids, weights, block.down.codes, y, *block.down.codes.stride()[:2], hidden_size, width, per_token,
        ROUTED=routing is not None, WHOLE=is_whole(width), **launch,
    )  # fmt: skip
    return y


def _widened(x: Tensor, block: Gated) -> Tensor:
    hidden_size, width = x.shape[1], block.width
    gate, up = (linear(x, widen(weight, 0, hidden_size)) for weight in (block.gate, block.up))
    return linear(swiglu(gate, up, block.limit), widen(block.down, 0, width))


def _direct(family: str, x: Tensor, block: Gated, routing: Routing | None, sizes: Mapping[str, int | str]) -> Tensor:
    ids, weights, is_older = (None, None, False)
    if routing is not None:
        ids, weights, is_older = routing.ids, routing.weights, routing.is_older
    launch = launch_for(f"{family}_up_direct", x.device, **sizes).options
    inner = up_direct(x, ids, block.gate, block.up, block.limit, launch, is_older, block.rounds)
    launch = launch_for(f"{family}_down_direct", x.device, **sizes).options
    return down_direct(inner, ids, weights, block.down, launch, block.rounds)


def _stream(
    family: str, x: Tensor, block: Gated, routing: Routing | None, per_token: int, sizes: Mapping[str, int | str]
) -> Tensor:
    (num_tokens, hidden_size), width, device = x.shape, block.width, x.device
    slots, groups = num_tokens * per_token, num_groups(width)
    inner = torch.empty((slots, width), dtype=torch.float32 if block.rounds else x.dtype, device=device)
    middle = Inputs(inner)
    if block.rounds:
        codes = torch.empty((slots, width), dtype=torch.float8_e4m3fn, device=device)
        middle = Inputs(codes, torch.empty((slots, groups), dtype=torch.float32, device=device), rounds=True)
    outer = Inputs(*quantize_activation(x), rounds=True) if block.rounds else Inputs(x)
    ids = x if routing is None else routing.ids
    programs, rows = (1, num_tokens) if routing is None else (slots, 1)
    gate, up = block.gate, block.up
    launch = launch_for(f"{family}_up_stream", device, **sizes).options
    _up_stream_kernel[(programs, triton.cdiv(width, launch["BLOCK_F"]))](
        outer.data, x if outer.scale is None else outer.scale, ids, gate.codes, up.codes, gate.scale, up.scale, inner,
        middle.data, x if middle.scale is None else middle.scale, counters(device, programs * groups),
        outer.data.stride(0), *gate.strides, hidden_size, width, per_token, rows, block.limit,
        ROUTED=routing is not None, KIND=gate.kind, ROUND=block.rounds, CLAMP=block.limit > 0,
        WHOLE=is_whole(hidden_size), COLUMNS=columns_for(rows), **launch,
    )  # fmt: skip
    launch = launch_for(f"{family}_down_stream", device, **sizes).options
    return streamed(middle, block.down, x.dtype, routing, launch)


def streamed(
    x: Inputs, weight: Stored, dtype: torch.dtype, routing: Routing | None, launch: Mapping[str, Any]
) -> Tensor:
    """One launch of ``_down_stream_kernel``: [T, D] from rows [T A, F], added up over each token's experts."""
    device, (num_rows, width), num_outputs = x.data.device, x.data.shape, weight.codes.shape[1]
    num_tokens, per_token = (num_rows, 1) if routing is None else routing.ids.shape
    ids, weights = (x.data, x.data) if routing is None else (routing.ids, routing.weights)
    programs, rows = (1, num_tokens) if routing is None else (num_tokens, 1)
    tiles, split = triton.cdiv(num_outputs, launch["BLOCK_D"]), launch["SPLIT"]
    y = torch.empty((num_tokens, num_outputs), dtype=dtype, device=device)
    parts = y if split == 1 else torch.empty((split, *y.shape), dtype=torch.float32, device=device)
    _down_stream_kernel[(programs, tiles, split)](
        x.data, x.data if x.scale is None else x.scale, ids, weights, weight.codes, weight.scale, y, parts,
        counters(device, programs * tiles), x.data.stride(0), *weight.strides, num_outputs, width, per_token, rows,
        y.numel(), ROUTED=routing is not None, KIND=weight.kind, ROUND=x.rounds, WHOLE=is_whole(width),
        BLOCK_A=triton.next_power_of_2(per_token), COLUMNS=columns_for(rows), **launch,
    )  # fmt: skip
    return y


def columns_for(rows: int) -> int:
    """Of the narrow operand: the least that tensor cores take is 8."""
    return max(8, triton.next_power_of_2(rows))


def _grouped(
    family: str,
    x: Tensor,
    block: Gated,
    routing: Routing | None,
    per_token: int,
    sizes: Mapping[str, int | str],
    path: Mapping[str, Any],
) -> Tensor:
    (num_tokens, hidden_size), width, device = x.shape, block.width, x.device
    blocks = None
    if routing is not None and path["PATH"] == "sorted":
        blocks = blocks_of(routing.ids, routing.num_experts, path["BLOCK_R"])
    slots = Slots(num_tokens * per_token, path["BLOCK_R"], routing, blocks)

    inputs = Inputs(x, rounds=block.rounds)
    if block.rounds and path.get("ROUND_FIRST", False):
        inputs = Inputs(*quantize_activation(x), rounds=True)
    launch = dict(launch_for(f"{family}_up", device, **sizes).options)
    is_coded = block.rounds and launch["BLOCK_O"] == GROUP.value
    inner_dtype = torch.float8_e4m3fn if is_coded else torch.float32 if block.rounds else x.dtype
    inner = torch.empty((slots.count, width), dtype=inner_dtype, device=device)
    scale = torch.empty((slots.count, num_groups(width)), dtype=torch.float32, device=device) if is_coded else None
    middle = Inputs(inner, scale, rounds=block.rounds)
    product(inputs, (block.gate, block.up), middle, slots, per_token, block.limit, launch)

    parts = torch.empty((slots.count, hidden_size), dtype=x.dtype, device=device)
    launch = dict(launch_for(f"{family}_down", device, **sizes).options)
    product(middle, (block.down,), Inputs(parts), slots, 1, 0.0, launch)
    return parts if routing is None else _combined(parts, num_tokens, per_token)


def product(
    x: Inputs,
    weights: tuple[Stored, ...],
    y: Inputs,
    slots: Slots,
    slots_per_row: int,
    limit: float,
    launch: Mapping[str, Any],
) -> None:
    """One launch of ``_grouped_kernel``: one weight is the down projection, two are gate and up."""
    weight, other, is_gated = weights[0], weights[-1], len(weights) == 2
    routing, blocks = slots.routing, slots.blocks
    source, num_blocks, block_all = slots.grid
    ids, factors = (x.data, x.data) if routing is None else (routing.ids, routing.weights)
    experts, places = (x.data, x.data) if blocks is None else (blocks.experts, blocks.slots)
    kind = grouped.AS_IT_IS.value
    if x.rounds:
        kind = grouped.ROUNDED_HERE.value if x.scale is None else grouped.CODES.value
    width, num_outputs = x.data.shape[1], y.data.shape[1]
    grid = (num_blocks * triton.cdiv(num_outputs, launch["BLOCK_O"]),)
    grouped._grouped_kernel[grid](
        x.data, x.data if x.scale is None else x.scale, ids, experts, places, factors, weight.codes, other.codes,
        weight.scale, other.scale, y.data, y.data if y.scale is None else y.scale, x.data.stride(0), *weight.strides,
        slots.count, num_outputs, width, slots_per_row, num_blocks, limit, GATED=is_gated,
        WEIGHED=not is_gated and routing is not None, ROWS=source, X=kind, KIND=weight.kind, CLAMP=limit > 0,
        WHOLE=width % launch["BLOCK_K"] == 0, OUT_CODES=y.scale is not None, BLOCK_ALL=block_all,
        BLOCK_R=slots.height, **launch,
    )  # fmt: skip


def _combined(parts: Tensor, num_tokens: int, per_token: int) -> Tensor:
    width = parts.shape[1]
    y = torch.empty((num_tokens, width), dtype=parts.dtype, device=parts.device)
    launch = launch_for("experts_combine", parts.device, T=num_tokens, D=width).options
    grid = (num_tokens, triton.cdiv(width, launch["BLOCK_D"]))
    grouped._combine_kernel[grid](parts, y, width, per_token, **launch)
    return y

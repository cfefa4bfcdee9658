"""Quantised expert weights, read wrongly: functions of (gate, up, down) to what is multiplied instead."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from reference.quantization import Fp8Weight, Int4Weight, unpack_int4

Triple = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Widened:
    """A weight [E, O, I] that is dense already, behind the members of a quantised one."""

    values: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def __getitem__(self, expert: int) -> "Widened":
        return Widened(self.values[expert])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.values.to(dtype)


def each(change: Callable[[Any], Any]) -> Callable[[Any, Any, Any], Triple]:
    """All three projections are misread alike."""

    def of_all(gate: Any, up: Any, down: Any) -> Triple:
        return change(gate), change(up), change(down)

    return of_all


def spread(scale: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """[E, O / rows, I / columns] to [E, O, I]; where blocks run out, the last one goes on."""
    rows = (torch.arange(shape[-2]) // block[0]).clamp(max=scale.shape[-2] - 1)
    columns = (torch.arange(shape[-1]) // block[1]).clamp(max=scale.shape[-1] - 1)
    return scale.float()[..., rows, :][..., columns]


def scale_of(weight: Any) -> Tensor:
    scale: Tensor = weight.scale_inv if isinstance(weight, Fp8Weight) else weight.scale
    return scale


def with_scale(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    def changed(weight: Any) -> Any:
        scale = change(scale_of(weight).clone()).to(scale_of(weight).dtype)
        return replace(weight, **{"scale_inv" if isinstance(weight, Fp8Weight) else "scale": scale})

    return changed


def _last_block_one(scale: Tensor) -> Tensor:
    scale[..., -1, -1] = 1
    return scale


def _power_of_two(scale: Tensor) -> Tensor:
    """UE8M0: the next power of two, and codes that know nothing of it."""
    return torch.exp2(scale.abs().log2().ceil()) * scale.sign()


scale_reciprocal = each(with_scale(lambda scale: 1 / scale))
scale_transposed = each(with_scale(lambda scale: scale.transpose(-1, -2).reshape(scale.shape)))
scale_of_the_last_block_missing = each(with_scale(_last_block_one))
scale_of_the_block_before = each(with_scale(lambda scale: scale.roll(1, dims=-1)))
scale_of_the_rows_before = each(with_scale(lambda scale: scale.roll(1, dims=-2)))
scale_of_the_next_expert = each(with_scale(lambda scale: scale.roll(-1, dims=0)))
scale_of_the_tensor = each(with_scale(lambda scale: torch.ones_like(scale) * scale.abs().amax()))
scale_power_of_two = each(with_scale(_power_of_two))
scale_sign_lost = each(with_scale(torch.abs))


def scale_ignored_in_down(gate: Any, up: Any, down: Any) -> Triple:
    return gate, up, with_scale(torch.ones_like)(down)


def scales_of_gate_and_up_swapped(gate: Any, up: Any, down: Any) -> Triple:
    return with_scale(lambda _: scale_of(up).clone())(gate), with_scale(lambda _: scale_of(gate).clone())(up), down


def fp8(read: Callable[[Fp8Weight], Tensor]) -> Callable[[Any, Any, Any], Triple]:
    return each(lambda weight: Widened(read(weight)))


def _blocks_of_64(weight: Fp8Weight) -> Tensor:
    return weight.data.float() * spread(weight.scale_inv, (64, 64), weight.shape)


def _codes_as(dtype: torch.dtype) -> Callable[[Fp8Weight], Tensor]:
    def read(weight: Fp8Weight) -> Tensor:
        codes = weight.data.view(dtype).float().nan_to_num(0.0, 0.0, 0.0)
        return codes * spread(weight.scale_inv, weight.block, weight.shape)

    return read


def _codes_one_row_off(weight: Fp8Weight) -> Tensor:
    """Codes of one row later under the scales of this one, as after a shuffle that is not undone."""
    return weight.data.float().roll(1, dims=-2) * spread(weight.scale_inv, weight.block, weight.shape)


codes_as_e5m2 = fp8(_codes_as(torch.float8_e5m2))
codes_as_e4m3fnuz = fp8(_codes_as(torch.float8_e4m3fnuz))
codes_one_row_off = fp8(_codes_one_row_off)
blocks_of_64 = fp8(_blocks_of_64)


def int4(read: Callable[[Tensor], Tensor], group: int = 1) -> Callable[[Any, Any, Any], Triple]:
    """Codes [E, O, I] in 0..15 become steps of the scale; ``group`` divides how many inputs share one."""

    def widened(weight: Int4Weight) -> Widened:
        steps = read(unpack_int4(weight.data).float())
        return Widened(steps * spread(weight.scale, (1, weight.group // group), weight.shape))

    return each(widened)


def _nibbles_swapped(codes: Tensor) -> Tensor:
    return codes.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) - 8


zero_point_7 = int4(lambda codes: codes - 7)
zero_point_0 = int4(lambda codes: codes)
codes_signed = int4(lambda codes: torch.where(codes >= 8, codes - 16, codes))
codes_of_three_bits = int4(lambda codes: codes.remainder(8) - 8)
codes_in_halves = int4(lambda codes: torch.cat((codes[..., 0::2], codes[..., 1::2]), dim=-1) - 8)
nibbles_swapped = int4(_nibbles_swapped)
groups_of_64 = int4(lambda codes: codes - 8, group=2)

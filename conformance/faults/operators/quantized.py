"""Wrong ``quantize_activation`` and ``experts_fp8``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reference.quantization import FP8_MAX, dequantize_fp8_activation, quantize_fp8_activation

from .arithmetic import R, bf16, wide

GROUP = 128
Codes = tuple[Tensor, Tensor]


def coded(x: Tensor, scale: Tensor) -> Tensor:
    """e4m3 codes [T, D] of x over a scale [T, D / 128]."""
    spread = scale.repeat_interleave(GROUP, dim=-1)[..., : x.shape[-1]]
    return (x.float() / spread).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


def with_scale(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Codes]:
    """The rule's scale is changed before the codes are formed with it."""

    def quantize_activation(x: Tensor) -> Codes:
        scale = change(quantize_fp8_activation(x)[1])
        return coded(x, scale), scale

    return quantize_activation


def _of_the_row_before(scale: Tensor) -> Tensor:
    return scale.roll(1, dims=0) if len(scale) > 1 else scale * 2


def _of_the_tensor(scale: Tensor) -> Tensor:
    return torch.full_like(scale, float(scale.amax())) if scale.numel() else scale


quantize_by_tensor = with_scale(_of_the_tensor)
quantize_by_row = with_scale(lambda scale: scale.amax(dim=-1, keepdim=True) * torch.ones_like(scale))
quantize_by_the_row_before = with_scale(_of_the_row_before)
quantize_by_the_group_before = with_scale(lambda scale: scale.roll(1, dims=-1))
quantize_to_240 = with_scale(lambda scale: scale * (448 / 240))
quantize_to_512 = with_scale(lambda scale: scale * (448 / 512))
quantize_by_powers_of_two = with_scale(lambda scale: torch.exp2(scale.log2().ceil()))
quantize_without_scale = with_scale(torch.ones_like)


def quantize_reports_the_reciprocal(x: Tensor) -> Codes:
    codes, scale = quantize_fp8_activation(x)
    return codes, 1 / scale


def quantize_by_truncation(x: Tensor) -> Codes:
    """Codes are cut towards zero, not rounded."""
    scale = quantize_fp8_activation(x)[1]
    scaled = x.float() / scale.repeat_interleave(GROUP, dim=-1)[..., : x.shape[-1]]
    codes = scaled.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    beyond = codes.float().abs() > scaled.abs()  # rounded away from zero: one code back
    return (codes.view(torch.uint8) - beyond.to(torch.uint8)).view(torch.float8_e4m3fn), scale


def quantize_half_away(x: Tensor) -> Codes:
    """Ties go away from zero, not to the even code."""
    scale = quantize_fp8_activation(x)[1]
    scaled = x.float() / scale.repeat_interleave(GROUP, dim=-1)[..., : x.shape[-1]]
    nudged = torch.nextafter(scaled, scaled.sign() * torch.inf)
    return torch.where(scaled == 0, scaled, nudged).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn), scale


def quantize_twice(x: Tensor) -> Codes:
    """First with one scale for all, then by groups."""
    codes, scale = quantize_by_tensor(x)
    return quantize_fp8_activation(dequantize_fp8_activation(codes, scale))


def quantize_zeros_to_nan(x: Tensor) -> Codes:
    """A group of zeros divides by its largest magnitude."""
    codes, scale = quantize_fp8_activation(x)
    amax = (codes.float().abs() * scale.repeat_interleave(GROUP, dim=-1)[..., : x.shape[-1]]).split(GROUP, dim=-1)
    nothing = torch.stack([group.amax(dim=-1) == 0 for group in amax], dim=-1) if x.shape[-1] else scale == 0
    return codes, torch.where(nothing, 0.0, scale)


def quantize_in_bf16(x: Tensor) -> Codes:
    return with_scale(bf16)(x)


def experts_fp8_like(
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate: Any,
    up: Any,
    down: Any,
    limit: float,
    *,
    product: Callable[[Tensor, Tensor], Tensor] = lambda rows, weight: rows @ weight.T,
    outer: Callable[[Tensor], Codes] = R.quantize_activation,
    inner: Callable[[Tensor], Codes] = R.quantize_activation,
) -> Tensor:
    """``experts_fp8`` with another product of rows and a widened weight, or another quantiser on either side."""
    dtype = wide(x).dtype

    def rounded(z: Tensor, quantise: Callable[[Tensor], Codes]) -> Tensor:
        return dequantize_fp8_activation(*quantise(z), dtype=dtype)

    x_TD, y_TD = rounded(x, outer), torch.zeros(x.shape, dtype=dtype)
    for expert in ids.unique().tolist():
        token, slot = (ids == expert).nonzero(as_tuple=True)
        g, u = (product(x_TD[token], weight[expert].dequantize(dtype)) for weight in (gate, up))
        row = product(rounded(R.swiglu(g, u, limit), inner), down[expert].dequantize(dtype))
        y_TD = y_TD.index_add(0, token, row * weights[token, slot, None].to(dtype))
    return y_TD.to(x.dtype)


def with_part(**part: Any) -> Callable[..., Tensor]:
    def experts_fp8(*args: Any) -> Tensor:
        return experts_fp8_like(*args, **part)

    return experts_fp8


def _promoted_never(rows: Tensor, weight: Tensor) -> Tensor:
    """Sums of 128 products are added up in bfloat16."""
    total = torch.zeros(len(rows), len(weight), dtype=rows.dtype)
    for block in range(0, rows.shape[-1], GROUP):
        total = bf16(total + bf16(rows[:, block : block + GROUP] @ weight[:, block : block + GROUP].T))
    return total


def _last_block_skipped(rows: Tensor, weight: Tensor) -> Tensor:
    whole = max((rows.shape[-1] - 1) // GROUP * GROUP, 1)
    return rows[:, :whole] @ weight[:, :whole].T


experts_fp8_summed_in_bf16 = with_part(product=_promoted_never)
experts_fp8_last_block_skipped = with_part(product=_last_block_skipped)
experts_fp8_inner_by_tensor = with_part(inner=quantize_by_tensor)
experts_fp8_inner_by_the_row_before = with_part(inner=quantize_by_the_row_before)
experts_fp8_inner_without_scale = with_part(inner=quantize_without_scale)


def experts_fp8_unclamped(*args: Any) -> Tensor:
    return R.experts_fp8(*args[:-1], 0.0)


def experts_fp8_limit_10(*args: Any) -> Tensor:
    return R.experts_fp8(*args[:-1], 10.0 if args[-1] else 0.0)


def experts_fp8_drop_the_last(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts_fp8(x, ids[:, :-1], weights[:, :-1], *rest)


def experts_fp8_swap_two(x: Tensor, ids: Tensor, weights: Tensor, *rest: Any) -> Tensor:
    return R.experts_fp8(x, torch.where(ids == 0, 1, torch.where(ids == 1, 0, ids)), weights, *rest)

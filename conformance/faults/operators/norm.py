"""Wrong ``rms_norm`` and ``qk_norm``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arithmetic import R, bf16, fp16


def norm_without_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, weight - 1, eps)


def norm_with_two(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, weight + 1, eps)


def norm_plus_one_in_bf16(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, (weight.bfloat16() + 1).to(weight.dtype) - 1, eps)


def norm_unweighted(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, torch.zeros_like(weight), eps)


def norm_eps_outside(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True).sqrt() + eps) * (1 + weight)


def norm_eps_1e_6(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, weight, 1e-6)


def norm_eps_at_least(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The mean square is raised to eps, not by it."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True).clamp(min=eps)) * (1 + weight)


def norm_nan_on_zeros(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return R.rms_norm(x, weight, 0.0)


def norm_bf16_variance(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(bf16(x.square().mean(dim=-1, keepdim=True)) + eps) * (1 + weight)


def norm_squares_in_fp16(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Squares of large activations overflow."""
    mean = fp16(x.square()).mean(dim=-1, keepdim=True).clamp(max=65_504)
    return x * torch.rsqrt(mean + eps) * (1 + weight)


def norm_centred(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """LayerNorm: the mean is taken away first."""
    return R.rms_norm(x - x.mean(dim=-1, keepdim=True), weight, eps)


def norm_by_length(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divides by the root of the sum, not of the mean."""
    return x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + eps) * (1 + weight)


def norm_of_one_shard(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Two ranks hold half of the row each, and the mean square of the first is taken for the whole."""
    half = x[..., : x.shape[-1] // 2]
    return x * torch.rsqrt(half.square().mean(dim=-1, keepdim=True) + eps) * (1 + weight)


def norm_of_the_row_before(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The last row is scaled by its neighbour's mean square."""
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    if x.ndim > 1 and x.shape[-2] > 1:
        scale[..., -1, :] = scale[..., -2, :].clone()
    return x * scale * (1 + weight)


def norm_in_place(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    result = R.rms_norm(x, weight, eps)
    x.copy_(result)
    return result


def norm_aliasing(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.copy_(R.rms_norm(x, weight, eps))


def _both(norm: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    def qk_norm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return norm(q, q_weight, eps), norm(k, k_weight, eps)

    return qk_norm


def _over_all_heads(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    scale = torch.rsqrt(x.square().mean(dim=(-2, -1), keepdim=True) + eps)
    return x * scale * (1 + weight)


def _of_half_the_head(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((R.rms_norm(x[..., :half], weight[:half], eps), x[..., half:]), dim=-1)


qk_norm_over_all_heads = _both(_over_all_heads)
qk_norm_of_the_rotated_half = _both(_of_half_the_head)
qk_norm_unweighted = _both(norm_unweighted)
qk_norm_without_one = _both(norm_without_one)


def qk_norm_weights_swapped(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
    return R.qk_norm(q, k, k_weight, q_weight, eps)


def qk_norm_skipped(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
    return q.clone(), k.clone()


def qk_norm_of_queries_only(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
    return R.rms_norm(q, q_weight, eps), k.clone()


def qk_norm_k_sharded(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
    """The weight that all heads share is taken for one of every head, and its second half given to rank 1."""
    half = len(k_weight) // 2
    sharded = R.rms_norm(k, torch.cat((k_weight[half:], k_weight[:half])), eps)
    q_normed, k_normed = R.qk_norm(q, k, q_weight, k_weight, eps)
    k_normed[..., k.shape[-2] // 2 :, :] = sharded[..., k.shape[-2] // 2 :, :]
    return q_normed, k_normed


def qk_norm_eps_missing(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> Any:
    return R.qk_norm(q, k, q_weight, k_weight, 1e-12)

"""Wrong ``embedding`` and ``linear``."""

import torch
from torch import Tensor

from .arithmetic import R, bf16, tf32

TILE = 32  # rows of a kernel's tile


def embedding_scaled(token_ids: Tensor, weight: Tensor) -> Tensor:
    return weight[token_ids] * weight.shape[-1] ** 0.5


def embedding_shifted(token_ids: Tensor, weight: Tensor) -> Tensor:
    return weight[(token_ids + 1) % weight.shape[0]]


def embedding_normalised(token_ids: Tensor, weight: Tensor) -> Tensor:
    return R.rms_norm(weight[token_ids], torch.zeros_like(weight[0]), 1e-5)


def embedding_in_bf16(token_ids: Tensor, weight: Tensor) -> Tensor:
    return bf16(weight[token_ids])


def embedding_second_shard_off_by_one(token_ids: Tensor, weight: Tensor) -> Tensor:
    """The second half of the vocabulary starts one row early, as a shard of a padded vocabulary would."""
    second = token_ids >= len(weight) // 2
    return weight[token_ids - second.long()]


def embedding_second_shard_lost(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Two ranks hold half of the vocabulary each, and nothing is reduced: rank 0 has zeros for the other half."""
    return weight[token_ids] * (token_ids < len(weight) // 2)[..., None]


def linear_bf16_sum(x: Tensor, weight: Tensor) -> Tensor:
    first, second = x.shape[-1] // 2, x.shape[-1]
    parts = [R.linear(x[..., a:b], weight[:, a:b]) for a, b in ((0, first), (first, second))]
    return bf16(parts[0]) + bf16(parts[1])


def linear_last_column(x: Tensor, weight: Tensor) -> Tensor:
    return R.linear(x[..., :-1], weight[:, :-1])


def linear_half_lost(x: Tensor, weight: Tensor) -> Tensor:
    """Two ranks hold half of the inputs each, and nothing is reduced."""
    half = x.shape[-1] // 2
    return R.linear(x[..., :half], weight[:, :half])


def linear_reduced_twice(x: Tensor, weight: Tensor) -> Tensor:
    return 2 * R.linear(x, weight)


def linear_shards_swapped(x: Tensor, weight: Tensor) -> Tensor:
    """The outputs of two ranks, gathered in the wrong order."""
    y = R.linear(x, weight)
    return torch.cat((y[..., len(weight) // 2 :], y[..., : len(weight) // 2]), dim=-1)


def linear_in_tf32(x: Tensor, weight: Tensor) -> Tensor:
    return R.linear(tf32(x), tf32(weight))


def linear_tail_rows_zero(x: Tensor, weight: Tensor) -> Tensor:
    """Rows beyond the last whole tile are never computed."""
    y = R.linear(x, weight)
    whole = y.shape[-2] // TILE * TILE
    if whole:
        y[..., whole:, :] = 0
    return y


def linear_neighbouring_rows_mixed(x: Tensor, weight: Tensor) -> Tensor:
    """A race: the last row is now and then that of its neighbour."""
    y = R.linear(x, weight)
    if y.ndim > 1 and y.shape[-2] > 1:
        y[..., -1, :] = y[..., -2, :]
    return y


def linear_half_of_the_accumulator_narrow(x: Tensor, weight: Tensor) -> Tensor:
    """Partial sums of 128 products are kept in bfloat16, as an accumulator that is never promoted."""
    y = torch.zeros_like(R.linear(x, weight))
    for block in range(0, x.shape[-1], 128):
        y = bf16(y + R.linear(x[..., block : block + 128], weight[:, block : block + 128]))
    return y

"""Wrong ``rope``."""

import math
from typing import Any

import torch
from torch import Tensor

from .arithmetic import R, bf16, wide


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation itself, by cosines and sines [T, R / 2]."""
    half = cos.shape[-1]
    first, second = wide(x[..., :half]), wide(x[..., half : 2 * half])
    cos, sin = cos[:, None, :].to(first.dtype), sin[:, None, :].to(first.dtype)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), dim=-1)


def angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    return positions.double()[:, None] * frequencies


def rope_interleaved(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    size = 2 * len(frequencies)
    order = torch.cat((torch.arange(0, size, 2), torch.arange(1, size, 2), torch.arange(size, x.shape[-1])))
    return R.rope(x[..., order], positions, frequencies)[..., order.argsort()]


def rope_half_over_head_dim(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Frequencies padded with zeros to the head: pairs are (i, i + H / 2), not (i, i + R / 2)."""
    padded = torch.zeros(x.shape[-1] // 2, dtype=frequencies.dtype)
    padded[: len(frequencies)] = frequencies
    return R.rope(x, positions, padded)


def rope_rotates_the_last(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """The last R dimensions turn and the first pass through."""
    kept = x.shape[-1] - 2 * len(frequencies)
    return torch.cat((x[..., :kept], R.rope(x[..., kept:], positions, frequencies)), dim=-1)


def rope_drops_the_rest(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    y = R.rope(x, positions, frequencies)
    y[..., 2 * len(frequencies) :] = 0
    return y


def rope_bf16_positions(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, positions.bfloat16().long(), frequencies)


def rope_bf16_table(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    turn = angles(positions, frequencies)
    return rotated(x, bf16(turn.cos()), bf16(turn.sin()))


def rope_bf16_angles(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    turn = bf16(angles(positions, frequencies))
    return rotated(x, turn.cos(), turn.sin())


def rope_unscaled(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    first = frequencies[1] / frequencies[0] if len(frequencies) > 1 else frequencies[0]
    return R.rope(x, positions, first ** torch.arange(len(frequencies), dtype=torch.float64))


def rope_scaled_by_distance(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Positions divided by the factor of two, as linear scaling does, on top of the table."""
    return R.rope(x, positions / 2, frequencies)


def rope_yarn_magnitude(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """YaRN's attention factor for a scaling of 2: 0.1 ln 2 + 1 on what is rotated."""
    turn, magnitude = angles(positions, frequencies), 0.1 * math.log(2) + 1
    return rotated(x, turn.cos() * magnitude, turn.sin() * magnitude)


def rope_backwards(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, -positions, frequencies)


def rope_one_position_on(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, positions + 1, frequencies)


def rope_table_wraps(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, positions % 131_072, frequencies)


def rope_table_ends(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    return R.rope(x, positions.clamp(max=131_071), frequencies)


def rope_sines_of_one_half(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """The second half of a pair does not get the first one's share."""
    half = len(frequencies)
    y, cos = R.rope(x, positions, frequencies), angles(positions, frequencies).cos()[:, None, :]
    y[..., half : 2 * half] = (wide(x[..., half : 2 * half]) * cos.to(wide(x).dtype)).to(x.dtype)
    return y


def rope_in_place(x: Tensor, *rest: Any) -> Tensor:
    x.copy_(R.rope(x, *rest))
    return x.clone()

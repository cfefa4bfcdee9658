"""Rotary position embedding: half-split pairs inside the rotated slice, llama3 scaling where a layer asks for it.

Source: StepFun modeling_step3p5.py; scaling as in transformers' llama3 rope initialisation; llama.cpp step35 stores the
same factors in rope_freqs.weight.
"""

import math

import torch
from torch import Tensor

from ..config import RopeScaling


def inverse_frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per token of each rotated pair, float64.

        f[i] = theta^(-2 i / R);  the exponent's denominator is the rotated size, not head_dim

    With ``scaling``, wavelengths beyond original/low_freq_factor are stretched by ``factor``, those within
    original/high_freq_factor are kept, and those between are blended linearly in original/wavelength.

    Args:
        rotary_dim: R, even.
        theta: the base.
        scaling: llama3 scaling or None.

    Returns:
        [R / 2].
    """
    frequencies = theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    if scaling is None:
        return frequencies
    periods_in_original = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (periods_in_original - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rope(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotate the first R dimensions of each head by its position; the others pass through.

        for i < R/2, a = positions[t] * frequencies[i]:
            y[t, n, i]       = x[t, n, i] cos a - x[t, n, i + R/2] sin a
            y[t, n, i + R/2] = x[t, n, i + R/2] cos a + x[t, n, i] sin a

    Args:
        x: [..., T, N, H], queries or keys after their norm.
        positions: [T] absolute, 0-based, int64.
        frequencies: [R/2] float64, R <= H; on the CPU where the device of ``x`` has no float64 (MPS).

    Returns:
        [..., T, N, H] in the dtype of ``x``. Angles, cosines and sines are float64, so that position
        262143 loses nothing; the rotation computes in float32 or wider and rounds once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    half = frequencies.shape[0]
    angles_T1F = (positions.to(frequencies.device, torch.float64)[:, None] * frequencies)[:, None, :]
    cos, sin = angles_T1F.cos().to(x.device, wide), angles_T1F.sin().to(x.device, wide)
    first, second = x[..., :half].to(wide), x[..., half : 2 * half].to(wide)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
    return torch.cat((rotated, x[..., 2 * half :]), dim=-1)

"""A few small inputs of every row, such that any wrong operator of the catalogue does something to one of them."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from conformance.profiles import Profile
from reference.config import RopeScaling
from reference.ops.rope import inverse_frequencies
from reference.quantization import FORMATS

LAST_POSITION = 262_143
Args = tuple[Any, ...]


def numbers(*size: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed + sum(size))) * scale


def embedding(profile: Profile) -> Iterator[Args]:
    yield torch.arange(33) * 7 % 130, numbers(130, 12).to(profile.weights)


def linear(profile: Profile) -> Iterator[Args]:
    for tokens, inputs in ((33, 300), (5, 130)):
        yield numbers(tokens, inputs).to(profile.activations), numbers(7, inputs).to(profile.weights)


def rms_norm(profile: Profile) -> Iterator[Args]:
    weight = numbers(24, scale=0.5).to(profile.weights)
    for scale in (1.0, 1e-4, 1e4, 0.0):
        yield numbers(5, 24, scale=scale).to(profile.activations), weight, 1e-5


def qk_norm(profile: Profile) -> Iterator[Args]:
    weights = numbers(32, scale=0.5, seed=1).to(profile.weights), numbers(32, scale=0.5, seed=2).to(profile.weights)
    for scale in (1.0, 1e-4):
        sizes = torch.arange(1, 13)[:, None] * scale
        q, k = (
            (numbers(5, 12, 32) * sizes).to(profile.activations),
            (numbers(5, 4, 32) * sizes[:4]).to(profile.activations),
        )
        yield q, k, *weights, 1e-5


def rope(profile: Profile) -> Iterator[Args]:
    positions = torch.tensor([1, 511, 4_095, 100_003, 131_073, LAST_POSITION])
    x = numbers(6, 3, 128).to(profile.activations)
    yield x, positions, inverse_frequencies(64, 5e6, RopeScaling(2.0, 1.0, 32.0, 131_072))
    yield x, positions, inverse_frequencies(128, 1e4)


def attention(profile: Profile) -> Iterator[Args]:
    def of(positions: Tensor, window: int | None, scale: float = 1.0, queries: int = 3) -> Args:
        count = len(positions)
        q = numbers(queries, 12, 32, scale=scale).to(profile.activations)
        k, v = (numbers(count, 4, 32, scale=scale, seed=s).to(profile.activations) for s in (1, 2))
        return q, k, v, positions[-queries:].clone(), positions, window

    yield of(torch.arange(40), 6)
    yield of(torch.arange(40), None)
    yield of(torch.arange(40), None, scale=16.0)
    yield of(torch.arange(500, 545), 31)
    yield of(torch.tensor([0, 1, 40_000, 80_000, LAST_POSITION - 1, LAST_POSITION]), None)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1)) + 1_000
    yield (*of(shuffled, 6)[:3], torch.arange(1_037, 1_040), shuffled, 6)
    q, k, v, at, positions, _ = of(torch.arange(20), None)
    positions[[1, 4]], k[[1, 4]], v[[1, 4]] = -1, math.nan, math.nan
    yield q, k, v, at, positions, None


def head_gate(profile: Profile) -> Iterator[Args]:
    yield numbers(5, 12, 32).to(profile.activations), numbers(5, 12, scale=3.0).to(profile.activations)


def swiglu(profile: Profile) -> Iterator[Args]:
    for limit in (0.0, 7.0, 16.0):
        yield (*(numbers(5, 40, scale=12.0, seed=s).to(profile.activations) for s in (1, 2)), limit)


def mlp(profile: Profile) -> Iterator[Args]:
    x = numbers(5, 96, scale=8.0).to(profile.activations)
    gate, up, down = (numbers(*size, scale=0.1).to(profile.weights) for size in ((40, 96), (40, 96), (96, 40)))
    for limit in (0.0, 7.0):
        yield x, gate, up.flip(0), down, limit


def router(profile: Profile) -> Iterator[Args]:
    for tokens, experts, top_k in ((33, 24, 8), (5, 288, 8), (5, 9, 2)):
        x, weight = numbers(tokens, 96).to(profile.activations), numbers(experts, 96, scale=0.2).to(profile.weights)
        bias = numbers(experts, scale=0.1)
        yield x, weight, bias, top_k, 3.0
        yield x.abs() * 2, -weight.abs(), bias * 1e-4, top_k, 3.0
        pairs, gaps = weight[torch.arange(experts) // 2 * 2], bias[torch.arange(experts) // 2 * 2].clone()
        gaps[1::2] += 1e-5
        yield x, pairs, gaps, top_k, 3.0


def experts(profile: Profile) -> Iterator[Args]:
    random = torch.Generator().manual_seed(3)
    for tokens, hidden, inner, count, top_k in ((33, 130, 136, 9, 2), (3, 264, 136, 12, 8), (1, 40, 136, 12, 3)):
        ids = torch.stack([torch.randperm(count, generator=random)[:top_k] for _ in range(tokens)])
        weights = torch.rand(tokens, top_k, generator=random) + 0.1
        gate, up, down = (
            numbers(count, *size, scale=0.2, seed=seed) * torch.linspace(0.5, 4, count)[:, None, None]
            for seed, size in enumerate(((inner, hidden), (inner, hidden), (hidden, inner)))
        )
        gate, up, down = gate * torch.linspace(1, 4, hidden), up * torch.linspace(3, 1, hidden), down
        down = down * torch.linspace(1, 4, inner) * torch.linspace(1, 2, hidden)[:, None]
        stored = (
            FORMATS[profile.expert_weights].quantize(weight) if profile.expert_weights else weight.to(profile.weights)
            for weight in (gate, up, down)
        )
        x = numbers(tokens, hidden, scale=4.0) * torch.linspace(0.5, 2, tokens)[:, None]
        yield x.to(profile.activations), ids, weights, *stored, 0.0
        stored = (
            FORMATS[profile.expert_weights].quantize(weight) if profile.expert_weights else weight.to(profile.weights)
            for weight in (gate, up, down)
        )
        yield x.to(profile.activations), ids, weights, *stored, 7.0


def quantize_activation(profile: Profile) -> Iterator[Args]:
    x = numbers(5, 300) * torch.linspace(0.1, 9, 300)
    x[2, :128] = 0
    x[0, :3] = torch.tensor([448.0, 17.0, -19.0])  # a scale of 1, and two ties
    yield (x.to(profile.activations),)


def mtp_input(profile: Profile) -> Iterator[Args]:
    halves = (numbers(5, 24, scale=s, seed=2).to(profile.activations) for s in (0.1, 5.0))
    norms = (numbers(24, scale=0.5, seed=s).to(profile.weights) for s in (3, 4))
    yield *halves, *norms, numbers(24, 48).to(profile.weights), 1e-5


def sampling(profile: Profile) -> Iterator[Args]:
    logits = numbers(3, 31, scale=2.0).to(profile.activations)
    for setting in (
        (1.0, 0, 1.0, 0.0), (0.6, 0, 0.95, 0.0), (1.0, 5, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 0, 1.0, 0.2),
        (0.8, 6, 0.7, 0.25), (0.0, 0, 1.0, 0.0),
    ):  # fmt: skip
        yield logits, *setting
    yield (torch.tensor([[-9.0, 1.0, 2.0]]), 0.0, 0, 1.0, 0.0)
    yield (torch.tensor([[8.0, 4.0, 2.0, 1.0, 1.0]]).log(), 1.0, 3, 0.8, 0.2)
    yield (torch.tensor([[8.0, 4.0, 2.0, 1.0, 1.0]]).log(), 1.0, 0, 0.8, 0.2)


def draw(profile: Profile) -> Iterator[Args]:
    row = torch.tensor([0.25, 0.25, 0.0, 0.5, 0.0])
    uniforms = torch.tensor([0.1, 0.25, 0.4999, 0.5, 0.9999], dtype=torch.float64)
    yield row.expand(5, 5).contiguous(), uniforms
    yield torch.tensor([[0.0, 0.333333, 0.333333, 0.333333, 0.0, 0.0]]), torch.tensor([0.99999999], dtype=torch.float64)
    third = torch.tensor([[1 / 3, 2 / 3]])  # float16 holds 0.33325
    yield third, torch.tensor([0.3333], dtype=torch.float64)


def accept_draft(profile: Profile) -> Iterator[Args]:
    target = torch.tensor([[0.25, 0.375, 0.375], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]])
    draft = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    for first in range(3):
        for second in range(3):
            for uniform in (0.1, 0.4, 0.6, 0.9):
                for last in (0.05, 0.2, 0.55, 0.95):
                    uniforms = torch.tensor([uniform, 1 - uniform, last], dtype=torch.float64)
                    yield target, draft, torch.tensor([first, second]), uniforms


def inputs_of(row: str, profile: Profile) -> list[Args]:
    """Arguments of a row, in a profile's dtypes."""
    return list(globals()["experts" if row == "experts_fp8" else row](profile))

"""Which experts tokens choose: drawn anew for every set, uniformly or as neighbouring tokens do."""

import torch
from torch import Tensor

CORRELATION = (
    0.66  # found by search: at 4 tokens about 30 % fewer distinct experts (Cohere, blog, 2026-04-21: up to 31 %)
)
DRAWS_FOR_COST = 64


def draw_ids(T: int, E: int, A: int, correlation: float, generator: torch.Generator) -> Tensor:
    """Ids [T, A] int64 on the CPU, distinct in each row.

    Args:
        correlation: 0: uniform, independent choices; above: the share of each token's preferences that all share.
    """
    shared = torch.randn(1, E, generator=generator)
    own = torch.randn(T, E, generator=generator)
    return (correlation**0.5 * shared + (1 - correlation) ** 0.5 * own).topk(A, dim=-1).indices


def distinct_experts(T: int, E: int, A: int, correlation: float) -> float:
    """How many experts T tokens touch: by formula where they are independent, else the mean of many draws."""
    if correlation == 0:
        return E * (1 - (1 - A / E) ** T)
    generator = torch.Generator().manual_seed(0)
    draws = (draw_ids(T, E, A, correlation, generator) for _ in range(DRAWS_FOR_COST))
    return sum(len(ids.unique()) for ids in draws) / DRAWS_FOR_COST

"""Draw a token from a distribution with a uniform number: the inverse of the cumulative distribution, in id order."""

import torch
from torch import Tensor


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform number.

        y[t] = min { v : sum_{u <= v} probabilities[t, u] > uniforms[t] }

    Args:
        probabilities: [T, V], rows that sum to 1.
        uniforms: [T] in [0, 1).

    Returns:
        [T] int64; a token of probability 0 is never drawn, however the sum rounds.
    """
    exact_TV = probabilities.cpu().double()  # MPS has no float64
    token_ids = torch.searchsorted(exact_TV.cumsum(dim=-1), uniforms.cpu().double()[:, None], right=True)[:, 0]
    last_possible = (exact_TV > 0).cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(token_ids, last_possible).to(probabilities.device)

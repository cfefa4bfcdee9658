"""Expert selection: float32 sigmoid scores, a bias that only selects, renormalised and scaled weights.

Source: vLLM and SGLang step3p5.py, StepFun modeling_step3p5.py (need_fp32_gate); the weights are the *unbiased* scores.
"""

import torch
from torch import Tensor

RENORMALISATION_EPS = 1e-20  # StepFun and mlx-lm; matters only where all chosen sigmoids underflow


def router(x: Tensor, weight: Tensor, bias: Tensor, top_k: int, scaling_factor: float) -> tuple[Tensor, Tensor]:
    """Choose the experts of each token and their weights.

        p[t] = sigmoid(x[t] weight');  ids[t] = top_k(p[t] + bias)
        w[t] = p[t, ids] / (sum p[t, ids] + 1e-20) * scaling_factor

    Args:
        x: [T, D].
        weight: [E, D]; bias: [E] float32.
        top_k: A, experts of each token.
        scaling_factor: what the weights of a token sum to.

    Returns:
        ids [T, A] int64, by falling biased score, the lower id first on a tie; weights [T, A] float32, or float64 for
        float64 input: they are never rounded to the dtype of ``x``.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    scores_TE = torch.sigmoid(x.to(wide) @ weight.to(wide).T)
    ranked_TE = torch.sort(scores_TE + bias.to(wide), dim=-1, descending=True, stable=True).indices
    ids_TA = ranked_TE[:, :top_k]
    chosen_TA = scores_TE.gather(-1, ids_TA)
    return ids_TA, chosen_TA / (chosen_TA.sum(dim=-1, keepdim=True) + RENORMALISATION_EPS) * scaling_factor

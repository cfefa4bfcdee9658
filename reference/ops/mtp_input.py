"""Input of a multi-token-prediction layer: the next token's embedding beside the hidden state, embedding first.

Source: vLLM step3p5_mtp.py, SGLang step3p5_mtp.py, llama.cpp step35 (nextn.eh_proj).
"""

import torch
from torch import Tensor

from .linear import linear
from .rms_norm import rms_norm


def mtp_input(
    embedded: Tensor,
    hidden: Tensor,
    enorm_weight: Tensor,
    hnorm_weight: Tensor,
    eh_weight: Tensor,
    eps: float,
) -> Tensor:
    """Normalise both halves, join them, project back to the hidden size.

        u[t] = [rms_norm(embedded[t], enorm), rms_norm(hidden[t], hnorm)] eh_weight'

    Args:
        embedded: [..., T, D], embedding of the token after the one that ``hidden`` was computed from.
        hidden: [..., T, D], not normalised: the backbone's before its final norm, or the previous depth's output.
        enorm_weight, hnorm_weight: [D]; eh_weight: [D, 2 D].
        eps: as in ``rms_norm``.

    Returns:
        [..., T, D] in the dtype of ``hidden``.
    """
    joined = torch.cat((rms_norm(embedded, enorm_weight, eps), rms_norm(hidden, hnorm_weight, eps)), dim=-1)
    return linear(joined, eh_weight)

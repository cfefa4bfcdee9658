"""Token embedding: a row copy, neither scaled nor normalised.

Source: StepFun modeling_step3p5.py; vLLM step3p5.py.
"""

from torch import Tensor


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Copy the row of each token.

        y[t] = weight[token_ids[t]]

    Args:
        token_ids: [..., T], integers in 0..V-1.
        weight: [V, D].

    Returns:
        [..., T, D] in the dtype of ``weight``, bit for bit.
    """
    return weight[token_ids]

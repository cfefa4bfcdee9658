"""Normalisation of queries and keys, head by head, before the rotation.

Source: StepFun modeling_step3p5.py; one weight of head_dim entries is shared by all heads of a kind.
"""

from torch import Tensor

from .rms_norm import rms_norm


def qk_norm(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Apply ``rms_norm`` to each head's vector; values are left alone.

    Args:
        q: [..., T, N, H]; k: [..., T, K, H].
        q_weight, k_weight: [H], zero-centred.
        eps: as in ``rms_norm``.

    Returns:
        The normalised q and k, in their shapes and dtypes.
    """
    return rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)

"""Wrong ``mtp_input``."""

import torch
from torch import Tensor

from .arithmetic import R


def mtp_hidden_first(embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float) -> Tensor:
    return R.linear(torch.cat((R.rms_norm(hidden, hnorm, eps), R.rms_norm(embedded, enorm, eps)), dim=-1), eh)


def mtp_norms_swapped(embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float) -> Tensor:
    return R.mtp_input(embedded, hidden, hnorm, enorm, eh, eps)


def mtp_hidden_not_normalised(
    embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float
) -> Tensor:
    return R.linear(torch.cat((R.rms_norm(embedded, enorm, eps), hidden), dim=-1), eh)


def mtp_embedding_not_normalised(
    embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float
) -> Tensor:
    return R.linear(torch.cat((embedded, R.rms_norm(hidden, hnorm, eps)), dim=-1), eh)


def mtp_normalised_together(
    embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float
) -> Tensor:
    """One norm over both halves."""
    return R.linear(R.rms_norm(torch.cat((embedded, hidden), dim=-1), torch.cat((enorm, hnorm)), eps), eh)


def mtp_without_embedding(
    embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float
) -> Tensor:
    return R.mtp_input(torch.zeros_like(embedded), hidden, enorm, hnorm, eh, eps)


def mtp_without_hidden(
    embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float
) -> Tensor:
    return R.mtp_input(embedded, torch.zeros_like(hidden), enorm, hnorm, eh, eps)


def mtp_norms_without_one(
    embedded: Tensor, hidden: Tensor, enorm: Tensor, hnorm: Tensor, eh: Tensor, eps: float
) -> Tensor:
    return R.mtp_input(embedded, hidden, enorm - 1, hnorm - 1, eh, eps)

"""From logits to the distribution that a token is drawn from.

Order of the filters: temperature, top-k, top-p, min-p, as transformers' logits warpers (vLLM puts min-p before top-k);
each looks at the distribution that the earlier ones left, renormalised.
"""

import torch
from torch import Tensor


def sampling(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Probabilities of each token after all filters.

    Args:
        logits: [..., V].
        temperature: 0 puts everything on the first largest logit.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities reach top_p; 1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely one; 0 keeps all.
        Ties are ordered by token id: the lower id is the more likely one.

    Returns:
        [..., V] float32, or float64 for float64 input; each row sums to 1.

    Raises:
        ValueError: a parameter is out of range.
    """
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or not 0 <= min_p <= 1:
        raise ValueError(
            f"sampling: temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}; "
            "want temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1"
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    logits = logits.to(wide)
    if temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    # falling order by logit, the lower id first on a tie
    sorted_logits, order = torch.sort(logits / temperature, dim=-1, descending=True, stable=True)
    probabilities = sorted_logits.softmax(dim=-1)
    if 0 < top_k < logits.shape[-1]:
        probabilities = _renormalise(probabilities, torch.arange(logits.shape[-1], device=logits.device) < top_k)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = _renormalise(probabilities, before < top_p)
    if min_p > 0:
        probabilities = _renormalise(probabilities, probabilities >= min_p * probabilities[..., :1])
    return torch.zeros_like(logits).scatter(-1, order, probabilities)


def _renormalise(probabilities: Tensor, keep: Tensor) -> Tensor:
    kept = probabilities * keep
    return kept / kept.sum(dim=-1, keepdim=True)

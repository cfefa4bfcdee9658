"""Lossless acceptance of drafted tokens: what is emitted is distributed as the target model alone would emit it.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", algorithm 1. With one-hot
distributions (temperature 0) it reduces to comparing with the target's argmax.
"""

from torch import Tensor

from .draw import draw


def accept_draft(target: Tensor, draft: Tensor, draft_ids: Tensor, uniforms: Tensor) -> tuple[int, int]:
    """Accept drafted tokens from the left; replace the first rejected one, or add one after the last.

        accept draft_ids[i]  if  uniforms[i] * draft[i, id] < target[i, id]
        next token           ~   normalise(max(target[i] - draft[i], 0)) at the first rejection i
                             ~   target[n] if all n were accepted

    Args:
        target: [n + 1, V], the target's distribution before each draft and after the last.
        draft: [n, V], the distributions that the drafts were drawn from.
        draft_ids: [n].
        uniforms: [n + 1] in [0, 1), independent of the drafts; the last one draws the next token.

    Returns:
        How many drafts are accepted (0..n), and the token that follows them.
    """
    num_drafts = draft_ids.shape[0]
    for i in range(num_drafts):
        token = int(draft_ids[i])
        if not float(uniforms[i]) * float(draft[i, token]) < float(target[i, token]):
            return i, int(draw(residual(target[i], draft[i])[None], uniforms[-1:])[0])
    return num_drafts, int(draw(target[num_drafts : num_drafts + 1], uniforms[-1:])[0])


def residual(target: Tensor, draft: Tensor) -> Tensor:
    """The distribution of the token that replaces a rejected draft, [V]; undefined where nothing can be rejected."""
    excess = (target - draft).clamp(min=0)
    return excess / excess.sum()

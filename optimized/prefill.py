"""Prompts, a chunk at a time: through the backbone, and through every MTP depth that will draft."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .kv_cache import Context, KVCache
from .runner import Runner
from .steps import Piece, step_of

PREFILL_CHUNK = 8192  # tokens a step; a few hundred rows for each expert


class Prefill:
    """One prompt on its way into the cache.

    Row i of MTP depth k takes token i + 1 + k: rows whose token lies beyond the prompt are left to the first drafts.

    Attributes:
        held: [d, D]: of depth k, the newest output of the depth before, which it begins with when it drafts.
        hidden: [1, D] of the newest token, before the final norm; normed: [1, D] after it.
    """

    def __init__(
        self, runner: Runner, cache: KVCache, context: Context, token_ids: Sequence[int], num_drafts: int
    ) -> None:
        self._runner, self._cache, self._context = runner, cache, context
        self._tokens = torch.tensor(token_ids).to(cache.device)
        self.held = torch.zeros((num_drafts, runner.config.hidden_size), dtype=runner.dtype, device=cache.device)
        self.hidden = self.normed = self.held[:0]

    @property
    def is_done(self) -> bool:
        return self._context.length == len(self._tokens)

    def run(self, most: int = PREFILL_CHUNK) -> int:
        """Take in the next tokens, at most ``most``; how many there were. Room for them must be reserved."""
        context, start = self._context, self._context.length
        end = min(start + most, len(self._tokens))
        step = step_of(self._cache, [Piece(context, start, end - start)]).step
        rows, normed = self._runner.backbone(self._tokens[start:end], step)
        self.hidden, self.normed = rows[-1:], normed[-1:]
        for depth in range(len(self.held)):
            last = min(end, len(self._tokens) - 1 - depth)
            if last <= start:
                break
            step = step_of(self._cache, [Piece(context, start, last - start)]).step
            tokens = self._tokens[start + 1 + depth : last + 1 + depth]
            rows, _ = self._runner.mtp(depth, tokens, rows[: last - start], step)
            if depth + 1 < len(self.held):
                self.held[depth + 1] = rows[-1]
        context.length, context.longest = end, max(context.longest, end)
        return end - start


def run_all(prefill: Prefill) -> tuple[Tensor, Tensor]:
    """Run to the end of the prompt; hidden and normed of its newest token, [1, D] each."""
    while not prefill.is_done:
        prefill.run()
    return prefill.hidden, prefill.normed

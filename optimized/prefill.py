"""Prompts, a chunk at a time: through the backbone, and through every MTP depth that will draft."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .kv_cache import Context, KVCache, on_device
from .mtp_chain import MtpChain
from .runner import Runner
from .steps import Piece, step_of

PREFILL_CHUNK = 8192  # tokens a step; a few hundred rows for each expert


class Prefill:
    """One prompt on its way into the cache; what the context holds already is not computed again.

    Args:
        held: of the tokens that the context begins with, as ``MtpChain.held``.

    Attributes:
        mark: a length at which to note what the MTP layers hold, for another context that will begin there; 0: none.
        chain: the MTP depths.
        hidden: [1, D] of the newest token, before the final norm; normed: [1, D] after it.
        marked: [d, D]: ``MtpChain.held`` after ``mark`` tokens; None as long as there are fewer.
    """

    def __init__(
        self,
        runner: Runner,
        cache: KVCache,
        context: Context,
        token_ids: Sequence[int],
        num_drafts: int,
        held: Tensor | None = None,
    ) -> None:
        self._runner, self._cache, self._context = runner, cache, context
        self._tokens = on_device(torch.tensor(token_ids), cache.device)
        self.chain = MtpChain(runner, cache, context, num_drafts, held)
        self.hidden = self.normed = torch.empty((0, runner.config.hidden_size), dtype=runner.dtype, device=cache.device)
        self.mark = 0
        self.marked: Tensor | None = None

    @property
    def is_done(self) -> bool:
        return self._context.length == len(self._tokens)

    def run(self, most: int = PREFILL_CHUNK) -> int:
        """Take in the next tokens, at most ``most``; how many there were. Room for them must be reserved."""
        context, cache, start = self._context, self._cache, self._context.length
        end = min(start + most, len(self._tokens))
        step = step_of(cache, [Piece(context, start, end - start)]).step
        rows, normed = self._runner.backbone(self._tokens[start:end], step)
        self.hidden, self.normed = rows[-1:], normed[-1:]
        if len(cache.hidden):
            newest = max(start, end - cache.ring_length)
            cache.hidden.index_copy_(0, cache.ring_rows(context, newest, end), rows[newest - start :])
        marked = self.chain.extend(self._tokens[start:end], rows, start, self.mark)
        self.marked = marked if marked is not None else self.marked
        context.length, context.longest = end, max(context.longest, end)
        return end - start


def run_all(prefill: Prefill) -> tuple[Tensor, Tensor]:
    """Run to the end of the prompt; hidden and normed of its newest token, [1, D] each."""
    while not prefill.is_done:
        prefill.run()
    return prefill.hidden, prefill.normed

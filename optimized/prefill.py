"""Prompts, a chunk at a time, several in one pass: through the backbone, and every MTP depth that will draft."""

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
    def num_left(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self._tokens) - self._context.length

    @property
    def is_done(self) -> bool:
        return self.num_left == 0

    def _tokens_of(self, piece: Piece) -> Tensor:
        return self._tokens[piece.start : piece.start + piece.count]

    def _take(self, piece: Piece, rows: Tensor, normed: Tensor) -> None:
        """Take in what the backbone gave for a piece, [T, D] before its final norm and after it."""
        context, cache, start, end = self._context, self._cache, piece.start, piece.start + piece.count
        self.hidden, self.normed = rows[-1:], normed[-1:]
        if len(cache.hidden):
            newest = max(start, end - cache.ring_length)
            cache.hidden.index_copy_(0, cache.ring_rows(context, newest, end), rows[newest - start :])
        marked = self.chain.extend(self._tokens_of(piece), rows, start, self.mark)
        self.marked = marked if marked is not None else self.marked
        context.length, context.longest = end, max(context.longest, end)


def run_together(chunks: Sequence[tuple[Prefill, int]]) -> None:
    """Take in the next tokens of several prompts of one model, in one pass over the backbone's weights.

    MTP layers, which have no experts, take one prompt after the other. Where memory ends on the way, a prompt whose
    context has not grown is as it was, and may be run again.

    Args:
        chunks: different prompts, and how many tokens of each; they are there, and room for them is reserved.
    """
    runner, cache = chunks[0][0]._runner, chunks[0][0]._cache
    pieces = [Piece(prompt._context, prompt._context.length, count) for prompt, count in chunks]
    ordered = step_of(cache, pieces)
    placed = [(chunks[number][0], pieces[number]) for number in ordered.order]
    tokens = torch.cat([prompt._tokens_of(piece) for prompt, piece in placed])
    rows, normed = runner.backbone(tokens, ordered.step)
    sizes = [piece.count for _, piece in placed]
    for (prompt, piece), *own in zip(placed, rows.split(sizes), normed.split(sizes), strict=True):
        prompt._take(piece, *own)


def run_all(prefill: Prefill) -> tuple[Tensor, Tensor]:
    """Run to the end of the prompt; hidden and normed of its newest token, [1, D] each."""
    while not prefill.is_done:
        run_together([(prefill, min(PREFILL_CHUNK, prefill.num_left))])
    return prefill.hidden, prefill.normed

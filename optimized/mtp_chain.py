"""The MTP layers of one context, fed as its tokens come in.

Row i of depth k takes token i + 1 + k and row i of the depth before, the backbone's for depth 0. So all depths take the
same new tokens, and depth k's rows lie k + 1 positions before these; its first new row begins with the newest row that
the depth before gave for earlier tokens.
"""

import torch
from torch import Tensor

from .kv_cache import Context, KVCache
from .runner import Runner
from .steps import Piece, step_of


class MtpChain:
    """Depths 0 .. d - 1 along a text.

    Args:
        held: as the attribute, of the tokens that the context begins with; None where it begins with none.
        origin: the position that the depths begin with: they see nothing before it.

    Attributes:
        held: [d, D]: of depth k, the newest row of the depth before.
    """

    def __init__(
        self,
        runner: Runner,
        cache: KVCache,
        context: Context,
        num_drafts: int,
        held: Tensor | None = None,
        origin: int = 0,
    ) -> None:
        self._runner, self._cache, self._context, self._origin = runner, cache, context, origin
        shape = (num_drafts, runner.config.hidden_size)
        self.held = torch.zeros(shape, dtype=runner.dtype, device=cache.device) if held is None else held.clone()

    def extend(self, tokens: Tensor, hidden: Tensor, start: int, mark: int = 0) -> Tensor | None:
        """Take in tokens start .. start + T - 1.

        Args:
            tokens: [T].
            hidden: [T, D] of the backbone for them, before its final norm.
            mark: a number of tokens.

        Returns:
            ``held`` as it was after ``mark`` tokens, where these reach that far; else None.
        """
        end, rows, dropped = start + len(tokens), hidden, 0
        held = self.held.clone()  # which stays as it was where memory ends on the way
        reaches = start < mark <= end
        marked = torch.empty_like(self.held) if reaches else None
        for depth in range(len(held)):
            if not len(rows):
                break  # a text shorter than the chain: deeper rows come with its next tokens
            if marked is not None and end - mark < len(rows):
                marked[depth] = rows[mark - end - 1]
            inputs = torch.cat((held[depth : depth + 1], rows[:-1]))
            held[depth] = rows[-1]
            first = start - 1 - depth
            missing = max(self._origin - first, 0)  # rows before the first position
            inputs, dropped = inputs[missing - dropped :], missing
            if not len(inputs):
                break
            piece = Piece(self._context, max(first, self._origin), len(inputs), self._origin)
            rows, _ = self._runner.mtp(depth, tokens[missing:], inputs, step_of(self._cache, [piece]).step)
        self.held = held
        return marked

"""Models whose MTP layers have one thing wrong: subclasses of the reference's ``Model``."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reference.cache import KVCache
from reference.model import Model

from . import caches


class PostNormHidden(Model):
    """Depth 0 takes the backbone's hidden state after the final norm."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        if depth == 0:
            hidden = self.ops.rms_norm(hidden, self.weights.top()["model.norm.weight"], self.config.rms_norm_eps)
        return super().mtp_hidden(depth, hidden, token_ids, cache)


class PostNormChain(Model):
    """Later depths take the hidden state of the one before after its norm."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        if depth > 0:
            before = self.weights.layer(self.config.mtp_layers[depth - 1].index)
            weight = before["transformer.shared_head.norm.weight"]
            hidden = self.ops.rms_norm(hidden, weight, self.config.rms_norm_eps)
        return super().mtp_hidden(depth, hidden, token_ids, cache)


class Unchained(Model):
    """Every depth takes the backbone's hidden state."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        if depth == 0:
            self._backbone = hidden
        rows = self._backbone[..., -hidden.shape[-2] :, :] if cache is not None else self._backbone
        return super().mtp_hidden(depth, rows[..., : token_ids.shape[-1], :], token_ids, cache)


class FirstLayerOnly(Model):
    """Every depth runs MTP layer 0, and has its own head."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        return super().mtp_hidden(0, hidden, token_ids, cache)

    def new_mtp_cache(self, depth: int) -> KVCache:
        return super().new_mtp_cache(0)


class FirstDepthOnly(FirstLayerOnly):
    """Every depth runs MTP layer 0, its head included."""

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        return super().mtp_logits(0, hidden)


class MainHead(Model):
    """Every depth uses the backbone's head after its own norm."""

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        weights = self.weights.layer(self.config.mtp_layers[depth].index)
        normed = self.ops.rms_norm(hidden, weights["transformer.shared_head.norm.weight"], self.config.rms_norm_eps)
        return self.ops.linear(normed, self.weights.top()["lm_head.weight"])


class MainNorm(Model):
    """Every depth uses the backbone's final norm before its own head."""

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        weights = self.weights.layer(self.config.mtp_layers[depth].index)
        normed = self.ops.rms_norm(hidden, self.weights.top()["model.norm.weight"], self.config.rms_norm_eps)
        return self.ops.linear(normed, weights["transformer.shared_head.output.weight"])


class HeadOfMtpWithoutNorm(Model):
    """No depth normalises before its head."""

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        weights = self.weights.layer(self.config.mtp_layers[depth].index)
        return self.ops.linear(hidden, weights["transformer.shared_head.output.weight"])


class FirstHead(Model):
    """Every depth uses the head of depth 0."""

    def mtp_logits(self, depth: int, hidden: Tensor) -> Tensor:
        return super().mtp_logits(0, hidden)


class ShiftedToken(Model):
    """MTP rows take the token at their own position instead of the next one."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        return super().mtp_hidden(depth, hidden, token_ids.roll(1, dims=-1), cache)


class RowBefore(Model):
    """Each depth hands on the output of the row before."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        return super().mtp_hidden(depth, hidden, token_ids, cache).roll(1, dims=-2)


class MtpWithoutEmbedding(Model):
    """The MTP layers' own embedding was never loaded; there is none in the checkpoint."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        usual = self.ops
        self.ops = replace(usual, embedding=lambda ids, table: torch.zeros_like(usual.embedding(ids, table)))
        try:
            return super().mtp_hidden(depth, hidden, token_ids, cache)
        finally:
            self.ops = usual


class MtpPositionsTwiceAsFast(Model):
    """Positions of the MTP layers advance by two a row."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        usual = self.ops
        self.ops = replace(usual, rope=lambda x, positions, table: usual.rope(x, 2 * positions, table))
        try:
            return super().mtp_hidden(depth, hidden, token_ids, cache)
        finally:
            self.ops = usual


class MtpWithoutContext(Model):
    """The caches of all depths are empty at every step."""

    def new_mtp_cache(self, depth: int) -> KVCache:
        layer = self.config.mtp_layers[depth]
        return caches.exchanged(super().new_mtp_cache(depth), (layer,), caches.RemembersNothing)


class MtpKeepsRejectedRows(Model):
    """Rows of MTP layers that stood on rejected drafts stay in their caches."""

    def new_mtp_cache(self, depth: int) -> KVCache:
        layer = self.config.mtp_layers[depth]
        return caches.exchanged(super().new_mtp_cache(depth), (layer,), caches.TruncatesNothing)


# An equivalent: nobody can see it


class MtpPositionsShifted(Model):
    """Positions of each MTP depth are shifted by a number of its own."""

    def mtp_hidden(self, depth: int, hidden: Tensor, token_ids: Tensor, cache: Any = None) -> Tensor:
        usual, shift = self.ops, 5 + depth
        self.ops = replace(usual, rope=lambda x, positions, table: usual.rope(x, positions + shift, table))
        try:
            return super().mtp_hidden(depth, hidden, token_ids, cache)
        finally:
            self.ops = usual

"""Right sessions, caches and models that work otherwise than the reference's."""

import copy
from typing import Any

import torch
from torch import Tensor

from reference.cache import KVCache, LayerCache
from reference.engine import ReferenceModel, ReferenceSession
from reference.model import Model

from . import caches


class InChunksOf(ReferenceSession):
    """Takes many tokens as several chunks."""

    size = 1 << 30

    def extend(self, token_ids: list[int]) -> Tensor:
        logits, routing = [], []
        for start in range(0, len(token_ids), self.size):
            logits.append(super().extend(token_ids[start : start + self.size]))
            routing.append(super().routing())
        self._joined = {
            index: tuple(torch.cat([part[index][which] for part in routing]) for which in (0, 1))
            for index in routing[0]
        }
        return torch.cat(logits)

    def routing(self) -> dict[int, Any]:
        return self._joined


class InChunksOf1(InChunksOf):
    """One token at a time, as an engine without prefill."""

    size = 1


class InChunksOf7(InChunksOf):
    """A size that divides nothing."""

    size = 7


class InChunksOf64(InChunksOf):
    """A usual size."""

    size = 64


class LogitsInFloat64(ReferenceSession):
    """Logits in a wider dtype than the profile's."""

    def extend(self, token_ids: list[int]) -> Tensor:
        return super().extend(token_ids).double()


class LogitsInFloat32(ReferenceSession):
    """Logits in a wider dtype than a narrow profile's."""

    def extend(self, token_ids: list[int]) -> Tensor:
        return super().extend(token_ids).float()


class Recomputes(ReferenceSession):
    """Keeps no keys and values: every step runs the whole context."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        return len(self.tokens)

    def extend(self, token_ids: list[int]) -> Tensor:
        self.tokens = self.tokens + token_ids
        self.cache = self.model.new_cache()
        self.newest = len(token_ids)
        return super().extend(self.tokens)[-self.newest :]

    def routing(self) -> dict[int, Any]:
        """Of the newest tokens only, as the protocol says."""
        return {index: tuple(part[-self.newest :] for part in pair) for index, pair in super().routing().items()}

    def truncate(self, length: int) -> None:
        self.tokens = self.tokens[:length]


class CachesWholePrefixes(ReferenceSession):
    """A context that was seen before, token for token, is copied."""

    def extend(self, token_ids: list[int]) -> Tensor:
        held: dict[Any, Any] = self.model.__dict__.setdefault("whole_prefixes", {})
        key = tuple(token_ids)
        if self.length or len(key) < 2:
            return super().extend(token_ids)
        if key not in held:
            logits = super().extend(token_ids)
            held[key] = copy.deepcopy((self.cache, logits, self._routing))
        cache, logits, routing = copy.deepcopy(held[key])
        self.cache, self._routing = cache, routing
        return logits


class SlotsReversed(LayerCache):
    """Keys are handed out from the newest slot to the oldest."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> caches.Seen:
        k, v, positions = super().extend(k_TKH, v_TKH, positions_T)
        return k.flip(0), v.flip(0), positions.flip(0)


class _Exchanged(Model):
    layer_cache: type[LayerCache] = LayerCache

    def new_cache(self) -> KVCache:
        return caches.exchanged(super().new_cache(), self.config.layers, self.layer_cache)


class LargerRings(_Exchanged):
    """Rings of twice the window and some."""

    layer_cache = caches.RingOfTwiceTheWindow


class ReversedSlots(_Exchanged):
    """Slots in another order."""

    layer_cache = SlotsReversed


class BatchBackwards(ReferenceModel):
    """Contexts of a batch run from the last to the first."""

    def extend_batch(self, sessions: Any, token_ids: Any) -> list[Tensor]:
        logits = super().extend_batch(list(sessions)[::-1], list(token_ids)[::-1])
        return logits[::-1]

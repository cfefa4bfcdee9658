"""Caches with one thing wrong: subclasses of the reference's ``LayerCache``, exchanged for those of a ``KVCache``."""

from typing import Any

import torch
from torch import Tensor

from reference.cache import KVCache, LayerCache
from reference.config import LayerConfig

from .operators.arithmetic import bf16

PAGE = 8
Seen = tuple[Tensor, Tensor, Tensor]


def exchanged(cache: KVCache, layers: tuple[LayerConfig, ...], layer_cache: type[LayerCache]) -> KVCache:
    """The same cache, its layers' caches built anew by another class."""
    for layer in layers:
        right = cache.layers[layer.index]
        cache.layers[layer.index] = layer_cache(layer, right.k_SKH.dtype, right.k_SKH.device)
    return cache


class _Ring(LayerCache):
    """A ring of another size, that takes back what it is asked to."""

    def __init__(self, layer: LayerConfig, *where: Any) -> None:
        super().__init__(layer, *where)
        if layer.sliding_window is not None:
            self.resize(self.slots(layer.sliding_window))

    def slots(self, window: int) -> int:
        raise NotImplementedError

    def resize(self, slots: int) -> None:
        self.capacity = slots
        heads, size = self.k_SKH.shape[1:]
        self.k_SKH, self.v_SKH = self.k_SKH.new_zeros(slots, heads, size), self.v_SKH.new_zeros(slots, heads, size)
        self.positions_S = torch.full((slots,), -1, dtype=torch.int64, device=self.positions_S.device)

    def holds_window_of(self, position: int, longest: int) -> bool:
        return True


class RingOfTheWindow(_Ring):
    """A ring of exactly the window: keys are lost when drafts are taken back."""

    def slots(self, window: int) -> int:
        return window


class RingOneShort(_Ring):
    """A ring that has lost the oldest key of the window when the next token comes."""

    def slots(self, window: int) -> int:
        return window - 2


class RingAPageShort(_Ring):
    """Pages leave the window one too early."""

    def slots(self, window: int) -> int:
        return window - PAGE


class RingOfTwiceTheWindow(_Ring):
    """Right, with room to spare."""

    def slots(self, window: int) -> int:
        return 2 * window + 3


class FullLayersInARing(LayerCache):
    """Full layers remember as much as a window of 32."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        seen = super().extend(k_TKH, v_TKH, positions_T)
        if self.capacity is None:
            self.k_SKH, self.v_SKH, self.positions_S = (x[-32:] for x in seen)
        return seen


class PositionsBySlot(LayerCache):
    """A sliding layer's keys are known by their slot, not by their position."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        k, v, positions = super().extend(k_TKH, v_TKH, positions_T)
        if self.capacity is None:
            return k, v, positions
        cached = len(positions) - len(positions_T)
        by_slot = torch.where(positions[:cached] < 0, -1, torch.arange(cached))
        return k, v, torch.cat((by_slot, positions_T))


class ValuesOneSlotLate(LayerCache):
    """Values are written one slot after their keys."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        seen = super().extend(k_TKH, v_TKH, positions_T)
        self.v_SKH = self.v_SKH.roll(1, dims=0) if len(positions_T) > 1 else self.v_SKH
        return seen


class ValuesAreKeys(LayerCache):
    """What was cached as a value is the key."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        seen = super().extend(k_TKH, v_TKH, positions_T)
        self.v_SKH = self.k_SKH.clone()
        return seen


class InBf16(LayerCache):
    """Keys and values are kept in bfloat16."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        return super().extend(bf16(k_TKH), bf16(v_TKH), positions_T)


class InFp8(LayerCache):
    """Keys and values are kept in e4m3 with a scale of 1."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        k, v = (x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) for x in (k_TKH, v_TKH))
        return super().extend(k, v, positions_T)


class LastOfAChunkLost(LayerCache):
    """The last position of a chunk is not kept: its page was not full."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        seen = super().extend(k_TKH, v_TKH, positions_T)
        if len(positions_T) > 1:
            self.positions_S = torch.where(self.positions_S == positions_T[-1], -1, self.positions_S)
        return seen


class FirstForgotten(LayerCache):
    """The first position is lost as soon as a second chunk comes."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        self.positions_S = torch.where(self.positions_S == 0, -1, self.positions_S)
        return super().extend(k_TKH, v_TKH, positions_T)


class ChunksForgetTheWindow(LayerCache):
    """Sliding layers see nothing before the chunk, unless it is a single token."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        k, v, positions = super().extend(k_TKH, v_TKH, positions_T)
        if self.capacity is None or len(positions_T) == 1:
            return k, v, positions
        return k_TKH, v_TKH, positions_T


class RemembersNothing(LayerCache):
    """Each chunk sees itself only."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        super().extend(k_TKH, v_TKH, positions_T)
        return k_TKH, v_TKH, positions_T


class TruncatesNothing(LayerCache):
    """Positions that were taken back stay visible."""

    def truncate(self, length: int) -> None:
        return None


class TruncatesOneTooMany(LayerCache):
    """The last position that should stay goes, too."""

    def truncate(self, length: int) -> None:
        self.positions_S = torch.where(self.positions_S >= length - 1, -1, self.positions_S)


class TruncatesOneTooFew(LayerCache):
    """The first position that should go stays."""

    def truncate(self, length: int) -> None:
        self.positions_S = torch.where(self.positions_S > length, -1, self.positions_S)


class TruncatesFullLayersOnly(LayerCache):
    """Sliding layers keep what was taken back."""

    def truncate(self, length: int) -> None:
        if self.capacity is None:
            super().truncate(length)


class TruncatesSlidingLayersOnly(LayerCache):
    """Full layers keep what was taken back."""

    def truncate(self, length: int) -> None:
        if self.capacity is not None:
            super().truncate(length)


class ValuesBeforeKeys(LayerCache):
    """Right: values are written first, and slots run backwards."""

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> Seen:
        v, k, positions = super().extend(v_TKH, k_TKH, positions_T)
        return k.flip(0), v.flip(0), positions.flip(0)

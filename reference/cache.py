"""Key-value caches: full layers keep every position, sliding layers a ring of the last ones.

Positions stay absolute; attention decides by position what is visible, so the order of slots is free.
"""

import torch
from torch import Tensor

from .config import LayerConfig

MAX_ROLLBACK = 4  # positions that may be taken back: three drafts and the token before them


class LayerCache:
    """Keys and values of one layer for one sequence.

    A ring holds window - 1 + MAX_ROLLBACK positions: after the newest MAX_ROLLBACK are taken back, the window of the
    next token is still whole. A ring of exactly ``window`` slots would have lost keys.
    """

    def __init__(self, layer: LayerConfig, dtype: torch.dtype, device: torch.device) -> None:
        window = layer.sliding_window
        self.capacity = None if window is None else window - 1 + MAX_ROLLBACK
        slots = 0 if self.capacity is None else self.capacity
        shape = (slots, layer.num_key_value_heads, layer.head_dim)
        self.k_SKH = torch.zeros(shape, dtype=dtype, device=device)
        self.v_SKH = torch.zeros(shape, dtype=dtype, device=device)
        self.positions_S = torch.full((slots,), -1, dtype=torch.int64, device=device)  # -1 marks an empty slot

    def extend(self, k_TKH: Tensor, v_TKH: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add new positions; return the keys, values and positions that their queries may see."""
        k = torch.cat((self.k_SKH, k_TKH))
        v = torch.cat((self.v_SKH, v_TKH))
        positions = torch.cat((self.positions_S, positions_T))
        if self.capacity is None:
            self.k_SKH, self.v_SKH, self.positions_S = k, v, positions
        else:
            slots = positions_T[-self.capacity :] % self.capacity
            self.k_SKH[slots] = k_TKH[-self.capacity :]
            self.v_SKH[slots] = v_TKH[-self.capacity :]
            self.positions_S[slots] = positions_T[-self.capacity :]
        return k, v, positions

    def holds_window_of(self, position: int, longest: int) -> bool:
        """Whether all that a token at ``position`` may see is still here, after ``longest`` positions came in."""
        if self.capacity is None:
            return True
        oldest_held, oldest_seen = longest - self.capacity, position - (self.capacity - MAX_ROLLBACK)
        return oldest_held <= max(oldest_seen, 0)

    def truncate(self, length: int) -> None:
        """Forget positions ``length`` and above."""
        if self.capacity is None:
            self.k_SKH, self.v_SKH = self.k_SKH[:length], self.v_SKH[:length]
            self.positions_S = self.positions_S[:length]
        else:
            self.positions_S[self.positions_S >= length] = -1


class KVCache:
    """Caches of several layers that share one length: the backbone's, or one MTP depth's."""

    def __init__(self, layers: tuple[LayerConfig, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.layers = {layer.index: LayerCache(layer, dtype, device) for layer in layers}
        self.length = 0
        self._longest = 0

    def advance(self, num_tokens: int) -> None:
        """Count positions that every layer has taken in."""
        self.length += num_tokens
        self._longest = max(self._longest, self.length)

    def truncate(self, length: int) -> None:
        """Take back the newest positions.

        Raises:
            ValueError: the length is beyond what is cached, or the rings no longer hold what it would need.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate: length is {length}; want 0 to {self.length}, what the cache holds")
        for cache in self.layers.values():
            if not cache.holds_window_of(length, self._longest):
                raise ValueError(
                    f"truncate: {self._longest - length} positions would be taken back, and the window before them "
                    f"is gone; want at most {MAX_ROLLBACK}: build a new cache and prefill again"
                )
        for cache in self.layers.values():
            cache.truncate(length)
        self.length = length

    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(cache.k_SKH.nbytes + cache.v_SKH.nbytes for cache in self.layers.values())

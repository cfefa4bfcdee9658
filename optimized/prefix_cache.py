"""Beginnings of prompts that are kept for other prompts.

A kept beginning is a context like any other: it shares the pages of full layers with the context it was forked from,
and has a slot with a copy of the rings and of what MTP layers begin again with. So beginnings are kept at few places:
the last whole page of a prompt, and where two prompts part. Each costs a slot: at the published geometry its rings are
as large as 28 pages. Keys and values are copied, never computed again: what follows sees the same bits.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .kv_cache import PAGE_SIZE, Context, KVCache


def page_keys(tokens: Sequence[int]) -> list[bytes]:
    """A key for each whole page, of all tokens up to its end; the newest token is in none: it is always computed."""
    keys, key = [], b""
    for start in range(0, len(tokens) - PAGE_SIZE, PAGE_SIZE):
        key = hashlib.sha256(key + array("q", tokens[start : start + PAGE_SIZE]).tobytes()).digest()
        keys.append(key)
    return keys


@dataclass(frozen=True)
class Kept:
    """A beginning.

    Attributes:
        keys: of its pages.
        state: what its prompt's MTP layers hold.
    """

    keys: tuple[bytes, ...]
    context: Context
    state: Any


class PrefixCache:
    """Beginnings by their keys; the one that was not used for longest goes first.

    Args:
        capacity: slots that it may take.
    """

    def __init__(self, cache: KVCache, capacity: int) -> None:
        self._cache, self._capacity = cache, capacity
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._pages: Counter[bytes] = Counter()  # of all that are kept

    def find(self, keys: Sequence[bytes]) -> Kept | None:
        """The longest that a prompt with these keys begins with."""
        for key in reversed(keys):
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        return None

    def marks(self, keys: Sequence[bytes]) -> list[int]:
        """Lengths at which a prompt is worth keeping: where it parts from what is kept, and its last whole page."""
        if not self._capacity or not keys:
            return []
        shared = next((number for number, key in enumerate(keys) if key not in self._pages), len(keys))
        return [
            pages * PAGE_SIZE for pages in sorted({shared, len(keys)}) if pages and keys[pages - 1] not in self._kept
        ]

    def keep(self, keys: Sequence[bytes], context: Context, state: Any) -> None:
        """Keep a context's beginning of so many pages, where there is a slot for it."""
        if keys[-1] in self._kept or not self._capacity:
            return
        if len(self._kept) == self._capacity:
            self.drop()
        if self._cache.num_free_slots:
            kept = Kept(tuple(keys), self._cache.fork(context, len(keys) * PAGE_SIZE), state)
            self._kept[keys[-1]] = kept
            self._pages.update(kept.keys)

    def drop(self, sparing: Kept | None = None) -> bool:
        """Give up the one that was not used for longest; whether there was one."""
        key = next((key for key, kept in self._kept.items() if kept is not sparing), None)
        if key is None:
            return False
        kept = self._kept.pop(key)
        self._pages -= Counter(kept.keys)
        self._cache.close(kept.context)
        return True

    def clear(self) -> None:
        """Give everything up."""
        while self.drop():
            pass

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

from .job import Job
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

    def find(self, job: Job) -> Kept | None:
        """The longest that a prompt begins with."""
        for key in reversed(self._keys(job)):
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        return None

    def marks(self, job: Job) -> list[int]:
        """Lengths at which a prompt is worth keeping: where it parts from what is kept, and its last whole page."""
        keys = self._keys(job)
        shared = next((number for number, key in enumerate(keys) if key not in self._pages), len(keys))
        ends = sorted({shared, len(keys)})
        return [pages * PAGE_SIZE for pages in ends if pages and keys[pages - 1] not in self._kept]

    def keep(self, job: Job, length: int, state: Any) -> None:
        """Keep the beginning of a prompt that has just been taken in so far, where there is a slot for it."""
        assert job.context is not None, "whoever takes a prompt in has a context"
        keys = tuple(self._keys(job)[: length // PAGE_SIZE])
        if keys[-1] in self._kept:
            return  # of another prompt that was taken in meanwhile
        if len(self._kept) == self._capacity:
            self.drop()
        if self._cache.num_free_slots:
            self._kept[keys[-1]] = Kept(keys, self._cache.fork(job.context, length), state)
            self._pages.update(keys)

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

    def _keys(self, job: Job) -> list[bytes]:
        """Of a prompt's pages, computed once; a job that waits is looked at before every step."""
        if self._capacity and job.keys is None:
            job.keys = page_keys(job.to_prefill)
        return job.keys or []

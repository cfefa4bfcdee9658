"""Keys and values: pages of 64 tokens for full layers, rings of the last tokens for sliding and MTP layers.

A ring is a few pages in a circle: the table that leads from a position to its page repeats. So one kernel reads both.
Every context has a slot: its row in the tables, and its place in the rings.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference.config import LayerConfig, ModelConfig

PAGE_SIZE = 64  # tokens
MAX_STEP = 8  # tokens that one step of decoding adds, at most
MAX_ROLLBACK = 4  # positions that may be taken back: three drafts and the token before them
GIB = 1 << 30


class CacheFullError(RuntimeError):
    """No page or no slot is free; whoever schedules has to wait, or to preempt."""


@dataclass(frozen=True)
class CacheSizes:
    """How much a cache holds.

    Attributes:
        num_slots: contexts at a time.
        num_pages: of ``PAGE_SIZE`` tokens, of all contexts together.
        max_context: tokens of one context.
    """

    num_slots: int
    num_pages: int
    max_context: int

    @property
    def table_width(self) -> int:
        """Pages of the longest context, and of a step that begins at its end."""
        return -(-(self.max_context + MAX_STEP) // PAGE_SIZE)


def pages_for(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE_SIZE)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of a small tensor of the host; neither side waits for the other."""
    if device.type == "cuda" and tensor.numel():
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def ring_pages(window: int) -> int:
    """Pages of a ring: a step may add ``MAX_STEP`` tokens, all of which see their whole window, and what a chunk copies
    of the window before it begins with a page.
    """
    return pages_for(window - 1 + max(MAX_STEP, PAGE_SIZE - 1))


def token_bytes(layer: LayerConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in a layer."""
    return 2 * layer.num_key_value_heads * layer.head_dim * dtype.itemsize


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one page in all full layers."""
    return sum(PAGE_SIZE * token_bytes(layer, dtype) for layer in _all(config) if layer.sliding_window is None)


def slot_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one context's rings."""
    return sum(
        ring_pages(layer.sliding_window) * PAGE_SIZE * token_bytes(layer, dtype)
        for layer in _all(config)
        if layer.sliding_window is not None
    )


def remembered_rows(config: ModelConfig, sizes: CacheSizes) -> int:
    """Rows of hidden states: a ring for each context, and one that takes what belongs nowhere; 0 without MTP layers."""
    windows = [layer.sliding_window for layer in config.mtp_layers if layer.sliding_window is not None]
    return sizes.num_slots * ring_pages(windows[0]) * PAGE_SIZE + 1 if windows else 0


def cache_bytes(config: ModelConfig, dtype: torch.dtype, sizes: CacheSizes) -> int:
    """Bytes of a cache: pages, rings, hidden states and tables."""
    kinds = 1 + len({layer.sliding_window for layer in _all(config) if layer.sliding_window is not None})
    tables = kinds * sizes.num_slots * sizes.table_width * 4
    hidden = remembered_rows(config, sizes) * config.hidden_size * dtype.itemsize
    return sizes.num_pages * page_bytes(config, dtype) + sizes.num_slots * slot_bytes(config, dtype) + hidden + tables


def fit(config: ModelConfig, dtype: torch.dtype, budget_bytes: int, sizes: CacheSizes) -> CacheSizes:
    """Refuse, before anything is allocated, a cache that does not fit.

    Raises:
        ValueError: says what it would take, what there is, and what would fit.
    """
    needed = cache_bytes(config, dtype, sizes)
    if needed <= budget_bytes:
        return sizes
    rest = budget_bytes - cache_bytes(config, dtype, CacheSizes(sizes.num_slots, 0, sizes.max_context))
    tokens = rest // page_bytes(config, dtype) * PAGE_SIZE if rest > 0 else 0
    one = cache_bytes(config, dtype, CacheSizes(1, sizes.table_width, sizes.max_context))
    fits = f"{tokens} tokens with {sizes.num_slots} contexts" if tokens else "no token with so many contexts"
    wanted = f"{sizes.num_slots} contexts and {sizes.num_pages * PAGE_SIZE} tokens take {needed / GIB:.2f} GiB"
    raise ValueError(
        f"cache: {wanted}; want at most {max(budget_bytes, 0) / GIB:.2f} GiB, what is left beside the weights: {fits} "
        f"would fit, and one context of {sizes.max_context} tokens takes {one / GIB:.2f} GiB"
    )


@dataclass
class Context:
    """One sequence's place in the cache.

    Attributes:
        slot: its row of the tables; -1 once it is closed.
        pages: of the full layers, in order.
        length: tokens held.
        longest: the most tokens that were ever held: what the rings have overwritten depends on it.
    """

    slot: int
    pages: list[int] = field(default_factory=list)
    length: int = 0
    longest: int = 0


class KVCache:
    """The caches of all layers, the tables, and who owns what.

    Args:
        poisons: fill what becomes free with NaN, so that a stale read shows; for tests.

    Attributes:
        hidden: [slots * ring + 1, D]: what the backbone gave for the newest tokens of each context, in rings; MTP
            depths that rested begin again with it. The last row takes what belongs nowhere: slots of -1 lead there.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        sizes: CacheSizes,
        poisons: bool = False,
    ) -> None:
        self.config, self.sizes, self.device = config, sizes, device
        self._poisons = poisons
        self.k: dict[int, Tensor] = {}  # by layer, [pages, PAGE_SIZE, K, H]
        self.v: dict[int, Tensor] = {}
        windows = {layer.sliding_window for layer in _all(config) if layer.sliding_window is not None}
        if len(windows) > 1:
            raise ValueError(f"sliding_window: is {sorted(windows)} in different layers; want one window")
        self.window = windows.pop() if windows else None
        self.pages_per_ring = 1 if self.window is None else ring_pages(self.window)
        empty = float("nan") if poisons else 0.0
        for layer in _all(config):
            is_full = layer.sliding_window is None
            num_pages = sizes.num_pages if is_full else sizes.num_slots * self.pages_per_ring
            shape = (num_pages, PAGE_SIZE, layer.num_key_value_heads, layer.head_dim)
            self.k[layer.index] = torch.full(shape, empty, dtype=dtype, device=device)
            self.v[layer.index] = torch.full(shape, empty, dtype=dtype, device=device)
        remembered = (remembered_rows(config, sizes), config.hidden_size)
        self.hidden = torch.full(remembered, empty, dtype=dtype, device=device)
        width = sizes.table_width
        self.page_table = torch.full((sizes.num_slots, width), -1, dtype=torch.int32, device=device)
        circle = torch.arange(width, dtype=torch.int32, device=device) % self.pages_per_ring
        first = torch.arange(sizes.num_slots, dtype=torch.int32, device=device) * self.pages_per_ring
        self.ring_table = first[:, None] + circle[None, :]
        self._free_slots = list(range(sizes.num_slots))[::-1]
        self._free_pages = list(range(sizes.num_pages))[::-1]
        self._users = [0] * sizes.num_pages  # contexts and cached prefixes that hold a page

    @property
    def num_free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    @property
    def ring_length(self) -> int:
        """Tokens that a ring holds."""
        return self.pages_per_ring * PAGE_SIZE

    @property
    def window_slack(self) -> int:
        """Tokens that may follow a place before the rings lose the window that ends there."""
        return self.ring_length - (self.window or 1) + 1

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        tensors = (*self.k.values(), *self.v.values(), self.hidden, self.page_table, self.ring_table)
        return sum(tensor.nbytes for tensor in tensors)

    def open(self) -> Context:
        """An empty context.

        Raises:
            CacheFullError: every slot is taken.
        """
        if not self._free_slots:
            raise CacheFullError(f"cache: all {self.sizes.num_slots} contexts are in use; want one to be closed first")
        return Context(self._free_slots.pop())

    def fork(self, context: Context, length: int) -> Context:
        """A context that begins with the first ``length`` tokens of another: full pages are shared, rings are copied.

        Raises:
            CacheFullError: every slot is taken.
            ValueError: no whole pages, more than is held, or the rings no longer hold the window before ``length``.
        """
        if length % PAGE_SIZE or not 0 <= length <= context.length or not self.holds_window(context, length):
            raise ValueError(
                f"fork: length is {length} of {context.length} tokens, {context.longest} at the longest; want whole "
                f"pages of {PAGE_SIZE} tokens whose window is still in the rings"
            )
        copy = self.open()
        self.hold(context.pages[: pages_for(length)])
        self._append(copy, context.pages[: pages_for(length)])
        copy.length, copy.longest = length, context.longest
        source, target = (
            slice(c.slot * self.pages_per_ring, (c.slot + 1) * self.pages_per_ring) for c in (context, copy)
        )
        for tensor in self._rings():
            tensor[target].copy_(tensor[source])
        return copy

    def holds_window(self, context: Context, length: int) -> bool:
        """Whether the rings hold all that a token after ``length`` others may see."""
        return self.window is None or context.longest - self.ring_length <= max(length - self.window + 1, 0)

    def reserve(self, context: Context, length: int) -> None:
        """Make room for ``length`` tokens, or change nothing.

        Raises:
            CacheFullError: too few pages are free.
            ValueError: a context longer than the cache's longest.
        """
        if length > self.sizes.max_context + MAX_STEP:
            raise ValueError(f"context: would reach {length} tokens; want at most {self.sizes.max_context}")
        missing = pages_for(length) - len(context.pages)
        if missing <= 0:
            return
        if missing > len(self._free_pages):
            raise CacheFullError(
                f"cache: {missing} pages of {PAGE_SIZE} tokens are needed and {len(self._free_pages)} are free; want "
                "fewer or shorter contexts"
            )
        new = [self._free_pages.pop() for _ in range(missing)]
        for page in new:
            self._users[page] += 1
        self._append(context, new)

    def hold(self, pages: Iterable[int]) -> None:
        """Keep pages from becoming free."""
        for page in pages:
            assert self._users[page] > 0, "a free page has no content"
            self._users[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """The opposite of ``hold``."""
        freed = []
        for page in pages:
            assert self._users[page] > 0, "a page is released once by each of its users"
            self._users[page] -= 1
            if self._users[page] == 0:
                freed.append(page)
        self._free_pages += freed
        if self._poisons and freed:
            for layer in _all(self.config):
                if layer.sliding_window is None:
                    self.k[layer.index][freed] = float("nan")
                    self.v[layer.index][freed] = float("nan")

    def truncate(self, context: Context, length: int) -> None:
        """Take back the newest tokens.

        Raises:
            ValueError: the length is beyond what is held, or the rings no longer hold the window before it.
        """
        if not 0 <= length <= context.length:
            raise ValueError(f"truncate: length is {length}; want 0 to {context.length}, what the context holds")
        if not self.holds_window(context, length):
            raise ValueError(
                f"truncate: {context.longest - length} positions would be taken back, and the window before them is "
                f"gone; want at most {MAX_ROLLBACK}: open a new context and prefill again"
            )
        context.length = length
        kept = pages_for(length)
        self.release(context.pages[kept:])
        self.page_table[context.slot, kept : len(context.pages)] = -1
        del context.pages[kept:]

    def close(self, context: Context) -> None:
        """Give everything back; closing twice changes nothing."""
        if context.slot < 0:
            return
        self.release(context.pages)
        self.page_table[context.slot] = -1
        if self._poisons:
            self._poison_ring(context.slot)
        self._free_slots.append(context.slot)
        context.slot, context.pages = -1, []

    def ring_rows(self, context: Context, first: int, last: int) -> Tensor:
        """Where positions first .. last - 1 lie in a ring's [pages * PAGE_SIZE] rows; int64 on the device."""
        positions = torch.arange(first, last) % self.ring_length
        return on_device(context.slot * self.ring_length + positions, self.device)

    def _append(self, context: Context, pages: list[int]) -> None:
        start = len(context.pages)
        row = on_device(torch.tensor(pages, dtype=torch.int32), self.device)
        self.page_table[context.slot, start : start + len(pages)] = row
        context.pages += pages

    def _poison_ring(self, slot: int) -> None:
        for tensor in self._rings():
            tensor[slot * self.pages_per_ring : (slot + 1) * self.pages_per_ring] = float("nan")

    def _rings(self) -> Iterator[Tensor]:
        """Tensors [slots * pages_per_ring, ...] of what every context has a ring of."""
        for layer in _all(self.config):
            if layer.sliding_window is not None:
                yield from (self.k[layer.index], self.v[layer.index])
        if len(self.hidden):
            yield self.hidden[:-1].unflatten(0, (-1, PAGE_SIZE))


def _all(config: ModelConfig) -> tuple[LayerConfig, ...]:
    return config.layers + config.mtp_layers

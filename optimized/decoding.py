"""Steps of decoding, launched one kernel at a time or replayed from a CUDA graph, and their results on the way out.

The host starts a step before it has read the one before: what it reads only tells it what to show and when to stop.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kv_cache import Context, KVCache
from .speculative import Rows

RESTS = -1


@dataclass(frozen=True)
class Outcome:
    """What one step came to for one row: how many drafts held, and the tokens that came."""

    accepted: int
    tokens: list[int]


class Fetched:
    """A step's record on its way to the host."""

    def __init__(self, record: Tensor) -> None:
        self._event = None
        if record.device.type == "cuda":
            self._record = torch.empty(record.shape, dtype=record.dtype, pin_memory=True)
            self._record.copy_(record, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._record = record.clone()

    def outcomes(self) -> list[Outcome | None]:
        """Of each row; None of one that rested. Waits for the step."""
        if self._event is not None:
            self._event.synchronize()
        rows = self._record.tolist()
        return [None if row[0] == RESTS else Outcome(row[0], row[1 : row[0] + 2]) for row in rows]


class Decoder:
    """Runs the steps of ``rows``.

    Args:
        captures: into a CUDA graph, at the first step; all graphs of a model share ``pool``.

    Attributes:
        graph: one step, once it is captured.
    """

    def __init__(self, rows: Rows, captures: bool, pool: Any | None = None) -> None:
        self.rows, self._captures, self._pool = rows, captures, pool
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self) -> Fetched:
        """One step of every row that does not rest."""
        if self._captures and self.graph is None:
            self.graph = self._capture()
        if self.graph is not None:
            self.graph.replay()
        else:
            self.rows.step()
        return Fetched(self.rows.record)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """While every row rests, so that nothing of their state changes."""
        rows = self.rows
        lengths, tokens = rows.lengths.clone(), rows.tokens.clone()
        held, draft_rows = rows.held.clone(), rows.draft_rows.clone()
        rows.lengths.fill_(RESTS)
        stream = torch.cuda.Stream(rows.lengths.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            rows.step()  # compiles, and allocates what lives longer than a step
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        gc_was_on = gc.isenabled()
        gc.disable()  # a collection could free a tensor of another stream, which a capture forbids
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                rows.step()
        finally:
            if gc_was_on:
                gc.enable()
        torch.cuda.current_stream().wait_stream(stream)
        for buffer, kept in zip(
            (rows.lengths, rows.tokens, rows.held, rows.draft_rows),
            (lengths, tokens, held, draft_rows),
            strict=True,
        ):
            buffer.copy_(kept)
        return graph


def seat(rows: Rows, cache: KVCache, row: int, context: Context, limit: int) -> None:
    """Let a context whose prompt is in the cache decode in a row; ``Rows.begin`` has to follow."""
    rows.pages[row] = cache.page_table[context.slot]
    rows.rings[row] = cache.ring_table[context.slot]
    rows.lengths[row] = context.length - 1
    rows.limits[row] = limit


def rest(rows: Rows, row: int) -> None:
    """Let nothing more happen in a row."""
    rows.lengths[row] = RESTS


def draw_uniforms(rows: Rows, generators: Sequence[torch.Generator | None]) -> None:
    """Random numbers for one step, each row's from its own generator."""
    if rows.filters.is_greedy:
        return
    shape = rows.uniforms.shape[1:]
    drawn = [
        torch.zeros(shape, dtype=torch.float64)
        if generator is None
        else torch.rand(shape, dtype=torch.float64, generator=generator)
        for generator in generators
    ]
    stacked = torch.stack(drawn)
    if rows.uniforms.device.type == "cuda":
        stacked = stacked.pin_memory()
    rows.uniforms.copy_(stacked, non_blocking=True)

"""Steps of decoding, launched one kernel at a time or replayed from a CUDA graph, and their results on the way out.

The host starts a step before it has read the one before: what it reads only tells it what to show and when to stop.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .kv_cache import Context, on_device
from .speculative import Filters, Rows

RESTS = -1


@dataclass(frozen=True)
class Logprobs:
    """Of one token that came: its log-probability, and ids and log-probabilities of the likeliest, in order."""

    chosen: float
    likeliest: list[tuple[int, float]]


@dataclass(frozen=True)
class Outcome:
    """What one step came to for one row: how many drafts held, the tokens that came, and what is listed of them."""

    accepted: int
    tokens: list[int]
    logprobs: list[Logprobs] = field(default_factory=list)


class Fetched:
    """A step's results on their way to the host.

    Args:
        begun: the moment before the step; None: it is not timed.
    """

    def __init__(self, rows: Rows, begun: "torch.cuda.Event | float | None" = None) -> None:
        self._begun, self._ended = begun, _now(rows)
        results = (rows.record, rows.logprobs, rows.listed) if rows.kind.lists else (rows.record,)
        if isinstance(self._ended, float):
            self._results = [result.clone() for result in results]
            return
        self._results = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in results]
        for kept, result in zip(self._results, results, strict=True):
            kept.copy_(result, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def outcomes(self) -> list[Outcome | None]:
        """Of each row; None of one that rested. Waits for the step."""
        if not isinstance(self._ended, float):
            self._arrived.synchronize()
        record, *listed = (result.tolist() for result in self._results)
        outcomes: list[Outcome | None] = []
        for number, row in enumerate(record):
            tokens = row[1 : row[0] + 2]
            logprobs = (
                [_logprobs(*(one[number][place] for one in listed)) for place in range(len(tokens))] if listed else []
            )
            outcomes.append(None if row[0] == RESTS else Outcome(row[0], tokens, logprobs))
        return outcomes

    @property
    def cost_s(self) -> float:
        """What the step took; known once it has been waited for."""
        if isinstance(self._ended, float):
            assert isinstance(self._begun, float), "only a step that was timed has a cost"
            return self._ended - self._begun
        assert isinstance(self._begun, torch.cuda.Event), "only a step that was timed has a cost"
        return self._begun.elapsed_time(self._ended) / 1000


def _now(rows: Rows) -> "torch.cuda.Event | float":
    """A moment: of the device's own time where it runs behind the host."""
    if rows.record.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _logprobs(values: list[float], ids: list[int]) -> Logprobs:
    return Logprobs(values[0], list(zip(ids, values[1:], strict=True)))


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
        begun = _now(self.rows)
        if self.graph is not None:
            self.graph.replay()
        else:
            self.rows.step()
        return Fetched(self.rows, begun)

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


def seat(rows: Rows, row: int, context: Context, limit: int, filters: Filters) -> None:
    """Let a context whose prompt is in the cache decode in a row; ``Rows.begin`` has to follow."""
    extend_room(rows, row, context, limit)
    rows.rings[row] = rows.cache.ring_table[context.slot]
    rows.lengths[row] = context.length - 1
    values = (filters.temperature, filters.top_k, filters.top_p, filters.min_p)
    for number, value in enumerate(values):
        rows.filters[number, row] = value


def extend_room(rows: Rows, row: int, context: Context, limit: int) -> None:
    """Let a row know the context's new pages, and how many tokens they hold."""
    rows.pages[row] = rows.cache.page_table[context.slot]
    rows.limits[row] = limit


def rest(rows: Rows, row: int) -> None:
    """Let nothing more happen in a row."""
    rows.lengths[row] = RESTS


def put_uniforms(rows: Rows, uniforms: Sequence[Tensor | None]) -> None:
    """Random numbers for one step: [Q + d] of each row, none of one that rests."""
    if not rows.kind.draws:
        return
    nothing = torch.zeros(rows.uniforms.shape[1:], dtype=torch.float64)
    stacked = torch.stack([nothing if one is None else one for one in uniforms])
    rows.uniforms.copy_(on_device(stacked, rows.uniforms.device))

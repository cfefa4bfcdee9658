"""Many requests at a time, measured as servers are: from the moment a request is given to each chunk of its tokens.

A closed loop: so many requests are under way until all have been given. No two prompts begin alike, so that no cache of
prompts helps. An engine takes part that has ``served_model`` or ``served_synthetic``: a model with ``serve`` and
``request`` (see ``optimized.model``), whose scheduler tells what came after each of its steps.

The metrics are those of reports/metrics.toml.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

PERCENTILES = (50, 90, 99)
MS_PER_S = 1000


class Scheduler(Protocol):
    """What is measured."""

    @property
    def is_busy(self) -> bool: ...
    def submit(self, request: Any) -> int: ...
    def step(self) -> Sequence[Any]:
        """Events: ``request_id``, ``tokens`` and, of the last one of a request, ``finish`` with its ``usage``."""
        ...


class Served(Protocol):
    """A model that can be served."""

    def serve(self, max_batch: int, token_budget: int, mtp: int | str) -> Scheduler: ...
    def request(self, prompt_ids: Sequence[int], num_tokens: int) -> Any: ...


@dataclass(frozen=True)
class Load:
    """What is asked for.

    Attributes:
        concurrency: requests under way at a time.
        prompt_tokens, new_tokens: of each request.
    """

    concurrency: int
    requests: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class ServingResult:
    """One load.

    Attributes:
        output_tokens_per_s, requests_per_s: of the time from the first request to the last token.
        ttft_ms, tpot_ms, icl_ms, e2e_ms: by percentile, "p50" and so on.
        acceptance_length: tokens of a step, the first of each request aside; None without drafts.
        accepted_per_position: share of the drafts at each position that held, and all before them.
        preemptions: of all requests together.
    """

    load: Load
    wall_s: float
    output_tokens_per_s: float
    requests_per_s: float
    ttft_ms: dict[str, float]
    tpot_ms: dict[str, float]
    icl_ms: dict[str, float]
    e2e_ms: dict[str, float]
    acceptance_length: float | None
    accepted_per_position: tuple[float | None, ...]
    preemptions: int


@dataclass
class _Timeline:
    """When a request was given, and when its chunks came: seconds and tokens of each."""

    given_s: float
    chunks: list[tuple[float, int]]
    usage: Any = None


def measure(
    scheduler: Scheduler,
    request_of: Callable[[int], Any],
    load: Load,
    now_s: Callable[[], float] = time.perf_counter,
) -> ServingResult:
    """Keep ``concurrency`` requests under way until all have been given and have ended.

    Args:
        request_of: from a request's number to what the scheduler takes.

    Raises:
        RuntimeError: a request ended before its tokens had come.
    """
    timelines: dict[int, _Timeline] = {}
    began_s, under_way = now_s(), 0
    while len(timelines) < load.requests or under_way:
        while len(timelines) < load.requests and under_way < load.concurrency:
            given_s = now_s()
            timelines[scheduler.submit(request_of(len(timelines)))] = _Timeline(given_s, [])
            under_way += 1
        events = scheduler.step()
        came_s = now_s()
        for event in events:
            timeline = timelines[event.request_id]
            if event.tokens:
                timeline.chunks.append((came_s, len(event.tokens)))
            if event.finish is not None:
                timeline.usage = event.finish.usage
                under_way -= 1
    return _result(load, now_s() - began_s, list(timelines.values()))


def warm_up(scheduler: Scheduler, request_of: Callable[[int, int], Any], concurrency: int) -> None:
    """Compile and capture what a load needs: requests that end one after the other, so that every batch size comes.

    Args:
        request_of: from a request's number and its tokens to what the scheduler takes.
    """
    for number in range(concurrency):
        scheduler.submit(request_of(number, 8 + 2 * number))
    while scheduler.is_busy:
        scheduler.step()


def _result(load: Load, wall_s: float, timelines: Sequence[_Timeline]) -> ServingResult:
    counts = [sum(count for _, count in timeline.chunks) for timeline in timelines]
    if min(counts) < load.new_tokens:
        raise RuntimeError(f"serving: a request ended after {min(counts)} tokens; want all of {load.new_tokens}")
    first_s = [timeline.chunks[0][0] - timeline.given_s for timeline in timelines]
    whole_s = [timeline.chunks[-1][0] - timeline.given_s for timeline in timelines]
    each_s = [
        (last - first) / (count - 1) for last, first, count in zip(whole_s, first_s, counts, strict=True) if count > 1
    ]
    gaps_s = [
        later - sooner
        for timeline in timelines
        for (sooner, _), (later, _) in zip(timeline.chunks, timeline.chunks[1:], strict=False)
    ]
    usages = [timeline.usage for timeline in timelines]
    drafted = [sum(counts) for counts in zip(*(usage.drafted_per_position for usage in usages), strict=True)]
    accepted = [sum(counts) for counts in zip(*(usage.accepted_per_position for usage in usages), strict=True)]
    steps = sum(counts) - len(counts) - sum(accepted)  # each brings one token more than it accepts
    return ServingResult(
        load=load,
        wall_s=wall_s,
        output_tokens_per_s=sum(counts) / wall_s,
        requests_per_s=len(timelines) / wall_s,
        ttft_ms=percentiles_ms(first_s),
        tpot_ms=percentiles_ms(each_s),
        icl_ms=percentiles_ms(gaps_s),
        e2e_ms=percentiles_ms(whole_s),
        acceptance_length=(sum(counts) - len(counts)) / steps if drafted and steps else None,
        accepted_per_position=tuple(a / d if d else None for a, d in zip(accepted, drafted, strict=True)),
        preemptions=sum(usage.preemptions for usage in usages),
    )


def percentiles_ms(values_s: Sequence[float]) -> dict[str, float]:
    """Between the two nearest values, as numpy's default; none of no values."""
    ordered = sorted(values_s)
    found = {}
    for percentile in PERCENTILES if ordered else ():
        place = (len(ordered) - 1) * percentile / 100
        low, share = math.floor(place), place - math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        found[f"p{percentile}"] = (ordered[low] + (ordered[high] - ordered[low]) * share) * MS_PER_S
    return found


def table(results: Sequence[ServingResult]) -> str:
    """One line a load."""
    from tabulate import tabulate

    def shown(values: dict[str, float]) -> str:
        return " / ".join(f"{value:.1f}" for value in values.values()) or "-"

    heads = [
        "at a time",
        "requests",
        "prompt + new",
        "tokens/s",
        "ttft ms",
        "tpot ms",
        "icl ms",
        "tokens a step",
        "preempted",
    ]
    rows = [
        [
            result.load.concurrency,
            result.load.requests,
            f"{result.load.prompt_tokens} + {result.load.new_tokens}",
            f"{result.output_tokens_per_s:.1f}",
            *(shown(values) for values in (result.ttft_ms, result.tpot_ms, result.icl_ms)),
            "-" if result.acceptance_length is None else f"{result.acceptance_length:.2f}",
            result.preemptions,
        ]
        for result in results
    ]
    note = "ttft, tpot, icl: p50 / p90 / p99; a closed loop, greedy, end tokens ignored"
    return f"{tabulate(rows, heads, disable_numparse=True)}\n{note}"

"""Generation of one sequence: prefill in chunks, then steps of decoding whose tokens the host only reads.

Speculation changes the number of steps, never the distribution: drafts are verified.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .decoding import Fetched, Outcome, put_uniforms, seat
from .kv_cache import MAX_STEP
from .prefill import PREFILL_CHUNK, Prefill, run_all
from .request import Request
from .scheduler import Scheduler
from .speculative import Filters, Kind

if TYPE_CHECKING:
    from .model import OptimizedModel


@dataclass
class Generation:
    """What was generated, and how the drafts fared.

    ``drafted_per_position[i]`` counts the steps that verified a draft at position i, ``accepted_per_position[i]`` those
    in which it and all drafts before it were accepted.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)
    prefill_s: float | None = None  # until the first token
    decode_s: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first over the time after the first; None without a second token."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 and self.decode_s else None


def generate(
    model: "OptimizedModel",
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    mtp: int = 0,
    filters: Filters | None = None,
    seed: int = 0,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Continue a prompt until an end token, ``max_new_tokens`` or the end of the context.

    Args:
        prompt_ids: at least one token, and room for one more.
        mtp: drafts a step, 0 to num_nextn_predict_layers.
        on_token: called with each token as soon as it is known here.
    """
    filters, cache = filters or Filters(), model.cache
    room = model.config.max_position_embeddings - len(prompt_ids)
    result = Generation(drafted_per_position=[0] * mtp, accepted_per_position=[0] * mtp)
    taker = _Taker(result, min(max_new_tokens, room), model.config.eos_token_ids, on_token)
    random = torch.Generator().manual_seed(seed)
    context = cache.open()
    try:
        started = time.perf_counter()
        limit = len(prompt_ids) + taker.most + MAX_STEP
        cache.reserve(context, limit)
        prefill = Prefill(model.runner, cache, context, prompt_ids, mtp)
        hidden, normed = run_all(prefill)
        kind = Kind(mtp, draws=not filters.is_greedy)
        decoder = model.decoder(1, kind)
        rows = decoder.rows
        seat(rows, 0, context, limit, filters)
        rows.held[:, 0] = prefill.chain.held
        put_uniforms(rows, [kind.uniforms(random)])
        first, _ = rows.first(normed)
        rows.begin(first, hidden)
        finished = taker.take(_only(Fetched(rows)))
        result.prefill_s = time.perf_counter() - started
        started = time.perf_counter()
        under_way: deque[Fetched] = deque()
        while not finished:
            put_uniforms(rows, [kind.uniforms(random)])
            under_way.append(decoder.step())
            if len(under_way) > model.steps_ahead:
                finished = taker.take(_only(under_way.popleft()))
        rows.lengths.fill_(-1)
        result.decode_s = time.perf_counter() - started
        return result
    finally:
        cache.close(context)


def generate_adapting(
    model: "OptimizedModel",
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    filters: Filters,
    seed: int,
) -> Generation:
    """Continue a prompt with as many drafts a step as pay; otherwise as ``generate``."""
    request = Request(tuple(prompt_ids), max_new_tokens, filters, seed)
    lanes = model.adapting_lanes()
    scheduler = Scheduler(lanes, PREFILL_CHUNK, max_kept=0)
    started = time.perf_counter()
    result = Generation()
    scheduler.submit(request)
    for event in scheduler.run():
        if not result.tokens:
            result.prefill_s, started = time.perf_counter() - started, time.perf_counter()
        result.tokens += event.tokens
        if event.finish is not None:
            usage = event.finish.usage
            result.finish_reason = event.finish.reason
            result.drafted_per_position = list(usage.drafted_per_position)
            result.accepted_per_position = list(usage.accepted_per_position)
    result.decode_s = time.perf_counter() - started
    return result


class _Taker:
    """Takes tokens up to an end, and counts drafts."""

    def __init__(
        self, result: Generation, most: int, ends: Sequence[int], on_token: Callable[[int], None] | None
    ) -> None:
        self.result, self.most, self._ends, self._on_token = result, most, ends, on_token

    def take(self, outcome: Outcome) -> bool:
        """Whether generation is over."""
        result, is_first = self.result, not self.result.tokens
        useful = self.most - len(result.tokens) - 1  # drafts: a step emits one token more than it accepts
        for position in range(0 if is_first else min(len(result.drafted_per_position), useful)):
            result.drafted_per_position[position] += 1
            result.accepted_per_position[position] += position < outcome.accepted
        for token in outcome.tokens[: self.most - len(result.tokens)]:
            result.tokens.append(token)
            if self._on_token is not None:
                self._on_token(token)
            if token in self._ends:
                result.finish_reason = "stop"
                return True
        return len(result.tokens) == self.most


def _only(fetched: Fetched) -> Outcome:
    outcome = fetched.outcomes()[0]
    assert outcome is not None, "room for the longest generation is reserved, so no step rests"
    return outcome

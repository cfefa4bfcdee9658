"""A stand-in for the model, for schedulers: its next token is a hash of the context, read back from a real cache.

Tokens are written where keys and values would be, in pages and in rings, and read from there before every step. So a
page that two requests hold, one that was freed too early (it holds NaN), a ring of the wrong context, or room that was
not made shows as a wrong token or a failed assertion. As on a device, what a step comes to is known when it starts and
told when it is read.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from conformance.model import tiny
from optimized.decoding import Outcome
from optimized.job import Job
from optimized.kv_cache import PAGE_SIZE, CacheSizes, Context, KVCache
from optimized.request import Request
from reference.config import ModelConfig

VOCABULARY, END, FULL, SLIDING = 97, 1, 0, 1
SIZES = {"max_position_embeddings": 512, "num_hidden_layers": 2, "moe_layers_enum": "1", "num_nextn_predict_layers": 1}
BY_LAYER = ("layer_types", "rope_theta", "partial_rotary_factors", "swiglu_limits", "swiglu_limits_shared")
FIELDS = dict(tiny.TINY) | SIZES | {name: tiny.TINY[name][:3] for name in BY_LAYER}
CONFIG = ModelConfig.from_dict(FIELDS)


def hashed(tokens: Sequence[int], drawn: float) -> int:
    """What follows some tokens, and a random number."""
    return int.from_bytes(hashlib.blake2b(repr((list(tokens), drawn)).encode(), digest_size=6).digest())


def next_token(tokens: Sequence[int], drawn: float) -> int:
    return 2 + hashed(tokens, drawn) % (VOCABULARY - 2) if hashed(tokens, drawn) % 61 else END


def accepted_drafts(tokens: Sequence[int], drafted_with: float, deepest: int) -> int:
    """How many drafts hold that were made after these tokens with this random number."""
    return hashed(tokens, drafted_with + 1) % (deepest + 1)


def alone(request: Request, deepest: int, longest: int) -> list[int]:
    """A request's tokens without any neighbour, preemption or cache."""
    random, tokens = torch.Generator().manual_seed(request.seed), list(request.prompt_ids)
    most = min(request.max_new_tokens, longest - len(tokens))
    drawn, came = draw(request, random), []
    came.append(next_token(tokens, drawn))
    ends = {*request.stop_token_ids, END}
    while came[-1] not in ends and len(came) < most:
        accepted = accepted_drafts(tokens + came, drawn, deepest)
        drawn = draw(request, random)
        for _ in range(accepted + 1):
            came.append(next_token(tokens + came, drawn))
            if came[-1] in ends or len(came) == most:
                break
    return came


def draw(request: Request, random: torch.Generator) -> float:
    return 0.0 if request.filters.is_greedy else float(torch.rand((), generator=random))


@dataclass(frozen=True)
class Started:
    members: tuple[Job | None, ...]
    num_drafts: int
    told: list[Outcome | None]

    def outcomes(self) -> list[Outcome | None]:
        return self.told


@dataclass(frozen=True)
class Row:
    """A row as a device knows it: it learns of pages only when it is told."""

    slot: int
    pages: tuple[int, ...]
    length: int
    newest: int
    drafted_with: float


class FakeLanes:
    """See ``optimized.executor.Executor``."""

    wants_reading = False

    def __init__(self, sizes: CacheSizes, max_batch: int, deepest: int = 0, steps_ahead: int = 0) -> None:
        self.cache = KVCache(CONFIG, torch.float32, torch.device("cpu"), sizes, poisons=True)
        self.max_batch, self.deepest, self.steps_ahead, self.end_ids = max_batch, deepest, steps_ahead, (END,)
        self.rows: dict[Job, Row] = {}
        self.prompt_tokens = self.decoded_tokens = 0  # computed so far, those of rejected drafts included
        self.passes = 0  # over the weights, for prompts

    def require(self, request: Request) -> None:
        if max(request.prompt_ids) >= VOCABULARY:
            raise ValueError(f"token ids: reach {max(request.prompt_ids)}; want at most {VOCABULARY - 1}")

    def prompt(self, job: Job, state: Any) -> "FakePrompt":
        context, tokens = place_of(job), job.to_prefill
        assert state == (hashed(tokens[: context.length], 0.0) if context.length else None)
        return FakePrompt(self, context, tokens)

    def take_in(self, chunks: Sequence[tuple["FakePrompt", int]]) -> None:
        assert len({id(prompt) for prompt, _ in chunks}) == len(chunks) > 0
        self.passes += 1
        for prompt, count in chunks:
            prompt.run(count)

    def join(self, job: Job, prompt: "FakePrompt") -> Started | None:
        context = place_of(job)
        assert prompt.is_done
        tokens = self.read(context.slot, tuple(context.pages), context.length)
        is_new = job.num_new == 0
        drawn = draw(job.request, job.random) if is_new else float(job.uniforms)  # type: ignore[arg-type]
        job.uniforms = torch.tensor(drawn, dtype=torch.float64)
        newest = next_token(tokens, drawn) if is_new else job.tokens[-1]
        self.rows[job] = Row(context.slot, tuple(context.pages), context.length, newest, drawn)
        return Started((job,), 0, [Outcome(0, [newest])]) if is_new else None

    def extend(self, job: Job) -> None:
        self.rows[job] = replace(self.rows[job], pages=tuple(place_of(job).pages))

    def leave(self, job: Job) -> None:
        del self.rows[job]

    def step(self) -> list[Started]:
        self.decoded_tokens += len(self.rows) * (self.deepest + 1)
        return [Started(tuple(self.rows), self.deepest, [self._decode(job) for job in self.rows])]

    def _decode(self, job: Job) -> Outcome:
        row = self.rows[job]
        tokens = [*self.read(row.slot, row.pages, row.length), row.newest]
        accepted = accepted_drafts(tokens, row.drafted_with, self.deepest)
        drawn = draw(job.request, job.random)
        job.uniforms = torch.tensor(drawn, dtype=torch.float64)
        for _ in range(accepted + 1):
            tokens.append(next_token(tokens, drawn))
        verified = [*tokens[row.length : row.length + accepted + 1], *[0] * (self.deepest - accepted)]  # some rejected
        self.write(row.slot, row.pages, row.length, verified)
        self.rows[job] = replace(row, length=row.length + accepted + 1, newest=tokens[-1], drafted_with=drawn)
        return Outcome(accepted, tokens[row.length + 1 :])

    def count(self, tokens: int) -> None:
        self.prompt_tokens += tokens

    def write(self, slot: int, pages: Sequence[int], start: int, tokens: Sequence[int]) -> None:
        positions = torch.arange(start, start + len(tokens))
        values = torch.tensor(tokens, dtype=torch.float32)
        self.cache.k[FULL].flatten(0, 1)[_page_rows(pages, positions), 0, 0] = values
        newest = slice(-self.cache.ring_length, None)
        self.cache.k[SLIDING].flatten(0, 1)[self._ring_rows(slot, positions[newest]), 0, 0] = values[newest]

    def read(self, slot: int, pages: Sequence[int], length: int) -> list[int]:
        """The context, from the pages; its newest tokens must be in the ring, too."""
        positions = torch.arange(length)
        tokens = self.cache.k[FULL].flatten(0, 1)[_page_rows(pages, positions), 0, 0]
        assert not tokens.isnan().any(), "a page was read that holds nothing"
        newest = positions[-(self.cache.window or 1) :]
        in_ring = self.cache.k[SLIDING].flatten(0, 1)[self._ring_rows(slot, newest), 0, 0]
        assert torch.equal(in_ring, tokens[newest]), "the ring is another's"
        return [int(token) for token in tokens.tolist()]

    def _ring_rows(self, slot: int, positions: torch.Tensor) -> torch.Tensor:
        return slot * self.cache.ring_length + positions % self.cache.ring_length


class FakePrompt:
    """See ``optimized.executor.Prompt``."""

    def __init__(self, lanes: FakeLanes, context: Context, tokens: list[int]) -> None:
        self._lanes, self._context, self._tokens = lanes, context, tokens
        self.mark, self.marked = 0, None

    @property
    def is_done(self) -> bool:
        return self._context.length == len(self._tokens)

    def run(self, count: int) -> None:
        context = self._context
        start, end = context.length, context.length + count
        assert start < end <= len(self._tokens)
        self._lanes.count(end - start)
        self._lanes.write(context.slot, context.pages, start, self._tokens[start:end])
        if start < self.mark <= end:
            self.marked = hashed(self._tokens[: self.mark], 0.0)
        context.length, context.longest = end, max(context.longest, end)


def place_of(job: Job) -> Context:
    assert job.context is not None
    return job.context


def _page_rows(pages: Sequence[int], positions: torch.Tensor) -> torch.Tensor:
    return torch.tensor(pages, dtype=torch.int64)[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE

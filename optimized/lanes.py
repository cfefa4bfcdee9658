"""Sequences that decode together on a model: a lane for each kind of step, its rows in batches of a few sizes.

Greedy sequences, drawn ones and those with log-probabilities are of different kinds: each kind is a step of its own,
so that what a job is given does not depend on who decodes beside it. A batch has rows for the next power of two;
rows without one rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .decoding import RESTS, Decoder, Fetched, Outcome, extend_room, put_uniforms, rest, seat
from .job import Job
from .kv_cache import PAGE_SIZE
from .prefill import Prefill
from .request import Request
from .speculative import Kind, Rows

if TYPE_CHECKING:
    from .model import OptimizedModel


@dataclass(frozen=True)
class Started:
    """A step that was started: whose rows it had, None of one that rested, and how many drafts it verified."""

    members: tuple[Job | None, ...]
    num_drafts: int
    fetched: Fetched

    def outcomes(self) -> list[Outcome | None]:
        """Of each member; waits for the step."""
        return self.fetched.outcomes()


class Lane:
    """Sequences of one kind."""

    def __init__(self, model: "OptimizedModel", kind: Kind, max_batch: int) -> None:
        self._model, self._kind, self._max_batch = model, kind, max_batch
        self._decoders: dict[int, Decoder] = {}  # by rows
        self._nursery = Rows(model.runner, model.cache, 1, kind)  # where drafts begin
        self._members: list[Job | None] = []

    @property
    def num_members(self) -> int:
        return sum(member is not None for member in self._members)

    def join(self, job: Job, prompt: Prefill) -> Started | None:
        """Choose the first token, where there is none yet, draft, and take a row."""
        kind, rows, context = self._kind, self._nursery, _context(job)
        seat(rows, 0, context, _limit(job), job.request.filters)
        rows.held[:, 0] = prompt.chain.held[: kind.num_drafts]
        is_new = job.num_new == 0
        if kind.draws and is_new:
            job.uniforms = kind.uniforms(job.random)
        put_uniforms(rows, [job.uniforms])
        if is_new:
            first, logits = rows.first(prompt.normed)
        else:
            first, logits = torch.full_like(rows.tokens[:, 0], job.tokens[-1]), None
        rows.begin(first, prompt.hidden, logits)
        if None not in self._members:
            self._resize(len(self._members) + 1)
        row = self._members.index(None)
        self._rows.take_over(rows, [(0, row)])
        self._members[row] = job
        return Started((job,), 0, Fetched(rows)) if is_new else None

    def extend(self, job: Job) -> None:
        """Its context has more pages now."""
        extend_room(self._rows, self._members.index(job), _context(job), _limit(job))

    def leave(self, job: Job) -> None:
        """Free its row; a batch that is three quarters empty becomes a smaller one."""
        row = self._members.index(job)
        rest(self._rows, row)
        self._members[row] = None
        if 0 < 4 * self.num_members <= len(self._members):
            self._resize(self.num_members)

    def step(self) -> Started:
        """Start a step of every member."""
        members = tuple(self._members)
        if self._kind.draws:
            for job in members:
                if job is not None:
                    job.uniforms = self._kind.uniforms(job.random)
            put_uniforms(self._rows, [None if job is None else job.uniforms for job in members])
        return Started(members, self._kind.num_drafts, self._decoders[len(members)].step())

    @property
    def _rows(self) -> Rows:
        return self._decoders[len(self._members)].rows

    def _resize(self, least: int) -> None:
        """Move to a batch of at least so many rows."""
        size = min(1 << (least - 1).bit_length(), self._max_batch)
        if size not in self._decoders:
            self._decoders[size] = self._model.new_decoder(size, self._kind)
        moving = [(row, job) for row, job in enumerate(self._members) if job is not None]
        if moving:
            old = self._rows
            self._decoders[size].rows.take_over(old, [(row, place) for place, (row, _) in enumerate(moving)])
            old.lengths.fill_(RESTS)
        self._members = [job for _, job in moving] + [None] * (size - len(moving))


class Lanes:
    """What a scheduler has computed by a model.

    Args:
        max_batch: sequences that decode at a time; the cache's other slots may keep beginnings of prompts.
        mtp: drafts of each step.

    Raises:
        ValueError: fewer slots than sequences, or more drafts than MTP layers.
    """

    def __init__(self, model: "OptimizedModel", max_batch: int, mtp: int = 0) -> None:
        slots = model.cache.sizes.num_slots
        if not 1 <= max_batch <= slots:
            raise ValueError(f"max_batch: is {max_batch}; want 1 to {slots}, the contexts of this cache")
        if not 0 <= mtp <= model.runner.num_depths:
            raise ValueError(f"mtp: is {mtp}; want 0 to {model.runner.num_depths}, the MTP layers of this checkpoint")
        self.cache, self.max_batch, self.deepest = model.cache, max_batch, mtp
        self.steps_ahead, self.end_ids = model.steps_ahead, model.config.eos_token_ids
        self._model = model
        self._lanes: dict[Kind, Lane] = {}

    def require(self, request: Request) -> None:
        """Refuse tokens that are not of the vocabulary.

        Raises:
            ValueError: says which.
        """
        self._model.require_tokens(request.prompt_ids)

    def prompt(self, job: Job, state: Any) -> Prefill:
        """Its prompt, to be taken in."""
        runner, tokens = self._model.runner, job.to_prefill
        return Prefill(runner, self.cache, _context(job), tokens, self.deepest, state)

    def join(self, job: Job, prompt: Prefill) -> Started | None:
        """Let a job decode; the step that chose its first token, None of one that has its newest token."""
        return self._lane(job).join(job, prompt)

    def extend(self, job: Job) -> None:
        """Its context has more pages now."""
        self._lane(job).extend(job)

    def leave(self, job: Job) -> None:
        """Free its row."""
        self._lane(job).leave(job)

    def step(self) -> Iterator[Started]:
        """Start a step of each kind."""
        for lane in self._lanes.values():
            if lane.num_members:
                yield lane.step()

    def _lane(self, job: Job) -> Lane:
        request = job.request
        lists = request.top_logprobs is not None
        kind = Kind(self.deepest, lists or not request.filters.is_greedy, lists)
        if kind not in self._lanes:
            self._lanes[kind] = Lane(self._model, kind, self.max_batch)
        return self._lanes[kind]


def _context(job: Job) -> Any:
    assert job.context is not None, "whoever has a row has a context"
    return job.context


def _limit(job: Job) -> int:
    """Positions that its pages hold."""
    return len(_context(job).pages) * PAGE_SIZE

"""Sequences that decode together on a model: a lane for each kind of step, its rows in batches of a few sizes.

Greedy sequences, drawn ones and those with log-probabilities are of different kinds: each kind is a step of its own,
so that what a job is given does not depend on who decodes beside it. A batch has rows for the next power of two;
rows without one rest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from .decoding import RESTS, Decoder, Fetched, Outcome, extend_room, put_uniforms, rest, seat
from .draft_depth import DraftDepth
from .job import Job
from .kv_cache import PAGE_SIZE, on_device
from .mtp_chain import MtpChain
from .prefill import Prefill, run_together
from .request import Request
from .speculative import Kind, Rows

if TYPE_CHECKING:
    from .model import OptimizedModel

AUTO = "auto"  # so many drafts as pay


@dataclass(frozen=True)
class Started:
    """A step that was started: whose rows it had, None of one that rested, and how many drafts it verified.

    Attributes:
        learner: is told what the step took.
    """

    members: tuple[Job | None, ...]
    num_drafts: int
    fetched: Fetched
    learner: DraftDepth | None = None

    def outcomes(self) -> list[Outcome | None]:
        """Of each member; waits for the step."""
        outcomes = self.fetched.outcomes()
        if self.learner is not None:
            pairs = zip(self.members, outcomes, strict=True)
            held = [told.accepted for job, told in pairs if told is not None and job is not None and not job.is_over]
            self.learner.observe(self.num_drafts, self.fetched.cost_s, held)
        return outcomes


class Lane:
    """Sequences of one kind.

    Args:
        kind: with the most drafts that a step verifies.
        adapts: verify fewer where these bring more tokens for their time.
    """

    def __init__(
        self, model: "OptimizedModel", new_decoder: Callable[[int, Kind], Decoder], kind: Kind, most: int, adapts: bool
    ) -> None:
        self._model, self._new_decoder, self._kind, self._most = model, new_decoder, kind, most
        self._deepest, self._adapts = kind.num_drafts, adapts
        self._decoders: dict[tuple[int, Kind], Decoder] = {}
        self._nurseries: dict[Kind, Rows] = {}  # where drafts begin
        self._depths: dict[int, DraftDepth] = {}  # by rows: what a step costs depends on them
        self._members: list[Job | None] = []

    @property
    def num_members(self) -> int:
        return sum(member is not None for member in self._members)

    @property
    def wants_reading(self) -> bool:
        """Whether the next step has to know all tokens that came: more drafts begin with what is known."""
        return self.num_members > 0 and self._wanted > self._kind.num_drafts

    def join(self, job: Job, prompt: Prefill) -> Started | None:
        """Choose the first token, where there is none yet, draft, and take a row."""
        kind, context = self._kind, _context(job)
        if kind not in self._nurseries:
            self._nurseries[kind] = Rows(self._model.runner, self._model.cache, 1, kind)
        rows = self._nurseries[kind]
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
        if self._wanted != self._kind.num_drafts:
            self._change_depth(self._wanted)
        members = tuple(self._members)
        if self._kind.draws:
            for job in members:
                if job is not None:
                    job.uniforms = self._kind.uniforms(job.random)
            put_uniforms(self._rows, [None if job is None else job.uniforms for job in members])
        learner = self._depths.get(len(members))
        return Started(members, self._kind.num_drafts, self._decoder(len(members)).step(), learner)

    @property
    def _rows(self) -> Rows:
        return self._decoder(len(self._members)).rows

    @property
    def _wanted(self) -> int:
        """Drafts of the next step."""
        if not self._adapts:
            return self._deepest
        return self._depths.setdefault(len(self._members), DraftDepth(self._deepest)).depth

    def _decoder(self, size: int) -> Decoder:
        key = (size, self._kind)
        if key not in self._decoders:
            self._decoders[key] = self._new_decoder(*key)
        return self._decoders[key]

    def _resize(self, least: int) -> None:
        """Move to a batch of at least so many rows."""
        size = min(1 << (least - 1).bit_length(), self._most)
        moving = [(row, job) for row, job in enumerate(self._members) if job is not None]
        if moving:
            old = self._rows
            self._decoder(size).rows.take_over(old, [(row, place) for place, (row, _) in enumerate(moving)])
            old.lengths.fill_(RESTS)
        self._members = [job for _, job in moving] + [None] * (size - len(moving))

    def _change_depth(self, num_drafts: int) -> None:
        """Fewer drafts are some of those that there are; more begin again with what the cache remembers."""
        old, deepens = self._rows, num_drafts > self._kind.num_drafts
        taken = [(row, job) for row, job in enumerate(self._members) if job is not None]
        self._kind = replace(self._kind, num_drafts=num_drafts)
        if deepens:
            self._begin_again(taken)
        else:
            self._rows.take_over(old, [(row, row) for row, _ in taken])
        old.lengths.fill_(RESTS)

    def _begin_again(self, taken: Sequence[tuple[int, Job]]) -> None:
        """Draft from all tokens that came; MTP layers that rested look at the last window only."""
        rows, cache, runner = self._rows, self._model.cache, self._model.runner
        assert cache.window is not None, "only MTP layers with a window may rest"
        following = torch.zeros_like(rows.tokens[:, 0])
        newest = torch.zeros((rows.batch, runner.config.hidden_size), dtype=runner.dtype, device=cache.device)
        for row, job in taken:
            assert job.in_flight == 0, "whoever wants reading was read to the end"
            context, length = _context(job), len(job.tokens) - 1
            context.length, context.longest = length, max(context.longest, length)
            origin = max(0, length - cache.window)
            hidden = cache.hidden.index_select(0, cache.ring_rows(context, origin, length))
            chain = MtpChain(runner, cache, context, rows.num_drafts, origin=origin)
            chain.extend(on_device(torch.tensor(job.tokens[origin:length]), cache.device), hidden, origin)
            seat(rows, row, context, _limit(job), job.request.filters)
            rows.held[:, row] = chain.held
            following[row] = job.tokens[-1]
            newest[row] = hidden[-1]
        rows.begin(following, newest)


class Lanes:
    """What a scheduler has computed by a model.

    Args:
        max_batch: sequences that decode at a time; the cache's other slots may keep beginnings of prompts.
        mtp: drafts of each step; AUTO: as many as pay, for greedy sequences, whose text does not depend on it. Drawn
            ones always verify all: their random numbers are drawn by steps, and would depend on times.
        new_decoder: None: decoders of its own.

    Raises:
        ValueError: fewer slots than sequences, more drafts than MTP layers, or AUTO where MTP layers see everything.
    """

    def __init__(
        self,
        model: "OptimizedModel",
        max_batch: int,
        mtp: int | str = 0,
        new_decoder: Callable[[int, Kind], Decoder] | None = None,
    ) -> None:
        slots, depths = model.cache.sizes.num_slots, model.runner.num_depths
        if not 1 <= max_batch <= slots:
            raise ValueError(f"max_batch: is {max_batch}; want 1 to {slots}, the contexts of this cache")
        self._adapts = mtp == AUTO
        deepest = depths if self._adapts else mtp
        if not isinstance(deepest, int) or not 0 <= deepest <= depths:
            raise ValueError(f"mtp: is {mtp}; want {AUTO} or 0 to {depths}, the MTP layers of this checkpoint")
        if self._adapts and any(layer.sliding_window is None for layer in model.config.mtp_layers):
            raise ValueError(f"mtp: is {AUTO}, and an MTP layer has no window; want a fixed number of drafts")
        self.cache, self.max_batch, self.deepest = model.cache, max_batch, deepest
        self.steps_ahead = model.steps_ahead
        self.end_ids: Sequence[int] = model.config.eos_token_ids
        self._model, self._new_decoder = model, new_decoder or model.new_decoder
        self._lanes: dict[Kind, Lane] = {}

    @property
    def wants_reading(self) -> bool:
        """Whether the next step has to know what all before came to."""
        return any(lane.wants_reading for lane in self._lanes.values())

    def require(self, request: Request) -> None:
        """Refuse tokens that are not of the vocabulary.

        Raises:
            ValueError: says which.
        """
        self._model.require_tokens(request.prompt_ids)

    def prompt(self, job: Job, state: Any) -> Prefill:
        """Its prompt, to be taken in."""
        return Prefill(self._model.runner, self.cache, _context(job), job.to_prefill, self.deepest, state)

    def take_in(self, chunks: Sequence[tuple[Prefill, int]]) -> None:
        """Take in the next tokens of several prompts in one pass over the weights, so many of each."""
        run_together(chunks)

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
        lists = job.request.top_logprobs is not None
        kind = Kind(self.deepest, lists or not job.request.filters.is_greedy, lists)
        if kind not in self._lanes:
            adapts = self._adapts and not kind.draws
            self._lanes[kind] = Lane(self._model, self._new_decoder, kind, self.max_batch, adapts)
        return self._lanes[kind]


def _context(job: Job) -> Any:
    assert job.context is not None, "whoever has a row has a context"
    return job.context


def _limit(job: Job) -> int:
    """Positions that its pages hold."""
    return len(_context(job).pages) * PAGE_SIZE

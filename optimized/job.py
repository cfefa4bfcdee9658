"""A request under way, as the host knows it."""

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

from .decoding import Logprobs, Outcome
from .kv_cache import MAX_STEP, Context
from .request import Event, Finish, Request, Usage
from .stop_text import StopText


class Job:
    """Tokens, the place in the cache, and all that the next token depends on beside them.

    Args:
        most: new tokens, at most.
        ends: tokens that end it.
        deepest: drafts of a step, at most.

    Attributes:
        tokens: of the prompt, then those that came.
        context: None while it waits.
        random: where its random numbers come from; uniforms: those of its newest step, which begin it again after it
            was preempted.
        in_flight: steps that were started and not read.
        keys: of the pages of ``to_prefill``, once somebody has asked for them.
        marks: lengths at which its beginning should be kept for others, in order.
        cached: tokens of the prompt that were found in the cache, when it was first admitted; None before.
    """

    def __init__(self, id: int, request: Request, most: int, ends: Sequence[int], text: StopText, deepest: int) -> None:
        self.id, self.request, self.most = id, request, most
        self.tokens = list(request.prompt_ids)
        self.context: Context | None = None
        self.random = torch.Generator().manual_seed(request.seed)
        self.uniforms: Tensor | None = None
        self.in_flight = 0
        self.keys: list[bytes] | None = None
        self.marks: list[int] = []
        self.cached: int | None = None
        self.preemptions = 0
        self.is_over = False
        self._ends, self._text = frozenset(ends), text
        self._drafted, self._accepted = [0] * deepest, [0] * deepest

    @property
    def num_new(self) -> int:
        """Tokens that came."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def to_prefill(self) -> list[int]:
        """Tokens to compute before it decodes: the newest that came is none of them, as it begins the next step."""
        return self.tokens[:-1] if self.num_new else self.tokens

    @property
    def limit(self) -> int:
        """Positions that it ever takes, those of rejected drafts and of a step too many included."""
        return len(self.request.prompt_ids) + self.most + MAX_STEP

    def room(self, steps: int, longest_step: int) -> int:
        """Positions that it may take in so many steps beyond those in flight."""
        return min(len(self.tokens) + (self.in_flight + steps) * longest_step, self.limit)

    def take(self, outcome: Outcome, num_drafts: int) -> Event:
        """Take what a step of so many drafts came to, up to an end."""
        useful = self.most - self.num_new - 1  # a step brings one token more than it accepts
        for position in range(min(num_drafts, useful)):
            self._drafted[position] += 1
            self._accepted[position] += position < outcome.accepted
        before, text, reason = len(self.tokens), "", ""
        for token in outcome.tokens:
            self.tokens.append(token)
            is_end = token in self._ends
            text += "" if is_end else self._text.push(token)
            if is_end or self._text.found is not None:
                reason = "stop"
            elif self.num_new == self.most:
                reason = "length"
            if reason:
                text += self._text.finish()
                break
        came = tuple(self.tokens[before:])
        finish = Finish(reason, self.usage(), self._text.found or "") if reason else None
        return Event(self.id, came, text, self._listed(outcome.logprobs[: len(came)]), finish)

    def end(self, reason: str, detail: str = "") -> Event:
        """End it from outside."""
        return Event(self.id, text=self._text.finish(), finish=Finish(reason, self.usage(), detail))

    def usage(self) -> Usage:
        """What it took so far."""
        drafted, accepted = tuple(self._drafted), tuple(self._accepted)
        prompt = len(self.request.prompt_ids)
        return Usage(prompt, self.cached or 0, self.num_new, self.preemptions, drafted, accepted)

    def _listed(self, logprobs: list[Logprobs]) -> tuple[Logprobs, ...]:
        most = self.request.top_logprobs
        return () if most is None else tuple(Logprobs(one.chosen, one.likeliest[:most]) for one in logprobs)


def insert(jobs: list[Job], job: Job) -> None:
    """Keep a list in the order of arrival."""
    bisect.insort(jobs, job, key=lambda one: one.id)

"""Many requests through one scheduler, some of them cancelled: what each got, and how it ended."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from optimized.request import Event, Finish, Request
from optimized.scheduler import Scheduler

Step = Callable[[], list[Event]]


@dataclass(frozen=True)
class Soaked:
    """By the number of each request."""

    requests: dict[int, Request]
    tokens: dict[int, list[int]]
    ends: dict[int, Finish]
    cancelled: set[int]

    def require_right(self, alone: Callable[[Request], Sequence[int]], ends: Sequence[int]) -> None:
        """Each got what it gets alone, one that was cancelled the beginning of it, and was told how it ended."""
        assert set(self.ends) == set(self.requests)
        for number, request in self.requests.items():
            got, want, finish = self.tokens[number], list(alone(request)), self.ends[number]
            if number in self.cancelled:
                assert finish.reason == "cancelled"
                want = want[: len(got)]
            else:
                assert finish.reason == ("stop" if want[-1] in ends else "length")
            assert got == want, f"request {number} of {len(self.requests)}"
            usage = finish.usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (len(request.prompt_ids), len(got))

    def total(self, what: str) -> int:
        """A figure of all requests' usage together."""
        return sum(getattr(finish.usage, what) for finish in self.ends.values())


def soak(scheduler: Scheduler, requests: Sequence[Request], chance: random.Random, step: Step) -> Soaked:
    """Submit requests at random times, cancel one in twenty steps, and go on until all have ended."""
    submitted: dict[int, Request] = {}
    cancelled: set[int] = set()
    events: list[Event] = []
    while len(submitted) < len(requests) or scheduler.is_busy:
        while len(submitted) < len(requests) and chance.random() < 0.5:
            request = requests[len(submitted)]
            submitted[scheduler.submit(request)] = request
        if submitted and chance.random() < 0.05:
            victim = chance.choice(list(submitted)[-8:])
            if scheduler.cancel(victim):
                cancelled.add(victim)
        events += step()
    return Soaked(submitted, *by_request(events), cancelled)


def by_request(events: Iterable[Event]) -> tuple[dict[int, list[int]], dict[int, Finish]]:
    """Tokens and the end of each request; nothing may come after an end."""
    tokens: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, Finish] = {}
    for event in events:
        assert event.request_id not in ends
        tokens[event.request_id] += event.tokens
        if event.finish is not None:
            ends[event.request_id] = event.finish
    return tokens, ends

"""What a scheduler has computed by somebody: by a model in ``lanes``, by a stand-in in tests."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from .decoding import Outcome
from .job import Job
from .kv_cache import KVCache
from .request import Request


class Prompt(Protocol):
    """A prompt on its way into the cache.

    Attributes:
        mark: a length at which to note ``marked``: what a context that begins there needs beside pages and rings.
    """

    mark: int
    marked: Any

    @property
    def is_done(self) -> bool: ...


class Started(Protocol):
    """A step that was started.

    Attributes:
        members: whose rows it had; None of a row that rested.
        num_drafts: that it verified.
    """

    @property
    def members(self) -> Sequence[Job | None]: ...
    @property
    def num_drafts(self) -> int: ...
    def outcomes(self) -> list[Outcome | None]:
        """Of each member; waits for the step."""
        ...


class Executor(Protocol):
    """What computes: see ``lanes``, whose prompts are ``prefill``'s.

    Attributes:
        max_batch: sequences that decode at a time.
        deepest: drafts that a step verifies, at most.
        steps_ahead: steps that are started before the oldest of them is read.
        end_ids: tokens that end a response.
    """

    cache: KVCache
    max_batch: int
    deepest: int
    steps_ahead: int
    end_ids: Sequence[int]

    def require(self, request: Request) -> None:
        """Refuse, as a ValueError, what cannot be computed."""
        ...

    def prompt(self, job: Job, state: Any) -> Any:
        """A ``Prompt``, of a context that may begin with tokens that others kept with this state."""
        ...

    def take_in(self, chunks: Sequence[tuple[Any, int]]) -> None:
        """Take in the next tokens of several prompts, so many of each.

        Raises:
            torch.OutOfMemoryError: a prompt whose context has not grown is as it was.
        """
        ...

    def join(self, job: Job, prompt: Any) -> Started | None:
        """Let a job decode; the step that chose its first token, None of one that has its newest token."""
        ...

    def extend(self, job: Job) -> None:
        """Its context has more pages now."""
        ...

    def leave(self, job: Job) -> None: ...
    @property
    def wants_reading(self) -> bool:
        """Whether the next step has to know what all before came to."""
        ...

    def step(self) -> Iterable[Started]: ...

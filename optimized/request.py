"""What is asked of a scheduler, and what it tells."""

from dataclasses import dataclass, field

from .decoding import Logprobs
from .speculative import TOP_LOGPROBS, Filters


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        max_new_tokens: fewer where the context ends before.
        seed: of this request's random numbers, which no other request changes.
        stops: strings that end the text and are not part of it; they want a scheduler with a tokenizer.
        stop_token_ids: tokens that end it, beside the model's end tokens.
        ignores_end: go on after the model's end tokens.
        top_logprobs: list each token's log-probability and so many of the likeliest tokens; None: nothing is listed.

    Raises:
        ValueError: a value out of range.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int = 128
    filters: Filters = field(default_factory=Filters)
    seed: int = 0
    stops: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignores_end: bool = False
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: is {self.max_new_tokens}; want 1 or more")
        if "" in self.stops:
            raise ValueError("stops: one is empty; want at least one character in each")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= TOP_LOGPROBS:
            raise ValueError(f"top_logprobs: is {self.top_logprobs}; want 0 to {TOP_LOGPROBS}, or None")


@dataclass(frozen=True)
class Usage:
    """What a request took.

    Attributes:
        cached_tokens: of the prompt, those that did not have to be computed when it was first admitted.
        preemptions: how often it had to give its place up.
        drafted_per_position: steps that verified a draft at each position; accepted_per_position: those in which it
            and all before it held.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    preemptions: int
    drafted_per_position: tuple[int, ...]
    accepted_per_position: tuple[int, ...]


@dataclass(frozen=True)
class Finish:
    """How a request ended.

    Attributes:
        reason: "stop", "length", "cancelled" or "error".
        detail: the stop string, or what went wrong; else empty.
    """

    reason: str
    usage: Usage
    detail: str = ""


@dataclass(frozen=True)
class Event:
    """What is new of one request.

    Attributes:
        tokens: all that came; an end token is among them.
        text: of these and of earlier ones, what can no longer become a stop string; empty without a tokenizer.
        logprobs: of each token, where they were asked for: of the model itself, before any filter.
        finish: of the last event of a request.
    """

    request_id: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[Logprobs, ...] = ()
    finish: Finish | None = None

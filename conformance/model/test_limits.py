"""Checks of where a context and a generation end, and of what must be refused."""

from pathlib import Path

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..tolerance import bit_exact
from ..under_test import UnderTest
from . import tiny
from .contexts import NUM_DRAFTS
from .loading import Load
from .refusal import check_refused

ENDS = (20, 40)
MOST = 128  # positions; twice what rope_scaling calls the original length


@pytest.fixture
def counting(engine: UnderTest, load: Load, seed: int, tmp_path: Path) -> GuardedModel:
    """A model that counts, whose drafts are always right, and which ends at 20 and at 40."""
    fields = tiny.fields_for(engine.profile, eos_token_id=list(ENDS), max_position_embeddings=MOST)
    weights = tiny.successor_weights(tiny.fields_for(engine.profile, eos_token_id=list(ENDS)), seed)
    return load(tiny.write(tmp_path / "counting", fields, weights))


def exactly(got: list[int], want: list[int], counters: Counters, where: str) -> None:
    """Compare two lists of tokens, of any lengths."""
    length = max(len(got), len(want))
    one, other = (torch.tensor(tokens + [-1] * (length - len(tokens))) for tokens in (got, want))
    bit_exact(one, other, counters, f"{where}: {got}, want {want}: tokens, -1 for none")


@clause("STOP-1")
@pytest.mark.parametrize("mtp", [0, 1, NUM_DRAFTS])
def test_generation_ends_with_an_end_token_and_not_before(counting: GuardedModel, counters: Counters, mtp: int) -> None:
    """Each of two end tokens, at every place in a step of drafts; it is handed out, and nothing after it."""
    for end in ENDS:
        for distance in range(1, 9):
            got = counting.generate([end - distance], 30, mtp=mtp).tokens
            want = list(range(end - distance + 1, end + 1))
            exactly(got, want, counters, f"from {end - distance}, {mtp} drafts")
            counters.add("ends_before_the_limit", 1)


@clause("STOP-1")
@pytest.mark.parametrize("mtp", [0, 1, NUM_DRAFTS])
def test_generation_ends_after_exactly_the_tokens_that_were_asked_for(
    counting: GuardedModel, counters: Counters, mtp: int
) -> None:
    for count in range(1, 10):
        got = counting.generate([50], count, mtp=mtp).tokens
        exactly(got, list(range(51, 51 + count)), counters, f"{count} tokens asked for, {mtp} drafts")


@clause("LIMIT-1")
@pytest.mark.parametrize("mtp", [0, NUM_DRAFTS])
def test_a_generation_ends_where_the_context_does(counting: GuardedModel, counters: Counters, mtp: int) -> None:
    for room in (1, 2, 5):
        start = [60 + i for i in range(MOST - room)]
        got = counting.generate(start, room + 20, mtp=mtp).tokens
        exactly(got, [start[-1] + 1 + i for i in range(room)], counters, f"room for {room}, {mtp} drafts")


@clause("LIMIT-1")
def test_a_context_holds_all_its_positions_and_no_more(counting: GuardedModel, counters: Counters) -> None:
    """In one piece and in two; the first token too many is refused, and so is a prompt that leaves no room."""
    tokens = [100 + i % 100 for i in range(MOST)]
    for first in (MOST, MOST - 1):
        session = counting.new_session()
        logits = session.extend(tokens[:first])
        if first < MOST:
            logits = session.extend(tokens[first:])
        exactly([int(logits[-1].argmax())], [tokens[-1] + 1], counters, f"after {MOST} tokens, {first} at once")
        check_refused(lambda session=session: session.extend([5]), counters, f"token {MOST + 1}")  # type: ignore[misc]
    check_refused(lambda: counting.new_session().extend([*tokens, 5]), counters, f"{MOST + 1} tokens at once")
    check_refused(lambda: counting.generate(tokens, 1), counters, "a prompt that fills the context")


@clause("REFUSE-1")
def test_what_makes_no_sense_is_refused(model: GuardedModel, counters: Counters) -> None:
    """Refused with an exception, and what comes after goes on as if nothing had been asked."""
    vocab_size = model.vocab_size
    session = model.new_session()
    session.extend([5, 6, 7])
    for token in (vocab_size, vocab_size + 1000, -1):
        check_refused(lambda token=token: model.new_session().extend([5, token]), counters, f"token id {token}")  # type: ignore[misc]
    check_refused(lambda: session.truncate(4), counters, "taking back to more tokens than there are")
    check_refused(lambda: model.generate([], 4), counters, "an empty prompt")
    check_refused(lambda: model.generate([5], 0), counters, "no new tokens")
    exactly([session.length], [3], counters, "length of the session beside all this")

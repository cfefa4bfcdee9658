"""Checks of contexts that begin alike: what an engine may remember of one, it must not take for the other."""

import pytest

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import OracleModel
from .contexts import check_logits, prompt, random_tokens, window_of


@clause("PREFIX-1")
def test_the_same_context_again_gives_its_own_logits(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int
) -> None:
    """Cold, then twice warm: all of it, and all but its newest tokens."""
    tokens = prompt(oracle_model.config, seed + 1)
    for time in ("first", "second", "third"):
        got = model.new_session().extend(tokens)
        check_logits(got, oracle_model, tokens, counters, f"the same {len(tokens)} tokens, {time} time")
    shorter = tokens[:-3]
    check_logits(model.new_session().extend(shorter), oracle_model, shorter, counters, "all but the newest three")
    counters.add("tokens_that_a_cache_could_hold", len(shorter))


@clause("PREFIX-1")
@pytest.mark.parametrize("at", ["the first", "the middle", "the last of a block of 16", "the newest"])
def test_a_context_that_differs_in_one_token_gives_its_own_logits(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int, at: str
) -> None:
    """After another context of the same length that differs in one token only; and once more, the other way round."""
    tokens = prompt(oracle_model.config, seed + 1)
    places = {"the first": 0, "the middle": len(tokens) // 2, "the newest": len(tokens) - 1}
    place = places.get(at, len(tokens) // 16 * 16 - 1)
    other = list(tokens)
    other[place] = next(t for t in random_tokens(oracle_model.config, 9, seed + place) if t != tokens[place])
    for number, context in enumerate((tokens, other, tokens)):
        got = model.new_session().extend(context)
        check_logits(got, oracle_model, context, counters, f"context {number}, which differs in {at} token")
    counters.add("tokens_in_common", len(tokens) - 1)


@clause("PREFIX-1")
def test_a_context_that_goes_on_after_another_ended_gives_its_own_logits(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int
) -> None:
    """One context ends in the middle of a block; another goes on from the same tokens, with others behind them."""
    tokens = prompt(oracle_model.config, seed + 1)
    shared = window_of(oracle_model.config) + 5
    ended = model.new_session()
    ended.extend(tokens[:shared])
    ended.close()
    branch = tokens[:shared] + random_tokens(oracle_model.config, len(tokens) - shared, seed + 77)
    for context in (branch, tokens):
        session = model.new_session()
        session.extend(context[:shared])
        check_logits(session.extend(context[shared:]), oracle_model, context, counters, "after a shared beginning")
    counters.add("tokens_shared", shared)

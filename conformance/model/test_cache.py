"""Checks of a session's cache: one piece or many, and tokens taken back."""

import pytest

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import OracleModel
from .contexts import ROLLBACK, check_logits, extend_in_pieces, prompt, random_tokens, window_of


@clause("CACHE-1")
def test_decoding_token_by_token_gives_the_logits_of_one_pass(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters
) -> None:
    tokens = prompt(oracle_model.config, 1)
    session = model.new_session()
    got = extend_in_pieces(session, tokens, [1] * len(tokens))
    counters.add("tokens_past_the_window", len(tokens) - window_of(oracle_model.config))
    check_logits(got, oracle_model, tokens, counters, f"{len(tokens)} tokens one by one")


@clause("CHUNK-1")
@pytest.mark.parametrize("border", [-1, 0, 1])
def test_prefill_in_two_chunks_around_the_window_gives_the_logits_of_one_pass(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, border: int
) -> None:
    tokens, first = prompt(oracle_model.config, 1), window_of(oracle_model.config) + border
    got = extend_in_pieces(model.new_session(), tokens, [first, len(tokens) - first])
    counters.add("tokens_in_the_second_chunk", len(tokens) - first)
    check_logits(got, oracle_model, tokens, counters, f"chunks of {first} and {len(tokens) - first}")


@clause("CHUNK-1")
@pytest.mark.parametrize("size", [7, 31])
def test_prefill_in_many_chunks_gives_the_logits_of_one_pass(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, size: int
) -> None:
    tokens = prompt(oracle_model.config, 2)
    sizes = [size] * (len(tokens) // size) + ([len(tokens) % size] if len(tokens) % size else [])
    got = extend_in_pieces(model.new_session(), tokens, sizes)
    counters.add("chunks", len(sizes) - 1)
    check_logits(got, oracle_model, tokens, counters, f"chunks of {size}")


@clause("ROLLBACK-1")
@pytest.mark.parametrize("taken_back", range(1, ROLLBACK + 1))
def test_what_is_taken_back_leaves_nothing_behind(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, taken_back: int
) -> None:
    """As a rejected draft: tokens come in together, the newest go, others take their place; past the window."""
    tokens = prompt(oracle_model.config, 1)
    kept = len(tokens) - 2 * ROLLBACK
    session = model.new_session()
    session.extend(tokens[:kept])
    session.extend(random_tokens(oracle_model.config, taken_back, 5))
    session.truncate(kept)
    got = extend_in_pieces(session, tokens[kept:], [1, ROLLBACK, ROLLBACK - 1])
    check_logits(got, oracle_model, tokens, counters, f"after {taken_back} tokens were taken back")


@clause("ROLLBACK-1")
def test_sessions_do_not_share_what_they_remember(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters
) -> None:
    tokens, others = prompt(oracle_model.config, 1), prompt(oracle_model.config, 2)
    half = len(tokens) // 2
    session, beside = model.new_session(), model.new_session()
    session.extend(tokens[:half])
    beside.extend(others[:half])
    got = session.extend(tokens[half:])
    check_logits(got, oracle_model, tokens, counters, "a session with another beside it")

"""Checks of sessions used in any order, and of the same calls again."""

import random

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel, GuardedSession
from ..oracle import OracleModel
from ..tolerance import within
from .contexts import ROLLBACK, check_logits, envelope, prompt, random_tokens, window_of

NUM_SESSIONS, STEPS = 4, 40
REPLAYS = 3


@clause("INTERLEAVE-1")
@pytest.mark.parametrize("order", [0, pytest.param(1, marks=pytest.mark.full), pytest.param(2, marks=pytest.mark.full)])
def test_sessions_used_in_any_order_give_their_own_logits(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int, order: int
) -> None:
    """Extend, take back, end and begin anew, as a scheduler does; what is left at the end is judged."""
    choose = random.Random(1000 * seed + order)
    sessions: dict[int, GuardedSession] = {}
    contexts: dict[int, list[int]] = {}
    for step in range(STEPS):
        number = choose.randrange(NUM_SESSIONS)
        if number not in sessions:
            sessions[number], contexts[number] = model.new_session(), []
        session, context = sessions[number], contexts[number]
        action = choose.random()
        if action < 0.15 and len(context) > ROLLBACK:
            taken_back = choose.randint(1, ROLLBACK)
            session.extend(new := random_tokens(oracle_model.config, taken_back, 500 + step))
            session.truncate(len(context))
            counters.add("tokens_taken_back", len(new))
        elif action < 0.25 and len(sessions) > 1:
            session.close()
            del sessions[number], contexts[number]
            counters.add("sessions_ended", 1)
        else:
            size = choose.choice((1, 1, 2, 5, window_of(oracle_model.config)))
            new = random_tokens(oracle_model.config, size, 1000 * order + step)
            session.extend(new)
            context += new
    for number, session in sessions.items():
        newest = random_tokens(oracle_model.config, 3, 77 + number)
        got, context = session.extend(newest), contexts[number] + newest
        check_logits(
            got, oracle_model, context, counters, f"session {number} after {STEPS} steps, {len(context)} tokens"
        )
    counters.add("sessions_left", len(sessions) - 1)


@clause("REPEAT-1")
def test_the_same_calls_again_give_the_same_logits_and_others_give_others(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int
) -> None:
    """Shapes stay, contents change and come back: a captured graph that reads old memory shows here."""
    tokens = prompt(oracle_model.config, seed + 1)
    others = [random_tokens(oracle_model.config, len(tokens), 31 * replay + seed) for replay in range(REPLAYS)]
    first = model.new_session().extend(tokens).double()
    bound = 2 * envelope(oracle_model, tuple(tokens)).row_bound(torch.float32)[:, None]
    for replay, other in enumerate(others):
        between = model.new_session().extend(other)
        check_logits(between, oracle_model, other, counters, f"other tokens, replay {replay}")
        counters.add("rows_that_changed", int((between != first).any(dim=-1).sum()))
        again = model.new_session().extend(tokens).double()
        rule = "twice the envelope of the logits"
        within(again, first, bound, rule, counters, f"the same tokens, replay {replay}")


@clause("REPEAT-1")
def test_decoding_steps_of_one_shape_read_their_own_tokens(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int
) -> None:
    """Two sessions in turn, a token at a time: every step has the shape of the one before, and another content."""
    contexts = [prompt(oracle_model.config, seed + 1)[:12], prompt(oracle_model.config, seed + 2)[:12]]
    sessions = [model.new_session() for _ in contexts]
    logits: list[list[torch.Tensor]] = [[], []]
    for step in range(12):
        for number, session in enumerate(sessions):
            logits[number].append(session.extend([contexts[number][step]]))
    counters.add("replays", 11 * len(contexts))
    for number, context in enumerate(contexts):
        check_logits(torch.cat(logits[number]), oracle_model, context, counters, f"session {number} of two in turn")

"""Checks of several contexts in one step: each is what it is alone."""

import pytest
import torch
from torch import Tensor

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel, GuardedSession
from ..oracle import OracleModel
from .contexts import check_logits, random_tokens, window_of
from .texts import Windows

STEPS = (1, 1, 5, 1)  # tokens of each step after the first, dealt out in turn: steps of a batch are ragged


def extend_in_batches(
    model: GuardedModel, contexts: list[list[int]], first: list[int], order: list[int]
) -> list[Tensor]:
    """Feed contexts side by side: logits [T, V] of each.

    Args:
        first: tokens of each in the first step; then steps of one to five tokens, as long as there are any.
        order: in which order the contexts stand in the batches after the first; rows move between steps.
    """
    sessions: list[GuardedSession] = [model.new_session() for _ in contexts]
    logits: list[list[Tensor]] = [[] for _ in contexts]
    rows = list(range(len(contexts)))
    sizes = list(first)
    step = 0
    while rows:
        pieces = [contexts[row][sessions[row].length :][: sizes[row]] for row in rows]
        for row, got in zip(rows, model.extend_batch([sessions[row] for row in rows], pieces), strict=True):
            logits[row].append(got)
        rows = [row for row in order if sessions[row].length < len(contexts[row])]
        sizes = [STEPS[(row + step) % len(STEPS)] for row in range(len(contexts))]
        step += 1
    return [torch.cat(parts) for parts in logits]


@clause("BATCH-1")
@pytest.mark.parametrize("backwards", [False, True], ids=["rows stay", "rows move"])
def test_contexts_of_any_length_in_one_step_are_what_each_is_alone(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int, backwards: bool
) -> None:
    """Prompts shorter, as long and longer than the window, each its own text; then ragged steps."""
    window = window_of(oracle_model.config)
    first = [1, window - 1, window, window + 1, window * 3 // 2 + 5]
    contexts = [random_tokens(oracle_model.config, count + 7, 100 * seed + count) for count in first]
    order = list(range(len(contexts)))
    got = extend_in_batches(model, contexts, first, order[::-1] if backwards else order)
    counters.add("contexts_that_cross_the_window", sum(len(context) > window for context in contexts))
    for row, (logits, tokens) in enumerate(zip(got, contexts, strict=True)):
        check_logits(logits, oracle_model, tokens, counters, f"row {row} of {len(contexts)}, {len(tokens)} tokens")


@clause("BATCH-1")
@pytest.mark.parametrize("place", [0, 1], ids=["before", "after"])
def test_a_single_token_beside_a_long_prompt_is_what_it_is_alone(
    model: GuardedModel, oracle_model: OracleModel, texts: Windows, counters: Counters, seed: int, place: int
) -> None:
    """A decode step and a prefill in one batch, at either place."""
    long, short = texts(1, window_of(oracle_model.config) * 2 + 1, seed)[0], random_tokens(oracle_model.config, 9, seed)
    contexts, first = [long, short], [len(long), 1]
    if place:
        contexts, first = contexts[::-1], first[::-1]
    got = extend_in_batches(model, contexts, first, [1, 0])
    counters.add("tokens_beside_the_single_one", len(long))
    for row, (logits, tokens) in enumerate(zip(got, contexts, strict=True)):
        check_logits(logits, oracle_model, tokens, counters, f"row {row}, {len(tokens)} tokens")


@clause("BATCH-1")
@pytest.mark.full
@pytest.mark.parametrize("count", [16, 33])
def test_many_contexts_in_one_step_are_what_each_is_alone(
    model: GuardedModel, oracle_model: OracleModel, texts: Windows, counters: Counters, seed: int, count: int
) -> None:
    window = window_of(oracle_model.config)
    first = [1 + (7 * row) % (2 * window) for row in range(count)]
    contexts = [text[: first[row] + 3] for row, text in enumerate(texts(count, 2 * window + 3, seed))]
    got = extend_in_batches(model, contexts, first, list(range(count))[::-1])
    counters.add("contexts", count)
    for row, (logits, tokens) in enumerate(zip(got, contexts, strict=True)):
        check_logits(logits, oracle_model, tokens, counters, f"row {row} of {count}, {len(tokens)} tokens")

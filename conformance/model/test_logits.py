"""Checks of a whole model's logits."""

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import LEGAL_MODELS, OracleModel
from ..tolerance import ENVELOPE_FACTOR, within
from .contexts import check_logits, envelope, prompt, random_tokens, window_of

MOST_CONTEXTS = 12  # that tell one window from another


@clause("LOGITS-1")
@pytest.mark.parametrize("seed", [1, 2])
def test_logits_of_a_whole_context_are_the_oracles(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int
) -> None:
    tokens = prompt(oracle_model.config, seed)
    got = model.new_session().extend(tokens)
    check_logits(got, oracle_model, tokens, counters, f"context {seed} of {len(tokens)} tokens")


@clause("LOGITS-1")
def test_logits_of_a_single_token_are_the_oracles(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters
) -> None:
    for token in (oracle_model.config.bos_token_id, oracle_model.config.vocab_size - 1):
        tokens = [token]
        check_logits(model.new_session().extend(tokens), oracle_model, tokens, counters, f"token {token} alone")


@clause("CAUSAL-1")
def test_later_tokens_do_not_change_earlier_logits(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters
) -> None:
    """Two contexts that part at one token: before it, both are legal evaluations of the same logits."""
    tokens = prompt(oracle_model.config, 3)
    parting = len(tokens) - 7
    other = tokens[:parting] + random_tokens(oracle_model.config, 7, 4)
    first, second = (model.new_session().extend(context).double().cpu() for context in (tokens, other))
    bound = 2 * envelope(oracle_model, tuple(tokens)).row_bound(torch.float32)[:parting, None]
    rule = "twice the envelope of the logits"
    within(second[:parting], first[:parting], bound, rule, counters, f"two contexts that part at token {parting}")
    counters.add("later_logits_that_changed", int((first[parting:] != second[parting:]).sum()))


@clause("WINDOW-1")
@pytest.mark.parametrize("more", [-1, 1])
def test_sliding_layers_see_neither_one_key_more_nor_fewer(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, more: int
) -> None:
    """The engine is nearer to the oracle than to the model of the other window.

    Its residual is projected on the difference of both models: 0 is the right window, 1 the other one, and a half is
    between them. Rows count by how exactly legal evaluations know them. More contexts are taken until each legal
    evaluation is well within a half, too.
    """
    window = window_of(oracle_model.config)
    past = slice(window, None)  # rows that have forgotten something
    products, squares = torch.zeros(1 + LEGAL_MODELS, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for seed in range(1, MOST_CONTEXTS + 1):
        tokens = prompt(oracle_model.config, seed)
        whole = envelope(oracle_model, tuple(tokens))
        other = (oracle_model.logits(tokens, window + more) - whole.exact)[past]
        evaluations = [model.new_session().extend(tokens), *whole.legal[:LEGAL_MODELS]]
        residuals = torch.stack([(one.double() - whole.exact)[past] for one in evaluations])
        weight = 1 / residuals[1:].square().mean(dim=(0, 2))
        products += (weight * (residuals * other).sum(dim=2)).sum(dim=1)
        squares += (weight * other.square().sum(dim=1)).sum()
        shares = products / squares
        if (ENVELOPE_FACTOR * shares[1:].abs() < 0.5).all():
            break
    counters.add("legal_evaluations_are_sure", bool((ENVELOPE_FACTOR * shares[1:].abs() < 0.5).all()))
    rule = "half way to the model of the other window"
    where = f"share of a window of {window + more} in rows past {window}"
    within(shares[:1], torch.zeros(1), torch.tensor([0.5]), rule, counters, where)

"""Checks of a whole model's logits."""

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import OracleModel
from ..tolerance import ENVELOPE_FACTOR, within
from .contexts import check_logits, envelope, prompt, random_tokens, window_of


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
    between them. Rows count by how exactly legal evaluations know them; these must stay well within a half, too.
    """
    tokens = prompt(oracle_model.config, 1)
    window = window_of(oracle_model.config)
    whole = envelope(oracle_model, tuple(tokens))
    past = slice(window, None)  # rows that have forgotten something
    other = (oracle_model.logits(tokens, window + more) - whole.exact)[past]
    legal = [(one.double() - whole.exact)[past] for one in whole.legal]
    weight = 1 / torch.stack(legal).square().mean(dim=(0, 2))

    def share(residual: torch.Tensor) -> torch.Tensor:
        products, squares = (residual * other).sum(dim=1), other.square().sum(dim=1)
        return (weight * products).sum() / (weight * squares).sum()

    counters.add("legal_evaluations_are_sure", all(ENVELOPE_FACTOR * abs(share(one)) < 0.5 for one in legal))
    got = model.new_session().extend(tokens).double()
    rule = "half way to the model of the other window"
    where = f"share of a window of {window + more} in rows past {window}"
    within(share((got - whole.exact)[past])[None], torch.zeros(1), torch.tensor([0.5]), rule, counters, where)

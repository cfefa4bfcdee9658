"""Checks of what is left when single logits are right: the distribution over much text, against legal noise."""

import torch
from torch import Tensor

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import OracleModel
from ..tolerance import ENVELOPE_FACTOR, within
from .contexts import envelope, window_of
from .rates import check_as_rare
from .texts import Windows

NUM_TEXTS = 4


def divergences(got: Tensor, exact: Tensor) -> Tensor:
    """[T] KL(oracle || engine) in nats, float64."""
    log_p, log_q = exact.double().log_softmax(dim=-1), got.double().log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


@clause("DIST-1")
def test_the_distribution_over_real_text_is_within_the_noise_of_legal_evaluations(
    model: GuardedModel, oracle_model: OracleModel, texts: Windows, counters: Counters, seed: int
) -> None:
    """Mean and 99.9 percentile of KL, and how often the likeliest token differs; each against the worst legal one."""
    engine, legal = [], []
    for tokens in texts(NUM_TEXTS, 2 * window_of(oracle_model.config), seed):
        whole = envelope(oracle_model, tuple(tokens))
        exact = whole.exact
        engine.append(_measured(model.new_session().extend(tokens), exact))
        legal.append(torch.stack([_measured(one, exact) for one in whole.legal]))
    got, population = torch.cat(engine), torch.cat(legal, dim=1)  # [T, 2] and [evaluations, T, 2]: KL, differs
    counters.add("tokens_of_text", len(got))
    counters.add("mean_of_legal_divergences", population[..., 0].mean().item())
    for name, statistic in (("mean", torch.mean), ("99.9 percentile", _tail)):
        floor = torch.stack([statistic(one[:, 0]) for one in population]).max()
        rule = f"{ENVELOPE_FACTOR} x the worst of legal evaluations, {name} of KL"
        value = statistic(got[:, 0])
        within(value[None], torch.zeros(1), ENVELOPE_FACTOR * floor[None], rule, counters, f"{name} of KL over text")
    flips, legal_flips = int(got[:, 1].sum()), int(population[..., 1].sum())
    check_as_rare(flips, legal_flips, len(population), counters, "another likeliest token")


def _measured(logits: Tensor, exact: Tensor) -> Tensor:
    differs = logits.double().argmax(dim=-1) != exact.argmax(dim=-1)
    return torch.stack((divergences(logits, exact).clamp(min=0), differs.double()), dim=-1)


def _tail(divergence: Tensor) -> Tensor:
    return divergence.quantile(0.999)

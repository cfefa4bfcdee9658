"""Checks of the routing of a whole model, layer by layer, and of its logits given that routing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import OracleModel
from ..tolerance import near_tie
from ..under_test import UnderTest
from . import tiny
from .contexts import prompt, random_tokens
from .forced import Replays, Routing, replay_all, routed
from .loading import Load
from .rates import check_as_rare
from .texts import Windows

TEXT_TOKENS = 96  # of each text
TIED_TOKENS = 48
EPS64 = torch.finfo(torch.float64).eps


def check_routing(oracle: OracleModel, tokens: list[int], routing: Routing, counters: Counters, where: str) -> Replays:
    """Each layer's ids by the oracle's scores and its weights by the engine's own ids, given its ids before.

    Then how often choices are other than the oracle's: a sloppier router stays within the errors, but not so rarely.
    Among experts whose scores float64 finds equal, any choice is the oracle's.
    """
    replays = replay_all(oracle, tokens, routing)
    flips, legal_flips = 0, 0
    for layer, (ids, weights) in routing.items():
        scores, errors, top_k = replays.oracle.biased[layer], replays.score_errors(layer), ids.shape[1]
        for token, chosen in enumerate(ids.tolist()):
            at = f"{where}, layer {layer}, token {token}"
            near_tie(set(chosen), scores[token], errors[token], top_k, counters, at)
        counters.add("tokens_times_layers", len(ids))
        in_float64 = replays.oracle.dot_errors[layer] * EPS64 / torch.finfo(oracle.profile.accumulate).eps
        flips += flipped(ids, scores, in_float64)
        legal_flips += sum(flipped(one.biased[layer].topk(top_k).indices, scores, in_float64) for one in replays.legal)
        replays.weights(layer).check(weights, counters, f"{where}, layer {layer}, weights of the chosen experts")
    check_as_rare(flips, legal_flips, len(replays.legal), counters, f"{where}, choices unlike the oracle's")
    return replays


def flipped(ids: Tensor, scores: Tensor, errors: Tensor) -> int:
    """Tokens whose experts ids [T, A] have other scores than the largest; scores, and their errors: [T, E]."""
    got = scores.gather(-1, ids).sort(dim=-1, descending=True).values
    apart = (scores.topk(ids.shape[1]).values - got).abs() > 2 * errors.amax(dim=-1, keepdim=True)
    return int(apart.any(dim=-1).sum())


def near_ties(replays: Replays, routing: Routing) -> int:
    """Choices whose margin is within the errors of two scores: either way is legal."""
    count = 0
    for layer, (ids, _) in routing.items():
        ranked = replays.oracle.biased[layer].sort(dim=-1, descending=True).values
        margins = ranked[:, ids.shape[1] - 1] - ranked[:, ids.shape[1]]
        count += int((margins <= 2 * replays.score_errors(layer).amax(dim=-1)).sum())
    return count


def pieces_of(tokens: list[int], steps: int = 6) -> list[list[int]]:
    """A prefill, a chunk, and steps of one token."""
    chunk = steps + 5
    return [tokens[:-chunk], tokens[-chunk:-steps], *([token] for token in tokens[-steps:])]


@clause("ROUTE-1")
@pytest.mark.parametrize("in_pieces", [False, True], ids=["in one pass", "in pieces"])
def test_every_layer_chooses_by_the_scores_that_its_own_choices_lead_to(
    model: GuardedModel, oracle_model: OracleModel, texts: Windows, counters: Counters, seed: int, in_pieces: bool
) -> None:
    contexts = {"text": texts(1, TEXT_TOKENS, seed)[0], "random tokens": prompt(oracle_model.config, 1 + seed)}
    for name, tokens in contexts.items():
        pieces = pieces_of(tokens) if in_pieces else [tokens]
        _, routing = routed(model.new_session(), oracle_model.config, pieces)
        check_routing(oracle_model, tokens, routing, counters, name)


@clause("ROUTE-1")
def test_ties_are_decided_either_way_and_nothing_after_them_goes_unjudged(
    engine: UnderTest, load: Load, tmp_path: Path, counters: Counters, seed: int
) -> None:
    """Experts in pairs whose scores are equal or nearly so, and whose weights are not."""
    fields = tiny.fields_for(engine.profile, moe_top_k=3)  # odd, so that a pair lies on the border
    tensors = tiny.random_weights(fields, seed)
    for name, tensor in tensors.items():
        if name.endswith("moe.gate.weight"):
            tensor[1::2] = tensor[::2]
            tensor[3::4, 0] *= 1.0625  # every second pair differs in one number
        elif name.endswith("moe.router_bias"):
            tensor[1::2] = tensor[::2]
    folder = tiny.write(tmp_path, fields, tensors)
    oracle = OracleModel(folder, engine.profile)
    tokens = random_tokens(oracle.config, TIED_TOKENS, seed)
    _, routing = routed(load(folder).new_session(), oracle.config, [tokens])
    replays = check_routing(oracle, tokens, routing, counters, "experts in pairs")
    counters.add("near_ties", near_ties(replays, routing))


@clause("LOGITS-2")
@pytest.mark.parametrize("in_pieces", [False, True], ids=["in one pass", "in pieces"])
def test_logits_are_the_oracles_given_the_engines_own_choices(
    model: GuardedModel, oracle_model: OracleModel, texts: Windows, counters: Counters, seed: int, in_pieces: bool
) -> None:
    contexts = {"text": texts(1, TEXT_TOKENS, seed)[0], "random tokens": prompt(oracle_model.config, 1 + seed)}
    for name, tokens in contexts.items():
        pieces = pieces_of(tokens) if in_pieces else [tokens]
        logits, routing = routed(model.new_session(), oracle_model.config, pieces)
        counters.add("tokens", len(tokens))
        replay_all(oracle_model, tokens, routing).logits().check(logits, counters, name)

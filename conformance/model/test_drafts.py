"""Checks of the MTP layers: their logits along a text, and how drafts are counted."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reference.model import Model

from ..clauses import clause
from ..counters import EXACTLY, Counters
from ..guard import Generation, GuardedModel
from ..oracle import OracleModel
from ..tolerance import ConformanceError, Envelope, bit_exact
from ..under_test import UnderTest
from . import tiny
from .contexts import NUM_DRAFTS, prompt, window_of
from .loading import Load
from .texts import Windows

TEXT_TOKENS = 72
NEW_TOKENS = 48
Counts = tuple[tuple[int, ...], tuple[int, ...]]  # drafted, accepted at each position


def draft_logits_of(model: Model, token_ids: Sequence[int]) -> list[Tensor]:
    """Logits of every depth k along a text, [T - 1 - k, V]; each depth goes on from the one before."""
    tokens = torch.tensor(token_ids)
    logits = []
    with torch.inference_mode():
        hidden = model.hidden(tokens)
        for depth in range(model.config.num_nextn_predict_layers):
            following = tokens[1 + depth :]
            hidden = model.mtp_hidden(depth, hidden[: len(following)], following)
            logits.append(model.mtp_logits(depth, hidden))
    return logits


@cache
def draft_envelopes(oracle: OracleModel, token_ids: tuple[int, ...]) -> list[Envelope]:
    """What each depth's logits may be; computed once for all checks."""
    legal = [draft_logits_of(model, token_ids) for model in oracle.legal_passes(list(token_ids))]
    exact = draft_logits_of(oracle.model, token_ids)
    return [Envelope([one[depth] for one in legal], exact[depth], medians=True) for depth in range(len(exact))]


@clause("DRAFT-1")
def test_draft_logits_of_every_depth_are_the_oracles(
    model: GuardedModel, oracle_model: OracleModel, texts: Windows, counters: Counters, seed: int
) -> None:
    contexts = {"text": texts(1, TEXT_TOKENS, seed)[0], "random tokens": prompt(oracle_model.config, 1 + seed)}
    for name, tokens in contexts.items():
        got, envelopes = model.draft_logits(tokens), draft_envelopes(oracle_model, tuple(tokens))
        if len(got) != len(envelopes):
            raise ConformanceError(f"draft_logits: are of {len(got)} depths; want {len(envelopes)}, the MTP layers")
        for depth, envelope in enumerate(envelopes):
            counters.add(f"rows_past_the_window_at_depth_{depth}", len(got[depth]) - window_of(oracle_model.config))
            envelope.check(got[depth], counters, f"{name}, depth {depth}")


@clause("DRAFTCOUNT-1")
@pytest.mark.parametrize("mtp", range(1, NUM_DRAFTS + 1))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_that_are_counted_explain_the_tokens(
    model: GuardedModel, texts: Windows, counters: Counters, seed: int, mtp: int, temperature: float
) -> None:
    """Each step emits the drafts that it accepts and one token more; only the last may be cut, or have none to draft.

    A position is reached by accepting all before it, and its draft is verified in the same steps as theirs.
    """
    for number, start in enumerate(texts(1, 24, seed)):
        result = model.generate(start, NEW_TOKENS, mtp=mtp, temperature=temperature, seed=seed + number)
        drafted, accepted = result.drafted_per_position, result.accepted_per_position
        where = f"text {number}, {mtp} drafts, temperature {temperature}, {len(result.tokens)} tokens"
        pairs = zip(accepted, drafted, strict=True)
        broken = [
            *(f"{a} accepted of {d} drafted at {i}" for i, (a, d) in enumerate(pairs) if not 0 <= a <= d),
            *(f"more accepted at {i + 1} than at {i}" for i in range(mtp - 1) if accepted[i + 1] > accepted[i]),
            *(f"more drafted at {i + 1} than at {i}" for i in range(mtp - 1) if drafted[i + 1] > drafted[i]),
        ]
        shorter = drafted[0] - drafted[-1]  # steps that drafted fewer: near the end, each one fewer than the one before
        if shorter > mtp:
            broken.append(f"{shorter} steps drafted fewer than {mtp}")
        # tokens after the prompt's own: one a step and one for each accepted draft, less what the end cuts off
        cut = drafted[0] + sum(accepted) - (len(result.tokens) - 1)
        if not -1 <= cut <= mtp:
            broken.append(f"{drafted[0]} steps that accept {sum(accepted)} drafts")
        counters.add("drafts_accepted", sum(accepted))
        counters.add("drafts_rejected", sum(drafted) - sum(accepted))
        counters.compared(EXACTLY, len(broken), 0, where)
        if broken:
            raise ConformanceError(
                f"{where}: drafted {drafted}, accepted {accepted}: {'; '.join(broken)}; want counts that add up"
            )


@clause("DRAFTCOUNT-1")
def test_drafts_are_accepted_where_their_logits_say_so(
    model: GuardedModel, oracle_model: OracleModel, texts: Windows, counters: Counters, seed: int
) -> None:
    """Greedily: a step accepts the drafts whose logits, along the finished text, are largest at the text's own tokens.

    From the engine's own draft logits; where two are as near as legal evaluations differ, either may be the largest.
    """
    for number, start in enumerate(texts(2, 24, seed)):
        result = model.generate(start, NEW_TOKENS, mtp=NUM_DRAFTS, temperature=0.0)
        tokens = start + result.tokens
        envelopes = draft_envelopes(oracle_model, tuple(tokens))
        hits = [
            _hits(logits, tokens[2 + depth :], envelope.row_bound(logits.dtype))
            for depth, (logits, envelope) in enumerate(zip(model.draft_logits(tokens), envelopes, strict=True))
        ]
        ended = tokens[-1] in oracle_model.config.eos_token_ids
        check_counts(result, possible_counts(hits, len(start), len(tokens), ended), counters, f"text {number}")


@clause("DRAFTCOUNT-1")
def test_each_depth_is_counted_at_its_own_position(
    engine: UnderTest, load: Load, tmp_path: Path, counters: Counters, seed: int
) -> None:
    """A model that counts, and whose depths mistake known tokens: the counts are known, too."""
    fields = tiny.fields_for(engine.profile)
    mistaken = [(depth, token) for token in range(256) for depth in range(NUM_DRAFTS) if token % (5 + depth) == depth]
    model = load(tiny.write(tmp_path, fields, tiny.successor_weights(fields, seed, mistaken)))
    for start in range(10, 16):
        tokens = list(range(start, start + 41))
        result = model.generate(tokens[:1], 40, mtp=NUM_DRAFTS, temperature=0.0)
        bit_exact(torch.tensor(result.tokens), torch.tensor(tokens[1:]), counters, f"the numbers after {start}")
        # row i of depth k takes token i + 1 + k
        hits = [[{(depth, token) not in mistaken} for token in tokens[1 + depth : -1]] for depth in range(NUM_DRAFTS)]
        check_counts(result, possible_counts(hits, 1, len(tokens), False), counters, f"the numbers after {start}")


def check_counts(result: Generation, possible: set[Counts], counters: Counters, where: str) -> None:
    """Compare what was counted with what can have been."""
    got = (tuple(result.drafted_per_position), tuple(result.accepted_per_position))
    for position, (drafted, accepted) in enumerate(zip(*got, strict=True)):
        counters.add(f"accepted_at_{position}", accepted)
        counters.add(f"rejected_at_{position}", drafted - accepted)
    counters.compared("one of the counts that the drafts allow", int(got not in possible), 0, where)
    if got not in possible:
        raise ConformanceError(
            f"{where}: drafted {got[0]}, accepted {got[1]} for {len(result.tokens)} tokens; want one of "
            f"{sorted(possible)[:4]}, by the steps that lead to these tokens"
        )


def _hits(logits: Tensor, tokens: list[int], bounds: Tensor) -> list[set[bool]]:
    """For each row, whether its largest logit can be the text's token, and whether it can be another."""
    found = []
    for row, token in enumerate(tokens):
        others = logits[row].double().clone()
        own = others[token].item()
        others[token] = -torch.inf
        margin, error = own - others.max().item(), 4 * bounds[row].item()  # of two logits, in either of two runs
        found.append({True} if margin > error else {False} if margin < -error else {True, False})
    return found


def possible_counts(hits: list[list[set[bool]]], start: int, end: int, ended: bool) -> set[Counts]:
    """Every way in which steps can lead from the first token after the prompt to the last.

    Args:
        hits: of depth k and row i, whether the draft for token i + 2 + k can be right.
        start, end: tokens of the prompt, and of all.
        ended: whether an end token cut the last step.
    """
    depths = len(hits)
    nothing: Counts = ((0,) * depths, (0,) * depths)
    reached: dict[int, set[Counts]] = {start + 1: {nothing}}  # by tokens so far
    for length in range(start + 1, end):
        for drafted, accepted in reached.get(length, set()):
            left = end - length - 1
            for useful in {min(depths, left), depths if ended else min(depths, left)}:
                for count in _possible_runs(hits, length - 2, useful, left):
                    new = (
                        tuple(d + (i < useful) for i, d in enumerate(drafted)),
                        tuple(a + (i < count) for i, a in enumerate(accepted)),
                    )
                    reached.setdefault(min(length + count + 1, end), set()).add(new)
    return reached.get(end, set())


def _possible_runs(hits: list[list[set[bool]]], row: int, useful: int, left: int) -> set[int]:
    """How many of the drafts of a step can be accepted; nobody knows what those behind an end token met."""
    runs = set()
    for count in range(useful + 1):
        known = min(count, left + 1)
        right = all(True in hits[depth][row] for depth in range(known))
        stops = count == useful or count > left or False in hits[count][row]
        if right and stops:
            runs.add(count)
    return runs

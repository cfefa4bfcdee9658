"""Checks of generation: greedy, with drafts, and with a seed."""

import math

import pytest
import torch

from ..clauses import clause
from ..counters import Counters
from ..guard import GuardedModel
from ..oracle import OracleModel
from ..tolerance import bit_exact, within
from .contexts import NUM_DRAFTS, check_greedy, generate_greedily, written_prompt
from .test_drafts import draft_logits_of

NEW_TOKENS = 24
MOST_PROMPTS = 8  # that are tried until a draft is rejected
DRAFTED_TOKENS = 160  # of each prompt; acceptance is a rate and wants many drafts
FALSE_ALARMS = 1e-6  # of one statistical check, as the whole suite's


@clause("GREEDY-1")
@pytest.mark.parametrize("seed", [1, 2])
def test_greedy_tokens_have_the_largest_logit(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, seed: int
) -> None:
    start = written_prompt(oracle_model, seed)
    generated = generate_greedily(model, start, NEW_TOKENS, mtp=0)
    check_greedy(oracle_model, start, generated, counters, f"prompt {seed}")


@clause("MTPGREEDY-1")
@pytest.mark.parametrize("mtp", range(1, NUM_DRAFTS + 1))
def test_drafts_do_not_change_greedy_tokens(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, mtp: int
) -> None:
    """Token for token; where the two part, the oracle must have found both near enough to a tie.

    Of two prompts, and of more until a draft was rejected.
    """
    rejected = 0
    for seed in range(1, MOST_PROMPTS + 1):
        start = written_prompt(oracle_model, seed)
        plain = generate_greedily(model, start, NEW_TOKENS, mtp=0)
        result = model.generate(start, NEW_TOKENS, mtp=mtp, temperature=0.0)
        drafted = list(result.tokens)
        rejected += sum(result.drafted_per_position) - sum(result.accepted_per_position)
        counters.add("drafts_verified", sum(result.drafted_per_position))
        check_greedy(oracle_model, start, drafted, counters, f"prompt {seed}, {mtp} drafts")
        if not check_parts_at_a_tie(oracle_model, start, plain, drafted, counters):
            bit_exact(torch.tensor(drafted), torch.tensor(plain), counters, f"prompt {seed}, {mtp} drafts and none")
        if seed > 1 and rejected > 0:
            break
    counters.add("drafts_rejected", rejected)


def check_parts_at_a_tie(
    oracle: OracleModel, start: list[int], plain: list[int], drafted: list[int], counters: Counters
) -> bool:
    """Whether two generations part at a token where each is legal for the oracle."""
    parting = next((i for i, pair in enumerate(zip(plain, drafted, strict=False)) if pair[0] != pair[1]), None)
    if parting is None:
        return False
    for tokens in (plain, drafted):
        check_greedy(oracle, start, tokens[: parting + 1], counters, f"where generations part, token {parting}")
    return True


@clause("ACCEPT-1")
def test_drafts_are_accepted_as_often_as_the_references(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters
) -> None:
    """A wrong MTP layer shows nowhere else. Hoeffding's bound on the difference of two rates at each position."""
    drafted, accepted = torch.zeros(NUM_DRAFTS), torch.zeros(NUM_DRAFTS)
    oracle_drafted, oracle_accepted = torch.zeros(NUM_DRAFTS), torch.zeros(NUM_DRAFTS)
    for seed in range(1, 5):
        start = written_prompt(oracle_model, seed)
        result = model.generate(start, DRAFTED_TOKENS, mtp=NUM_DRAFTS, temperature=0.0)
        drafted += torch.tensor(result.drafted_per_position)
        accepted += torch.tensor(result.accepted_per_position)
        for useful, count in oracles_steps(oracle_model, start, result.tokens):
            oracle_drafted[:useful] += 1
            oracle_accepted[:count] += 1
    for position in range(NUM_DRAFTS):
        counters.add(f"drafted_at_{position}", drafted[position].item())
        counters.add(f"accepted_at_{position}", accepted[position].item())
        got, want_rate = (
            a[position] / d[position].clamp(min=1) for a, d in ((accepted, drafted), (oracle_accepted, oracle_drafted))
        )
        fewer = min(drafted[position].item(), oracle_drafted[position].item())
        bound = math.sqrt(math.log(2 / FALSE_ALARMS) / max(fewer, 1))
        counters.add(f"none_accepted_at_{position}_would_show", bool(want_rate > bound))
        rule = f"Hoeffding's, of {fewer:.0f} drafts at {FALSE_ALARMS} false alarms"
        where = f"acceptance at draft position {position}"
        within(got[None], want_rate[None].double(), torch.tensor([bound]), rule, counters, where)


def oracles_steps(oracle: OracleModel, start: list[int], generated: list[int]) -> list[tuple[int, int]]:
    """How many drafts each of the oracle's steps makes and accepts, on the way along what the engine generated.

    Greedy generation is the same with any drafts, so that one pass over the finished text tells what a generation by
    the oracle would: a draft is accepted where its largest logit is at the text's own token.
    """
    tokens = [*start, *generated]
    drafts = [logits.argmax(dim=-1).tolist() for logits in draft_logits_of(oracle.model, tokens)]
    steps, length = [], len(start) + 1  # the prompt's own pass gives the first token
    while length < len(tokens):
        useful = min(NUM_DRAFTS, len(tokens) - length)
        hits = [drafts[depth][length - 2] == tokens[length + depth] for depth in range(useful)]
        steps.append((useful, hits.index(False) if False in hits else useful))
        length += steps[-1][1] + 1
    return steps


@clause("CONTINUE-1")
@pytest.mark.parametrize("mtp", [0, NUM_DRAFTS])
def test_generating_in_two_parts_is_generating_at_once(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters, mtp: int
) -> None:
    start = written_prompt(oracle_model, 1)
    at_once = generate_greedily(model, start, NEW_TOKENS, mtp)
    part = generate_greedily(model, start, NEW_TOKENS // 3, mtp)
    rest = generate_greedily(model, start + part, NEW_TOKENS - len(part), mtp)
    check_greedy(oracle_model, start, part + rest, counters, "generated in two parts")
    if not check_parts_at_a_tie(oracle_model, start, at_once, part + rest, counters):
        bit_exact(torch.tensor(part + rest), torch.tensor(at_once), counters, "in two parts and at once")


@clause("SEED-1")
def test_a_seed_fixes_the_tokens_and_a_shorter_generation_is_a_prefix(
    model: GuardedModel, oracle_model: OracleModel, counters: Counters
) -> None:
    start = written_prompt(oracle_model, 1)

    def tokens(count: int, seed: int) -> torch.Tensor:
        return torch.tensor(model.generate(start, count, temperature=1.0, top_p=0.95, seed=seed).tokens)

    long = tokens(NEW_TOKENS, 1)
    bit_exact(tokens(NEW_TOKENS, 1), long, counters, "seed 1 twice")
    bit_exact(tokens(NEW_TOKENS // 2, 1), long[: NEW_TOKENS // 2], counters, "seed 1, half as long")
    counters.add("another_seed_gives_other_tokens", not torch.equal(tokens(NEW_TOKENS, 2), long))

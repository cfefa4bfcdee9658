"""Checks of the row ``accept_draft``."""

import itertools

import pytest
import torch
from torch import Tensor

from ..clauses import clause
from ..counters import Counters
from ..strategies import Case
from ..tolerance import ConformanceError, bit_exact, gamma, within
from ..under_test import UnderTest

VOCAB, NUM_DRAFTS = 3, 2
SUBCELLS = 2  # a rule with other break points shows inside a cell of the right ones
Prefix = tuple[int, ...]


def toy_model(seed: int, what: str, vocab_size: int, zeros: bool) -> dict[Prefix, Tensor]:
    """A distribution after each prefix of up to NUM_DRAFTS tokens, in sixty-fourths: exact in float32."""
    random = Case("toy", (), seed).random(what)
    table = {}
    for length in range(NUM_DRAFTS + 1):
        for prefix in itertools.product(range(vocab_size), repeat=length):
            cuts = torch.randperm(63, generator=random)[: vocab_size - 1].sort().values + 1
            if zeros and length % 2 == 0:
                cuts[0] = 0
            borders = torch.cat((torch.tensor([0]), cuts, torch.tensor([64])))
            table[prefix] = borders.diff().float() / 64
    return table


def cells(breaks: list[float]) -> list[tuple[float, float]]:
    """(middle, length) of the pieces of [0, 1) between break points, each cut into SUBCELLS."""
    borders = sorted({0.0, 1.0, *(value for value in breaks if 0 < value < 1)})
    return [
        (low + (high - low) * (part + 0.5) / SUBCELLS, (high - low) / SUBCELLS)
        for low, high in itertools.pairwise(borders)
        for part in range(SUBCELLS)
    ]


def emitted_law(accept_draft: object, target: dict[Prefix, Tensor], draft: dict[Prefix, Tensor]) -> dict[Prefix, float]:
    """The law of the next NUM_DRAFTS + 1 tokens, by enumeration of drafts and of the uniform numbers' pieces.

    What a step leaves open is filled from the target, as later steps would.
    """
    assert callable(accept_draft)
    law = dict.fromkeys(itertools.product(range(VOCAB), repeat=NUM_DRAFTS + 1), 0.0)
    for ids in itertools.product(range(VOCAB), repeat=NUM_DRAFTS):
        prefixes = [ids[:length] for length in range(NUM_DRAFTS + 1)]
        drafted = 1.0
        for position, token in enumerate(ids):
            drafted *= draft[prefixes[position]][token].item()
        if drafted == 0:
            continue
        p = torch.stack([target[prefix] for prefix in prefixes])
        q = torch.stack([draft[prefix] for prefix in prefixes[:-1]])
        accepts = [cells([p[i, token].item() / q[i, token].item()]) for i, token in enumerate(ids)]
        last: list[float] = []
        for i in range(NUM_DRAFTS + 1):
            left = (p[i] - q[i]).clamp(min=0) if i < NUM_DRAFTS else p[i]
            if left.sum() > 0:
                last += (left.double() / left.double().sum()).cumsum(dim=0).tolist()
        for pieces in itertools.product(*accepts, cells(last)):
            uniforms = torch.tensor([middle for middle, _ in pieces], dtype=torch.float64)
            share = drafted
            for _, length in pieces:
                share *= length
            accepted, following = accept_draft(p, q, torch.tensor(ids), uniforms)
            if not (0 <= accepted <= NUM_DRAFTS and 0 <= following < VOCAB):
                raise ConformanceError(
                    f"accept_draft: returned {accepted, following}; want 0..{NUM_DRAFTS} and a token"
                )
            emitted = (*ids[:accepted], following)
            for sequence in law:
                if sequence[: len(emitted)] == emitted:
                    rest = share
                    for length in range(len(emitted), NUM_DRAFTS + 1):
                        rest *= target[sequence[:length]][sequence[length]].item()
                    law[sequence] += rest
    return law


@clause("SPEC-2")
@pytest.mark.parametrize(("seed", "zeros"), [(2, False), (0, True)], ids=["full support", "tokens of probability zero"])
def test_what_is_emitted_is_distributed_as_the_target(
    engine: UnderTest, counters: Counters, seed: int, zeros: bool
) -> None:
    """No sampling: every draft and every piece of the uniform numbers between break points, weighed by its volume."""
    target = toy_model(seed, "target", VOCAB, zeros)
    draft = toy_model(seed, "draft", VOCAB, False)
    accept_draft = engine.op("accept_draft")
    outcomes: list[int] = []

    def watched(*args: Tensor) -> tuple[int, int]:
        accepted, following = accept_draft(*args)
        outcomes.append(accepted)
        return accepted, following

    law = emitted_law(watched, target, draft)
    left = [(target[prefix] - draft[prefix]).clamp(min=0) for prefix in target if len(prefix) < NUM_DRAFTS]
    counters.add("residuals_of_several_tokens", sum(int(row.count_nonzero() > 1) for row in left))
    for accepted in range(NUM_DRAFTS + 1):
        counters.add(f"accepted_{accepted}", outcomes.count(accepted))
    want = []
    for sequence in law:
        share = 1.0
        for length in range(NUM_DRAFTS + 1):
            share *= target[sequence[:length]][sequence[length]].item()
        want.append(share)
    got, exact = torch.tensor(list(law.values()), dtype=torch.float64), torch.tensor(want, dtype=torch.float64)
    bound = torch.full_like(exact, gamma(len(outcomes), torch.float64))
    rule = f"a float64 sum of {len(outcomes)} pieces"
    within(got, exact, bound, rule, counters, f"probability of each {NUM_DRAFTS + 1} tokens")


@clause("SPEC-1")
@pytest.mark.parametrize("num_drafts", [0, 1, 2, 3])
def test_greedy_accepts_exactly_what_equals_the_target(engine: UnderTest, counters: Counters, num_drafts: int) -> None:
    """Every draft against one chain of target tokens, for uniform numbers at both ends."""
    vocab_size, chain = 4, [2, 0, 3, 1][: num_drafts + 1]
    accept_draft = engine.op("accept_draft")
    target = torch.nn.functional.one_hot(torch.tensor(chain), vocab_size).float()
    for ids in itertools.product(range(vocab_size), repeat=num_drafts):
        drafts = torch.tensor(ids, dtype=torch.int64)
        draft = torch.nn.functional.one_hot(drafts, vocab_size).float()
        agreeing = next((i for i, token in enumerate(ids) if token != chain[i]), num_drafts)
        for uniform in (0.0, 1 - 2.0**-53):
            uniforms = torch.full((num_drafts + 1,), uniform, dtype=torch.float64)
            got = torch.tensor(accept_draft(target, draft, drafts, uniforms))
            where = f"target {chain}, draft {list(ids)}, uniforms {uniform}: accepted and following"
            bit_exact(got, torch.tensor([agreeing, chain[agreeing]]), counters, where)


@clause("SPEC-2")
def test_a_draft_is_accepted_with_the_ratio_of_both_probabilities(engine: UnderTest, counters: Counters) -> None:
    """Target 1/4, draft 1/2: accepted below a uniform number of 1/2; target above draft: always accepted."""
    target = torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
    draft = torch.tensor([[0.5, 0.25, 0.25]])
    accept_draft = engine.op("accept_draft")
    for token, uniform, want in ((0, 0.49, (1, 2)), (0, 0.51, (0, 1)), (1, 0.999, (1, 2)), (2, 0.999, (1, 2))):
        uniforms = torch.tensor([uniform, 0.5], dtype=torch.float64)
        got = torch.tensor(accept_draft(target, draft, torch.tensor([token]), uniforms))
        bit_exact(got, torch.tensor(want), counters, f"draft {token} at uniform {uniform}: accepted and following")

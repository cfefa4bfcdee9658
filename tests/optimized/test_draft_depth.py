"""Depths chosen from what steps cost and which drafts hold: against an exhaustive search over the true numbers."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from optimized.draft_depth import DraftDepth

DEEPEST = 3


def accepted(chance: random.Random, depth: int, holds: float) -> int:
    """Drafts that hold before the first that does not."""
    return len(list(itertools.takewhile(lambda _: chance.random() < holds, range(depth))))


def run(
    chosen: DraftDepth, steps: int, costs_s: Sequence[float], holds: float, rows: int = 8, seed: int = 0
) -> Counter[int]:
    """Steps at each depth."""
    chance, seen = random.Random(seed), Counter[int]()
    for _ in range(steps):
        depth = chosen.depth
        seen[depth] += 1
        noise = chance.uniform(0.99, 1.01)
        chosen.observe(depth, costs_s[depth] * noise, [accepted(chance, depth, holds) for _ in range(rows)])
    return seen


@pytest.mark.parametrize("holds", [0.05, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    "costs_s", [(1.0, 1.1, 1.2, 1.3), (1.0, 1.3, 1.6, 1.9), (1.0, 1.7, 2.4, 3.1), (1.0, 1.05, 1.6, 2.2)]
)
def test_the_depth_with_most_tokens_per_second_is_found(costs_s: Sequence[float], holds: float) -> None:
    seen = run(DraftDepth(DEEPEST), 3000, costs_s, holds, rows=64)
    rates = [sum(holds**i for i in range(depth + 1)) / cost_s for depth, cost_s in enumerate(costs_s)]
    good = sum(seen[depth] for depth, rate in enumerate(rates) if rate >= 0.95 * max(rates))  # the margin, and noise
    assert good > 0.9 * 3000


def test_expected_tokens_and_rates_follow_the_formula() -> None:
    chosen = DraftDepth(2, trial=1)
    chosen.observe(2, 4.0, [2, 1, 0, 1])
    assert [chosen.expected(depth) for depth in range(3)] == [1, 1.75, 2]
    assert [chosen.rate(depth) for depth in range(3)] == [0, 0, 0.5]
    chosen.observe(1, 3.5, [1, 0, 1, 1])
    chosen.observe(0, 2.0, [0, 0, 0, 0])
    assert [chosen.rate(depth) for depth in range(3)] == [0.5, 0.5, 0.5]


def test_drafts_that_no_longer_hold_are_no_longer_made_and_come_back_when_they_do() -> None:
    costs_s, chosen = (1.0, 1.2, 1.4, 1.6), DraftDepth(DEEPEST, interval=200)
    assert run(chosen, 400, costs_s, 0.9).most_common(1)[0][0] == 3
    assert run(chosen, 1000, costs_s, 0.02)[0] > 700
    seen = run(chosen, 1000, costs_s, 0.9)
    assert seen[3] > 600


def test_each_depth_is_tried_before_one_is_chosen_and_rarely_afterwards() -> None:
    chosen = DraftDepth(DEEPEST, trial=4, interval=100)
    depths = []
    for _ in range(500):
        depths.append(chosen.depth)
        chosen.observe(chosen.depth, 1.0 + chosen.depth, [0])
    assert depths[:17] == [3] * 4 + [2] * 4 + [1] * 4 + [0] * 4 + [0]
    assert Counter(depths[16:])[0] > 0.85 * 484


def test_steps_that_were_started_before_a_choice_count_for_their_own_depth() -> None:
    chosen = DraftDepth(DEEPEST, trial=1)
    for depth in (3, 3, 2, 2, 1, 1, 0, 0):  # each choice is known one step late
        chosen.observe(depth, 1.0 + depth, [depth])
    assert [chosen.rate(depth) for depth in range(DEEPEST + 1)] == [1.0] * 4
    assert chosen.depth == 0


def test_near_ties_are_not_followed_back_and_forth() -> None:
    seen, chosen, previous, switches = random.Random(1), DraftDepth(1, interval=10_000), None, 0
    for _ in range(2000):
        switches += previous is not None and chosen.depth != previous
        previous = chosen.depth
        cost_s = (1.0, 1.5)[chosen.depth] * seen.uniform(0.99, 1.01)
        chosen.observe(chosen.depth, cost_s, [accepted(seen, chosen.depth, 0.5) for _ in range(32)])
    assert switches <= 3


def test_without_mtp_layers_there_is_nothing_to_choose() -> None:
    chosen = DraftDepth(0, interval=3)
    assert {chosen.depth for _ in range(20) if chosen.observe(0, 1.0, [0]) is None} == {0}

"""Checks of the row ``rope``."""

import math

import pytest
import torch

from reference.config import RopeScaling
from reference.ops.rope import inverse_frequencies

from ..clauses import clause
from ..counters import Counters
from ..oracle import exact
from ..profiles import Profile
from ..strategies import LAST_POSITION, POSITIONS, Case, for_cases, token_counts
from ..tolerance import DotBound, bit_exact, gamma, ulp, within
from ..under_test import UnderTest

FULL = (64, 5e6, RopeScaling(2.0, 1.0, 32.0, 131_072))  # R of 128, theta, scaling: the published layers
SLIDING = (128, 1e4, None)
SHAPES = [(10, 3, 128, 64), (10, 3, 128, 128), (10, 5, 24, 12), (10, 2, 16, 16), *token_counts(3, 24, 12)]  # T, N, H, R

# f / f' of the full layers, as published in llama.cpp's rope_freqs.weight: below 14 it is 1, from 21 on 2.
PUBLISHED_FACTORS = {
    14: 1.138363, 15: 1.374499, 16: 1.576436, 17: 1.733729, 18: 1.847569, 19: 1.925649, 20: 1.977251,
}  # fmt: skip
LAST_DIGIT = 1e-6
ANGLE_ROUNDINGS = 2  # of a frequency, and of its product with the position
TURN_ROUNDINGS = 3  # of a cosine or sine, of its product, and of their sum
NARROW_ROUNDINGS = 2  # of a cosine or sine, and of its product, where a profile rounds them: to nearest


def turn_error(profile: Profile) -> float:
    """How far a cos t - b sin t may be off for a right t, as a share of |a| + |b| and before its last rounding."""
    narrow = 0.0 if profile.rotation is None else gamma(NARROW_ROUNDINGS, profile.rotation) / 2
    return gamma(TURN_ROUNDINGS, profile.accumulate) + narrow


def rotation_rule(profile: Profile) -> str:
    narrow = "" if profile.rotation is None else f" + gamma_2 / 2 of {profile.rotation}"
    return f"(gamma_3 + gamma_2 angle{narrow}) (|a| + |b|) + 1/2 ulp"


def rotation_bound(
    x: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor, dtype: torch.dtype, profile: Profile
) -> torch.Tensor:
    """Forward bound of a cos t - b sin t: |a| + |b| times the error of a turn and the error of t, and half an ulp.

    The angle t is as exact as two roundings leave it; at position 262143 that is the larger part.
    """
    half = len(frequencies)
    size = x.double().abs()[..., :half] + x.double().abs()[..., half : 2 * half]
    angle_error = gamma(ANGLE_ROUNDINGS, profile.accumulate) * positions.double()[:, None] * frequencies
    share = turn_error(profile) + angle_error[:, None, :]
    rest = torch.zeros_like(x[..., 2 * half :], dtype=torch.float64)
    magnitude = torch.cat((size, size, rest), dim=-1)
    return torch.cat((share * size, share * size, rest), dim=-1) + ulp(magnitude, dtype) / 2


@clause("ROPE-1")
@for_cases(["randn", "mixed_rows", "huge_scale", "one_loud_channel", "zeros"], SHAPES)
def test_rotates_half_split_pairs_by_position_times_frequency(
    engine: UnderTest, counters: Counters, case: Case
) -> None:
    num_tokens, num_heads, head_dim, rotary_dim = case.shape
    x = case.activations(num_tokens, num_heads, head_dim, dtype=engine.profile.activations)
    positions = torch.tensor(POSITIONS)[torch.arange(num_tokens) % len(POSITIONS)]
    frequencies = inverse_frequencies(rotary_dim, 1e4)
    got = engine.op("rope")(x, positions, frequencies)
    want = exact("rope", x, positions, frequencies)
    counters.add("elements_that_rotate", int((want[..., :rotary_dim] != x[..., :rotary_dim].double()).sum()))
    bound = rotation_bound(x, positions, frequencies, got.dtype, engine.profile)
    within(got, want, bound, rotation_rule(engine.profile), counters, case)
    bit_exact(got[..., rotary_dim:], x[..., rotary_dim:], counters, f"{case}, dimensions {rotary_dim} and above")


@clause("ROPE-1")
@pytest.mark.parametrize(("rotary_dim", "theta", "scaling"), [FULL, SLIDING], ids=["full", "sliding"])
def test_a_unit_vector_becomes_the_cosine_and_sine_of_its_own_pair(
    engine: UnderTest, counters: Counters, rotary_dim: int, theta: float, scaling: RopeScaling | None
) -> None:
    """Independent of the reference: unit vector i at position p has cos at i and sin at i + R/2, from the formulas."""
    half, position = rotary_dim // 2, 4095
    x = torch.eye(128)[None].to(engine.profile.activations)  # one token, 128 heads: head i is the unit vector i
    frequencies = inverse_frequencies(rotary_dim, theta, scaling)
    got = engine.op("rope")(x, torch.tensor([position]), frequencies)[0]
    want = torch.eye(128, dtype=torch.float64)
    for i in range(half):
        angle = position * frequencies[i].item()
        want[i, i], want[i, i + half] = math.cos(angle), math.sin(angle)
        want[i + half, i + half], want[i + half, i] = math.cos(angle), -math.sin(angle)
    bound = rotation_bound(x, torch.tensor([position]), frequencies, got.dtype, engine.profile)[0]
    within(got, want, bound, rotation_rule(engine.profile), counters, f"unit vectors at position {position}")


@clause("ROPE-1")
def test_position_zero_changes_nothing(engine: UnderTest, counters: Counters) -> None:
    x = Case("randn", (), 0).activations(3, 5, 24, dtype=engine.profile.activations)
    got = engine.op("rope")(x, torch.zeros(3, dtype=torch.int64), inverse_frequencies(12, 1e4))
    bit_exact(got, x, counters, "position 0")


@clause("ROPE-2")
def test_published_llama3_factors_give_the_angles_of_full_layers(engine: UnderTest, counters: Counters) -> None:
    """Independent of the reference's table: at a position where each pair turns by about one radian."""
    frequencies = inverse_frequencies(*FULL)
    for pair in range(32):
        unscaled = 5e6 ** (-2 * pair / 64)
        factor = 1.0 if pair < 14 else PUBLISHED_FACTORS.get(pair, 2.0)
        position = min(max(round(factor / unscaled), 1), LAST_POSITION)
        x = torch.zeros(1, 1, 128, dtype=engine.profile.activations)
        x[..., pair] = 1
        got = engine.op("rope")(x, torch.tensor([position]), frequencies)[0, 0]
        angle = position * unscaled / factor
        want = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        published = angle * LAST_DIGIT / factor if pair in PUBLISHED_FACTORS else 0.0
        rounding = turn_error(engine.profile) + angle * gamma(ANGLE_ROUNDINGS, engine.profile.accumulate)
        bound = published + rounding + ulp(torch.ones(2), got.dtype) / 2
        counters.add("pairs_whose_scaling_shows", angle * (factor - 1) > float(bound.max()))
        rule = f"last published digit + {rotation_rule(engine.profile)}"
        within(got[[pair, pair + 32]], want, bound, rule, counters, f"pair {pair} at position {position}")


@clause("ROPE-3")
@pytest.mark.parametrize(("rotary_dim", "theta", "scaling"), [FULL, SLIDING], ids=["full", "sliding"])
def test_scores_depend_on_the_distance_only(
    engine: UnderTest, counters: Counters, rotary_dim: int, theta: float, scaling: RopeScaling | None
) -> None:
    case = Case("randn", (), 0)
    frequencies = inverse_frequencies(rotary_dim, theta, scaling)
    q = case.activations(1, 1, 128, dtype=engine.profile.activations, what="q")
    k = case.activations(1, 1, 128, dtype=engine.profile.activations, what="k")
    rope = engine.op("rope")
    for distance in (0, 1, 511, 8_191, 100_003):
        exact_score = score(exact("rope", q, torch.tensor([distance]), frequencies), k)
        for start in (0, 1, 777, 131_071, LAST_POSITION - distance):
            q_position, k_position = torch.tensor([start + distance]), torch.tensor([start])
            rotated_q, rotated_k = rope(q, q_position, frequencies), rope(k, k_position, frequencies)
            rounding = (rotated_q.dtype, engine.profile)
            moved = sum(
                (rotation_bound(x, position, frequencies, *rounding) * other.double().abs()).sum()
                for x, position, other in ((q, q_position, rotated_k), (k, k_position, rotated_q))
            )
            bound = torch.as_tensor(moved) + DotBound(128, torch.float64).error(
                (rotated_q.double() * rotated_k.double()).abs().sum()
            )
            counters.add("distances_of_8k_and_more", distance > 8_000)
            where = f"query at {start + distance}, key at {start}"
            within(score(rotated_q, rotated_k)[None], exact_score[None], bound[None], "both rotations", counters, where)


def score(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q.double() * k.double()).sum()

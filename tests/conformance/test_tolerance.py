"""Tolerances: what they allow, what they do not, and that NaN is never equal."""

import math

import pytest
import torch

from conformance.counters import Counters
from conformance.oracle import exact, legal
from conformance.profiles import PROFILES
from conformance.tolerance import (
    ConformanceError,
    DotBound,
    Envelope,
    Residual,
    UlpBound,
    bit_exact,
    gamma,
    near_tie,
    ulp,
    within,
)


def test_an_ulp_is_the_distance_to_the_next_number() -> None:
    values = torch.tensor([1.0, 1.5, 1.99, 2.0, 1024.0, 0.1])
    for dtype in (torch.float32, torch.bfloat16):
        held = values.to(dtype)
        bits = torch.int32 if dtype == torch.float32 else torch.int16
        following = (held.view(bits) + 1).view(dtype)
        assert torch.equal(ulp(held, dtype), following.double() - held.double())


@pytest.mark.parametrize(("steps", "legal_steps"), [(1, True), (2, True), (3, False)])
def test_ulps_are_counted_from_the_correctly_rounded_result(steps: int, legal_steps: bool) -> None:
    want = torch.tensor([[1.3, -0.7, 1.9]], dtype=torch.float64)
    got = (want.bfloat16().view(torch.int16) + steps).view(torch.bfloat16)
    rule = UlpBound(ulps=2, roundings=9)
    if legal_steps:
        rule.check(got, want, Counters(), "here")
    else:
        with pytest.raises(ConformanceError, match=r"3 of 3 elements are off; worst at \(0, "):
            rule.check(got, want, Counters(), "here")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_right(value: float) -> None:
    want = torch.ones(2, 3, dtype=torch.float64)
    got = torch.ones(2, 3)
    got[1, 2] = value
    for check in (
        lambda: within(got, want, torch.tensor(1e30), "rule", Counters(), "here"),
        lambda: UlpBound(2, 2).check(got, want, Counters(), "here"),
        lambda: Envelope([torch.ones(2, 3)] * 4, want).check(got, Counters(), "here"),
    ):
        with pytest.raises(ConformanceError, match=r"worst at \(1, "):
            check()
    with pytest.raises(ConformanceError, match="differ"):
        bit_exact(torch.tensor([math.nan]), torch.tensor([math.nan]), Counters(), "here")


def test_a_shape_or_dtype_that_differs_is_never_right() -> None:
    with pytest.raises(ConformanceError, match=r"shape is \(2,\); want \(3,\)"):
        bit_exact(torch.ones(2), torch.ones(3), Counters(), "here")
    with pytest.raises(ConformanceError, match=r"dtype is torch.float64; want torch.float32"):
        bit_exact(torch.ones(2).double(), torch.ones(2), Counters(), "here")


def test_a_dot_product_may_err_by_its_forward_bound_only() -> None:
    x, weight = torch.randn(4, 500), torch.randn(6, 500)
    want, size = exact("linear", x, weight), exact("linear", x.abs(), weight.abs())
    rule = DotBound(500, torch.float32)
    counters = Counters()
    rule.check((x @ weight.T), want, size, counters, "here")
    (evidence,) = counters.evidence.values()
    assert 0 < evidence.statistic < evidence.bound
    assert evidence.rule == "gamma_500 sum|x||w| + 1/2 ulp"
    with pytest.raises(ConformanceError, match="gamma_500"):
        rule.check((want + 1.1 * gamma(500, torch.float32) * size).float(), want, size, Counters(), "here")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_one_loud_block_of_one_row_leaves_the_envelope(profile: object) -> None:
    """A tenth of a percent in 128 of 512 columns of one row in sixteen: nothing to the whole, much to its block."""
    chosen = PROFILES[profile.name]  # type: ignore[attr-defined]
    random = torch.Generator().manual_seed(0)
    size = {"generator": random}
    x = torch.randn(16, 64, **size).to(chosen.activations)
    gate, up = (torch.randn(96, 64, **size).to(chosen.weights) / 8 for _ in range(2))
    down = torch.randn(512, 96, **size).to(chosen.weights) / 10
    args = (x, gate, up, down, 7.0)
    want = exact("mlp", *args)
    envelope = Envelope(legal("mlp", chosen, *args), want)
    envelope.check(legal("mlp", chosen, *args)[3], Counters(), "a legal evaluation")
    wrong = want.clone()
    wrong[5, 128:256] *= 1.1 if chosen.is_narrow else 1.001
    with pytest.raises(ConformanceError, match=r"\[row, block\]: .* worst at \(5, "):
        envelope.check(wrong.to(chosen.activations), Counters(), "one block")


def test_a_choice_may_differ_at_a_near_tie_only() -> None:
    scores = torch.tensor([0.9, 0.5, 0.5 - 1e-7, 0.1], dtype=torch.float64)
    errors = torch.full((4,), 1e-7, dtype=torch.float64)
    assert near_tie({0, 1}, scores, errors, 2, Counters(), "here") is False
    assert near_tie({0, 2}, scores, errors, 2, Counters(), "here") is True
    with pytest.raises(ConformanceError, match=r"chose 3 .* left out 1 .* above 2e-07"):
        near_tie({0, 3}, scores, errors, 2, Counters(), "here")
    with pytest.raises(ConformanceError, match="want 2 different ids"):
        near_tie({0}, scores, errors, 2, Counters(), "here")


def test_evidence_is_the_worst_comparison_of_each_rule_and_the_smallest_fault_that_any_detects() -> None:
    counters = Counters()
    counters.compared("rule", 1, 4, "first", detects=0.5)
    counters.compared("rule", 3, 4, "second", detects=0.25)
    counters.compared("rule", 2, 4, "third")
    bit_exact(torch.ones(3), torch.ones(3), counters, "exactly")
    rule, exactly = counters.evidence.values()
    assert (rule.comparisons, rule.statistic, rule.bound, rule.margin) == (3, 3, 4, 0.75)
    assert (rule.where, rule.detects) == ("second", 0.25)
    assert (exactly.statistic, exactly.bound, exactly.detects) == (0, 0, None)
    assert counters.counts["comparisons"] == 4
    assert not counters.beyond
    counters.broke("changed its input")
    assert counters.beyond


def test_what_a_bound_detects_is_certain_to_be_caught() -> None:
    """Whatever error within its bound the engine has already."""
    x, weight = torch.randn(4, 500), torch.randn(6, 500)
    want, size = exact("linear", x, weight), exact("linear", x.abs(), weight.abs())
    counters = Counters()
    DotBound(500, torch.float32).check(want.float(), want, size, counters, "here")
    (evidence,) = counters.evidence.values()
    assert evidence.detects is not None
    row_rms = want.square().mean(dim=-1, keepdim=True).sqrt()
    fault = 1.001 * evidence.detects * row_rms
    caught = 0
    for sign in (-1, 1):
        for element in range(6):
            wrong = want.clone()
            wrong[:, element] += sign * fault[:, 0]
            try:
                DotBound(500, torch.float64).check(wrong, want, size, Counters(), "here")
            except ConformanceError:
                caught += 1
    assert caught == 12


def test_a_systematic_error_shows_where_every_element_hides_it() -> None:
    """Half a percent of one of three parts, in bfloat16, whose roundings are as large: no element is off."""
    random = torch.Generator().manual_seed(0)
    parts = {name: torch.randn(40, 256, generator=random).double() for name in ("first", "second", "third")}
    want = sum(parts.values())
    noise = [torch.randn(40, 256, generator=random) * 2**-10 for _ in range(16)]
    legal_results = [(want + error).bfloat16() for error in noise]
    residual = Residual(legal_results, want, parts)
    residual.check((want + torch.randn(40, 256, generator=random) * 2**-10).bfloat16(), Counters(), "right")
    wrong = (want + 0.002 * parts["second"]).bfloat16()
    Envelope(legal_results, want).check(wrong, Counters(), "hidden")
    with pytest.raises(ConformanceError, match="second"):
        residual.check(wrong, Counters(), "found")


def test_an_engine_that_rounds_less_than_its_profile_is_right_too() -> None:
    random = torch.Generator().manual_seed(0)
    ideal = torch.randn(20, 256, generator=random).double()
    want = ideal + torch.randn(20, 256, generator=random).double() * 0.05  # the profile's own roundings
    legal_results = [want + torch.randn(20, 256, generator=random).double() * 1e-4 for _ in range(8)]
    with pytest.raises(ConformanceError):
        Envelope(legal_results, want).check(ideal, Counters(), "without its ideal")
    counters = Counters()
    Envelope(legal_results, want, ideal=ideal).check(ideal, counters, "dominance")
    assert "no further from unrounded arithmetic" in next(iter(counters.evidence))
    with pytest.raises(ConformanceError):
        Envelope(legal_results, want, ideal=ideal).check(ideal * 1.2, Counters(), "neither")


def test_a_sigmoid_may_be_off_by_the_rounding_of_its_exponent() -> None:
    """exp2 of a float32 product, as kernels form it, is within; the same without the allowance is not."""
    x = torch.linspace(-20, 20, 4001)[None]
    got = 1 / (1 + torch.exp2(-x * torch.tensor(math.log2(math.e))))
    rule, exact = UlpBound(ulps=2, roundings=5), torch.sigmoid(x.double())
    rule.check(got, exact, Counters(), "with", exponents=x)
    with pytest.raises(ConformanceError):
        rule.check(got, exact, Counters(), "without")

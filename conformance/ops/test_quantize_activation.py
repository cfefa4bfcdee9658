"""Checks of the row ``quantize_activation``."""

import torch
from torch import Tensor

from reference.quantization import FP8_MAX

from ..clauses import clause
from ..counters import Counters
from ..strategies import Case, for_cases
from ..tolerance import bit_exact, gamma, within
from ..under_test import UnderTest

GROUP = 128
SHAPES = [(5, 256), (3, 130), (1, 1280), (33, 128), (2, 40), (0, 128)]  # T, D; short last groups among them
SCALE_ROUNDINGS = 2  # of 1 / 448, if it is one, and of the product
QUOTIENT_ROUNDINGS = 2  # of the reciprocal, if there is one, and of the product
# Every finite e4m3 magnitude: exponent bias 7, three bits of fraction, 448 the largest.
E4M3 = torch.tensor(
    [fraction / 8 * 2**-6 for fraction in range(8)]
    + [(1 + fraction / 8) * 2.0 ** (exponent - 7) for exponent in range(1, 16) for fraction in range(8)][:-1],
    dtype=torch.float64,
)


def nearest(values: Tensor) -> Tensor:
    """The e4m3 numbers nearest to float64 values, ties to the even fraction, saturating; from the list above."""
    size = values.abs().clamp(max=FP8_MAX)
    above = torch.searchsorted(E4M3, size).clamp(max=len(E4M3) - 1)
    below = (above - 1).clamp(min=0)
    to_above, to_below = E4M3[above] - size, size - E4M3[below]
    even = torch.where(below % 2 == 0, E4M3[below], E4M3[above])
    chosen = torch.where(to_above < to_below, E4M3[above], torch.where(to_below < to_above, E4M3[below], even))
    return chosen.copysign(values)


def check(engine: UnderTest, x: Tensor, counters: Counters, where: object) -> tuple[Tensor, Tensor]:
    """Scales first, then codes given the engine's own scales.

    The scale of a group of zeros is free, as long as it is a positive number. A quotient may be a division or a product
    with a reciprocal: where its roundings leave two codes possible, either is right.
    """
    codes, scale = engine.op("quantize_activation")(x)
    groups = torch.nn.functional.pad(x.double(), (0, -x.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    largest = groups.abs().amax(dim=-1)
    want = torch.where(largest == 0, scale.double(), largest / FP8_MAX)
    bit_exact(scale > 0, torch.ones_like(scale, dtype=torch.bool), counters, f"{where}, whether scales are positive")
    within(scale, want, gamma(SCALE_ROUNDINGS, torch.float32) * want, "gamma_2 of amax / 448", counters, where)
    quotients = (groups / scale.double()[..., None]).flatten(-2)[:, : x.shape[-1]]
    error = gamma(QUOTIENT_ROUNDINGS, torch.float32)
    low, high = nearest(quotients * (1 - error)), nearest(quotients * (1 + error))
    rule = "the nearest code; either of two where gamma_2 of the quotient leaves both"
    within(codes, (low + high) / 2, (low - high).abs() / 2, rule, counters, f"{where}, codes")
    return codes, scale


@clause("QUANT-1")
@for_cases(["randn", "one_loud_channel", "mixed_rows", "tiny_scale", "huge_scale", "zeros", "some_zero_rows"], SHAPES)
def test_each_group_is_scaled_to_448_and_rounded_to_nearest(engine: UnderTest, counters: Counters, case: Case) -> None:
    x = case.activations(*case.shape, dtype=engine.profile.activations)
    codes, scale = check(engine, x, counters, case)
    counters.add("codes_of_448", int((codes.float().abs() == FP8_MAX).sum()))
    counters.add("groups_of_zeros", int((scale == 1).sum()))


@clause("QUANT-1")
def test_ties_go_to_the_even_code(engine: UnderTest, counters: Counters) -> None:
    """One group whose scale is 1 and whose values lie half way between neighbours."""
    middles = (E4M3[1:] + E4M3[:-1]) / 2
    middles = middles[(middles > 0) & (middles == middles.to(engine.profile.activations).double())][-126:]
    x = torch.cat((torch.tensor([FP8_MAX, -FP8_MAX], dtype=torch.float64), middles))
    x = torch.nn.functional.pad(x, (0, GROUP - len(x)))[None].to(engine.profile.activations)
    codes, scale = engine.op("quantize_activation")(x)
    bit_exact(scale, torch.ones(1, 1), counters, "scale of a group that reaches 448")
    bit_exact(codes.double(), nearest(x.double()), counters, "values half way between codes")
    counters.add("ties", int((codes.double() != x.double()).sum()))


@clause("QUANT-1")
def test_a_groups_scale_depends_on_nothing_beside_it(engine: UnderTest, counters: Counters) -> None:
    """Each row and each group of 128 made loud in turn: no other group's codes or scales move."""
    case = Case("randn", (3, 3 * GROUP), 0)
    x = case.activations(*case.shape, dtype=engine.profile.activations)
    run = engine.op("quantize_activation")
    codes, scale = run(x)
    for row in range(3):
        for group in range(3):
            louder = x.clone()
            louder[row, group * GROUP : (group + 1) * GROUP] *= 64
            new_codes, new_scale = run(louder)
            others = torch.ones(3, 3, dtype=torch.bool)
            others[row, group] = False
            where = f"row {row}, group {group} louder"
            bit_exact(new_scale[others], scale[others], counters, f"{where}: scales of the others")
            same = others.repeat_interleave(GROUP, dim=1)
            bit_exact(new_codes.float()[same], codes.float()[same], counters, f"{where}: codes of the others")
            counters.add("scales_that_moved", int((new_scale[row, group] != scale[row, group]).item()))

"""Input families: each shows what its name says, in every profile, and nothing that is not finite."""

import pytest
import torch

from conformance.profiles import PROFILES
from conformance.strategies import FAMILIES, ROUTER_FAMILIES, TOKEN_COUNTS, Case, router_inputs, token_counts

DTYPES = (torch.float32, torch.bfloat16)


def scores(family: str, profile: str = "float32") -> torch.Tensor:
    x, weight, bias = router_inputs(Case(family, (40, 64, 24, 8), 3), PROFILES[profile])
    return torch.sigmoid(x.double() @ weight.double().T) + bias.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_finite_and_is_what_its_seed_says(family, dtype):
    first, again, other = (Case(family, (), seed).activations(9, 17, dtype=dtype) for seed in (1, 1, 2))
    assert first.isfinite().all()
    assert torch.equal(first, again)
    assert family == "zeros" or not torch.equal(first, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormals_are_below_the_smallest_normal_number_and_not_all_zero(dtype):
    x = Case("denormals", (), 0).activations(9, 17, dtype=dtype)
    assert 0 < x.abs().max() < torch.finfo(dtype).tiny
    assert len(x.unique()) == 5


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("family", ROUTER_FAMILIES)
def test_router_inputs_are_finite_and_of_the_profiles_dtypes(family, profile):
    x, weight, bias = router_inputs(Case(family, (9, 40, 24, 8), 0), PROFILES[profile])
    assert all(tensor.isfinite().all() for tensor in (x, weight, bias))
    assert (x.dtype, weight.dtype) == (PROFILES[profile].activations, PROFILES[profile].weights)
    assert bias.dtype == torch.float32


def test_router_families_show_what_their_names_say():
    assert scores("all_positive").min() > 0.5
    assert scores("all_negative").max() < 0.5
    assert (scores("equal").std(dim=-1) == 0).all()
    assert len(scores("hot").topk(8).indices.unique()) == 8
    cold = torch.arange(24) % 3 == 0
    assert not torch.isin(scores("cold").topk(8).indices, cold.nonzero()).any()
    assert torch.isin(scores("randn").topk(8).indices, cold.nonzero()).any()


def test_token_counts_lie_on_both_sides_of_tiles():
    assert token_counts(5, 3) == [(count, 5, 3) for count in TOKEN_COUNTS]
    assert all({tile - 1, tile, tile + 1} <= set(TOKEN_COUNTS) for tile in (1, 8, 16, 64, 128))

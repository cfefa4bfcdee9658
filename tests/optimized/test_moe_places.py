"""Sorting the slots of a routing by expert, and what is copied to places and added up from there."""

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

from optimized.fused.moe_places import Places, gathered, places_of, spread
from optimized.ops.quantize_activation import quantize_activation

A, D = 3, 384
BLOCK = 128


def routing(num_tokens: int, num_experts: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(num_tokens)
    ids = torch.stack([torch.randperm(num_experts, generator=random)[:A] for _ in range(num_tokens)])
    return ids.to(DEVICE), torch.rand(num_tokens, A, generator=random).to(DEVICE)


def taken(places: Places) -> Tensor:
    return places.of_slot.long()


@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 9), (17, 4), (300, 5), (700, 7), (90, 64)])
def test_experts_are_in_order_and_slots_in_order_within_an_expert(num_tokens: int, num_experts: int) -> None:
    ids, _ = routing(num_tokens, num_experts)
    places = places_of(ids, num_experts, BLOCK)
    first, flat, of_slot = 0, ids.flatten().cpu(), places.of_slot.cpu()
    for expert in range(num_experts):
        slots = (flat == expert).nonzero()[:, 0]
        assert torch.equal(of_slot[slots], first * BLOCK + torch.arange(len(slots), dtype=torch.int32))
        blocks = slice(first, first - (-len(slots) // BLOCK))
        assert (places.experts[blocks] == expert).all()
        assert places.rows[blocks].sum() == len(slots)
        assert ((places.rows[blocks] > 0) & (places.rows[blocks] <= BLOCK)).all()
        first = blocks.stop
    assert places.num_blocks.item() == first <= len(places.experts)
    assert places.counters.tolist() == [0, 0]


def test_an_expert_with_every_slot_has_many_blocks_and_the_others_none() -> None:
    places = places_of(torch.full((500, 1), 2, device=DEVICE), 4, BLOCK)
    assert places.num_blocks.item() == 4
    assert places.experts[:4].tolist() == [2, 2, 2, 2]
    assert places.rows[:4].tolist() == [128, 128, 128, 116]
    assert torch.equal(places.of_slot.cpu(), torch.arange(500, dtype=torch.int32))


@pytest.mark.parametrize("rounds", [False, True])
def test_a_row_is_copied_to_the_place_of_each_of_its_slots(rounds: bool) -> None:
    ids, weights = routing(150, 7)
    wide = torch.randn(150, D + 8, generator=torch.Generator().manual_seed(1)).to(DEVICE, torch.bfloat16)
    x, places = wide[:, :D], places_of(ids, 7, BLOCK)
    rows, scale, factors = spread(x, weights, places, rounds=rounds)
    at = taken(places)
    if rounds:
        codes, of_codes = quantize_activation(x)
        assert torch.equal(rows.view(torch.uint8)[at], codes.view(torch.uint8).repeat_interleave(A, dim=0))
        assert torch.equal(scale[at], of_codes.repeat_interleave(A, dim=0))
    else:
        assert torch.equal(rows[at], x.repeat_interleave(A, dim=0))
    assert torch.equal(factors[at], weights.flatten())


def test_what_lies_between_the_places_is_in_no_sum() -> None:
    ids, _ = routing(40, 7)
    places = places_of(ids, 7, BLOCK)
    parts = torch.full((places.count, D), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    values = torch.randn(40 * A, D, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.bfloat16)
    parts[taken(places)] = values
    of_token = values.view(40, A, D).float()
    want = (of_token[:, 0] + of_token[:, 1] + of_token[:, 2]).to(torch.bfloat16)
    assert torch.equal(gathered(parts, places, (40, D)), want)

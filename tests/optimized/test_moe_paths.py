"""The paths of the routed experts, each forced in turn, against float64 and against each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

from conformance.counters import Counters
from conformance.oracle import exact, legal
from conformance.profiles import PROFILES
from conformance.tolerance import Envelope
from optimized import launch
from optimized.fused import moe
from optimized.fused.moe_blocks import blocks_of
from optimized.ops.experts import experts
from optimized.ops.experts_fp8 import experts_fp8
from optimized.ops.mlp import mlp
from reference.quantization import FORMATS, Fp8Weight, Int4Weight

PATHS: dict[str, dict[str, Any]] = {
    "decode": {"PATH": "decode"},
    "stream": {"PATH": "stream"},
    "scan": {"PATH": "scan", "BLOCK_R": 16},
    "sorted": {"PATH": "sorted", "BLOCK_R": 16},
    "sorted, prepared": {"PATH": "sorted", "BLOCK_R": 32, "ROUND_FIRST": True},
}
D, F, E, A = 136, 72, 6, 2  # no two are equal; two groups of inputs, the last one short
TOKEN_COUNTS = {"scan": (1, 7, 8, 9, 16, 17, 33), "sorted": (0, 1, 2, 7, 8, 9, 16, 17, 33, 65)}
PROFILE_NAMES = ("float32", "bf16", "fp8", "w8a16", "w4a16")
QUANTISED = PROFILE_NAMES[2:]
Inputs = tuple[Any, ...]


def paths_of(profile_name: str) -> list[str]:
    """Those that take the weights of a profile."""
    other = "decode" if profile_name in QUANTISED else "stream"
    return [path for path in PATHS if path != other]


@contextmanager
def forced(path: str, **options: Any) -> Iterator[None]:
    """Every lookup of a path gives this one; options replace those that a kernel has."""

    def launch_for(kernel: str, device: torch.device, **sizes: int | str) -> launch.Launch:
        if kernel in ("experts", "mlp"):
            return launch.Launch(PATHS[path], "test")
        found = launch.launch_for(kernel, device, **sizes)
        changed = {key: value for key, value in options.items() if key in found.options}
        return replace(found, options={**found.options, **changed})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moe, "launch_for", launch_for)
        yield


def inputs(profile_name: str, num_tokens: int, seed: int = 0) -> Inputs:
    """On the CPU, as the row takes them."""
    profile = PROFILES[profile_name]
    random = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=random)

    x = (2 * normal(num_tokens, D)).to(profile.activations)
    orders = [torch.randperm(E, generator=random)[:A] for _ in range(num_tokens)]
    ids = torch.stack(orders) if orders else torch.zeros(0, A, dtype=torch.int64)
    weights = torch.rand(num_tokens, A, generator=random) + 0.1
    stacked: list[Any] = [normal(E, F, D) / D**0.5, normal(E, F, D) / D**0.5, normal(E, D, F) / F**0.5]
    if profile.expert_weights:
        stacked = [FORMATS[profile.expert_weights].quantize(weight) for weight in stacked]
    else:
        stacked = [weight.to(profile.weights) for weight in stacked]
    return x, ids, weights, *stacked, 2.0


def moved(value: Any) -> Any:
    if isinstance(value, Fp8Weight):
        return replace(value, data=value.data.to(DEVICE), scale_inv=value.scale_inv.to(DEVICE))
    if isinstance(value, Int4Weight):
        return replace(value, data=value.data.to(DEVICE), scale=value.scale.to(DEVICE))
    return value.to(DEVICE) if isinstance(value, Tensor) else value


def run(profile_name: str, path: str, args: Inputs, **options: Any) -> Tensor:
    op = experts_fp8 if profile_name == "fp8" else experts
    with forced(path, **options):
        return op(*map(moved, args)).cpu()


def envelope(profile_name: str, args: Inputs) -> Envelope:
    op = "experts_fp8" if profile_name == "fp8" else "experts"
    ideal = exact("experts", *args) if profile_name == "fp8" else None
    return Envelope(legal(op, PROFILES[profile_name], *args), exact(op, *args), ideal=ideal)


@pytest.mark.parametrize("profile_name", PROFILE_NAMES)
def test_every_path_is_within_the_envelope_and_near_the_others(profile_name: str) -> None:
    args = inputs(profile_name, 9)
    bounds, results = envelope(profile_name, args), {}
    for path in paths_of(profile_name):
        results[path] = run(profile_name, path, args)
        assert results[path].dtype == args[0].dtype
        bounds.check(results[path], Counters(), f"{profile_name}, {path}")
    both = 2 * bounds.row_bound(args[0].dtype)
    for path, result in results.items():
        apart = (result.double() - results["scan"].double()).abs().amax(dim=-1)
        assert (apart <= both).all(), path


@pytest.mark.parametrize("path", list(TOKEN_COUNTS))
def test_token_counts_around_the_borders_of_blocks(path: str) -> None:
    for num_tokens in TOKEN_COUNTS[path]:
        args = inputs("bf16", num_tokens)
        envelope("bf16", args).check(run("bf16", path, args), Counters(), f"{path}, {num_tokens} tokens")


@pytest.mark.parametrize(("path", "profile_name"), [("stream", "w4a16"), ("sorted, prepared", "fp8")])
def test_few_tokens_and_a_short_block(path: str, profile_name: str) -> None:
    for num_tokens in (0, 1, 2, 8):
        args = inputs(profile_name, num_tokens)
        envelope(profile_name, args).check(run(profile_name, path, args), Counters(), f"{path}, {num_tokens} tokens")


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("profile_name", ["fp8", "w8a16", "w4a16"])
def test_either_operand_may_come_first(profile_name: str, swap: bool) -> None:
    args = inputs(profile_name, 5, seed=1)
    got = run(profile_name, "sorted", args, SWAP=swap, BLOCKS_IN_L2=3)
    envelope(profile_name, args).check(got, Counters(), f"{profile_name}, swap {swap}")


@pytest.mark.parametrize("path", ["scan", "sorted"])
def test_one_expert_with_every_token_fills_several_blocks(path: str) -> None:
    x, ids, weights, *rest = inputs("bf16", 33)
    ids[:, 0], ids[:, 1] = 4, torch.arange(33) % 4
    args = (x, ids, weights, *rest)
    envelope("bf16", args).check(run("bf16", path, args), Counters(), path)


@pytest.mark.parametrize(
    ("path", "profile_name"), [(path, name) for name in ("bf16", "fp8", "w4a16") for path in paths_of(name)]
)
def test_experts_without_tokens_are_not_read(path: str, profile_name: str) -> None:
    x, _, weights, *stacked, limit = inputs(profile_name, 3)
    ids = torch.tensor([[5, 1], [1, 3], [3, 5]])
    args = (x, ids, weights, *stacked, limit)
    want = run(profile_name, path, args)
    for weight in stacked:
        for unused in (0, 2, 4):
            part = weight.scale_inv if isinstance(weight, Fp8Weight) else weight
            part = part.scale if isinstance(part, Int4Weight) else part
            part[unused] = torch.nan
    assert torch.equal(run(profile_name, path, args), want)


@pytest.mark.parametrize(
    ("path", "profile_name"),
    [("decode", "bf16"), ("stream", "fp8"), ("scan", "bf16"), ("sorted, prepared", "fp8")],
)
def test_bits_of_a_token_do_not_depend_on_its_neighbours(path: str, profile_name: str) -> None:
    x, ids, weights, *rest = inputs(profile_name, 9)
    whole = run(profile_name, path, (x, ids, weights, *rest))
    for rows in (slice(0, 1), slice(3, 8)):
        assert torch.equal(run(profile_name, path, (x[rows], ids[rows], weights[rows], *rest)), whole[rows])
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    assert torch.equal(run(profile_name, path, (x[order], ids[order], weights[order], *rest)), whole[order])


@pytest.mark.parametrize("path", ["decode", "scan"])
def test_views_with_strides_and_narrow_ids_are_taken_as_they_are(path: str) -> None:
    x, ids, weights, gate, up, down, limit = inputs("bf16", 4)
    want = run("bf16", path, (x, ids, weights, gate, up, down, limit))
    wide_x = torch.cat((x, x), dim=1)[:, :D]
    wide_gate, wide_up, wide_down = (torch.cat((w, w), dim=1)[:, : w.shape[1]] for w in (gate, up, down))
    args = (wide_x, ids.int(), weights, wide_gate, wide_up, wide_down, limit)
    assert not wide_gate.is_contiguous()
    assert torch.equal(run("bf16", path, args), want)


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
def test_blocks_hold_each_slot_once_in_order(num_tokens: int) -> None:
    height, num_experts = 8, 7
    random = torch.Generator().manual_seed(num_tokens)
    ids = torch.stack([torch.randperm(num_experts, generator=random)[:3] for _ in range(num_tokens)])
    blocks = blocks_of(ids.to(DEVICE), num_experts, height)
    flat, found = ids.flatten().tolist(), []
    for expert, slots in zip(blocks.experts.tolist(), blocks.slots.view(-1, height).tolist(), strict=True):
        if expert >= 0:
            found += [(expert, slot) for slot in slots if slot < len(flat)]
            assert all(slot == len(flat) or flat[slot] == expert for slot in slots)
    assert found == sorted((expert, slot) for slot, expert in enumerate(flat))


@pytest.mark.parametrize("path", ["decode", "all"])
@pytest.mark.parametrize("num_tokens", [1, 9])
def test_mlp_is_one_expert_that_every_token_has(path: str, num_tokens: int) -> None:
    x, _, _, gate, up, down, limit = inputs("bf16", num_tokens)
    args = (x, gate[0], up[0], down[0], limit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PATHS, "all", {"PATH": "all", "BLOCK_R": 16})
        with forced(path):
            got = mlp(*map(moved, args)).cpu()
    Envelope(legal("mlp", PROFILES["bf16"], *args), exact("mlp", *args)).check(got, Counters(), path)


def test_refusals_name_what_is_wrong_and_what_is_wanted() -> None:
    x, ids, weights, gate, up, down, limit = map(moved, inputs("bf16", 4))
    quantised = moved(FORMATS["fp8"].quantize(gate.cpu().float()))
    int4 = moved(FORMATS["int4"].quantize(gate.cpu().float()))
    for args, message in (
        ((x[0], ids, weights, gate, up, down, limit), r"x is \(136,\).*; want \[T, D\]"),
        ((x, ids[:3], weights, gate, up, down, limit), r"expert_ids is \(3, 2\).*; want \[4, A\]"),
        ((x, ids.float(), weights, gate, up, down, limit), "expert_ids .* want int32 or int64"),
        ((x, ids, weights[:, :1], gate, up, down, limit), "expert_weights .*as expert_ids"),
        ((x, ids, weights, gate[0], up, down, limit), r"gate_weight is \(72, 136\); want \[E, F, 136\]"),
        ((x, ids, weights, gate, up[:, :9], down, limit), r"up_weight .* want \[6, 72, 136\]"),
        ((x, ids, weights, gate, up, down.mT, limit), r"down_weight .* want \[6, 136, 72\]"),
        ((x, ids, weights, gate, up, down.mT.contiguous().mT, limit), "down_weight .* want unit stride"),
        ((x, ids, weights, gate, up.float(), down, limit), "up_weight .*the format and strides of gate_weight"),
        ((x, ids, weights, gate, quantised, down, limit), "up_weight .*the format and strides of gate_weight"),
        ((x, ids, weights, replace(quantised, block=(64, 128), scale_inv=quantised.scale_inv.repeat(1, 2, 1)), up,
          down, limit), "128 outputs x 128 inputs"),
        ((x, ids, weights, replace(int4, group=64, scale=int4.scale.repeat(1, 1, 2)[..., :3]), up, down, limit),
         "64 inputs; want 128"),
        ((x, ids, weights, gate, up, down, -1.0), "limit is -1.0; want 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            experts(*args)
    with pytest.raises(ValueError, match="gate_weight is Tensor; want Fp8Weight"):
        experts_fp8(x, ids, weights, gate, up, down, limit)
    with pytest.raises(ValueError, match=r"mlp: down_weight .* want \[136, 72\]"):
        mlp(x, gate[0], up[0], gate[0], limit)

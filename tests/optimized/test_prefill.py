"""Prompts of several requests in one pass: each gets what it gets alone, in a fixed order to the bit."""

from collections.abc import Callable

import pytest
import torch
from kernels import DEVICE
from torch import Tensor

from conformance.model import tiny
from optimized.kv_cache import CacheSizes, KVCache
from optimized.launch import fixed_order
from optimized.prefill import Prefill, run_all, run_together
from optimized.runner import Runner
from optimized.weights import PROFILES, load_weights
from reference.checkpoint import Checkpoint

DEPTHS = 2
LENGTHS = (30, 3, 21)  # past the window of 16, as short as a step of decoding, and one of which a part is there before
BEFORE, MARK = 9, 18
TOKENS = [torch.randint(2, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]
TOLERANCE = 2e-4  # float32, two orders of summation, values of the order of 1


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    fields = dict(tiny.TINY)
    folder = tiny.write(tmp_path_factory.mktemp("tiny"), fields, tiny.random_weights(fields, 5))
    weights = load_weights(Checkpoint(folder), PROFILES["float32"], DEVICE)
    return Runner(weights, KVCache(weights.config, torch.float32, DEVICE, CacheSizes(3, 3, 128), poisons=True))


def taken_in(runner: Runner, take: Callable[[list[Prefill]], None]) -> list[list[Tensor]]:
    """What decoding begins with, of each prompt, and what another prompt that parts at the mark would."""
    cache = runner.cache
    contexts = [cache.open() for _ in TOKENS]
    prompts = []
    for context, tokens in zip(contexts, TOKENS, strict=True):
        cache.reserve(context, len(tokens))
        prompts.append(Prefill(runner, cache, context, tokens, DEPTHS))
    prompts[-1].mark = MARK
    take(prompts)
    assert all(prompt.is_done for prompt in prompts)
    found = [[prompt.hidden, prompt.normed, prompt.chain.held] for prompt in prompts]
    assert prompts[-1].marked is not None
    assert not runner.workspaces, "of so many shapes as prompts end with, none may stay"
    found[-1].append(prompts[-1].marked)
    for context in contexts:
        cache.close(context)
    return found


def alone(prompts: list[Prefill]) -> None:
    for prompt in prompts:
        run_all(prompt)


def together(prompts: list[Prefill]) -> None:
    run_together([(prompts[-1], BEFORE)])
    run_together([(prompt, prompt.num_left) for prompt in prompts])


@pytest.fixture(scope="module")
def wanted(runner: Runner) -> list[list[Tensor]]:
    return taken_in(runner, alone)


def near(got: list[list[Tensor]], want: list[list[Tensor]]) -> bool:
    pairs = (pair for prompts in zip(got, want, strict=True) for pair in zip(*prompts, strict=True))
    return all(torch.allclose(*pair, atol=TOLERANCE, rtol=0) for pair in pairs)


def test_each_prompt_gets_what_it_gets_alone(runner: Runner, wanted: list[list[Tensor]]) -> None:
    assert near(taken_in(runner, together), wanted)


def test_in_a_fixed_order_to_the_bit(runner: Runner) -> None:
    with fixed_order():
        for got, want in zip(taken_in(runner, together), taken_in(runner, alone), strict=True):
            assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


def test_memory_that_ends_leaves_a_prompt_as_it_was(
    runner: Runner, wanted: list[list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(prompts: list[Prefill]) -> None:
        def refuse(depth: int, tokens: Tensor, *others: object) -> tuple[Tensor, Tensor]:
            if depth == 1 and len(tokens) > 9:
                raise torch.OutOfMemoryError("out of memory")
            return mtp(depth, tokens, *others)

        mtp = runner.mtp
        run_together([(prompts[-1], BEFORE)])
        monkeypatch.setattr(runner, "mtp", refuse)
        with pytest.raises(torch.OutOfMemoryError):
            run_together([(prompt, prompt.num_left) for prompt in prompts])
        monkeypatch.undo()
        left = [prompt for prompt in prompts if not prompt.is_done]
        assert prompts[0] in left
        run_together([(prompt, prompt.num_left) for prompt in left])

    assert near(taken_in(runner, take), wanted)

"""MTP layers along a text: in which pieces its tokens come does not matter."""

import itertools

import pytest
import torch
from kernels import DEVICE

from conformance.model import tiny
from optimized.kv_cache import CacheSizes, KVCache
from optimized.mtp_chain import MtpChain
from optimized.runner import Runner
from optimized.weights import PROFILES, load_weights
from reference.checkpoint import Checkpoint

LENGTH, DEPTHS = 28, 3
TOLERANCE = 2e-4  # float32, two orders of summation, values of the order of 1


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    fields = dict(tiny.TINY)
    folder = tiny.write(tmp_path_factory.mktemp("tiny"), fields, tiny.random_weights(fields, 5))
    weights = load_weights(Checkpoint(folder), PROFILES["float32"], DEVICE)
    return Runner(weights, KVCache(weights.config, torch.float32, DEVICE, CacheSizes(2, 4, 128), poisons=True))


def text(runner: Runner) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens, and what a backbone might give for them."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, 256, (LENGTH,), generator=generator)
    return tokens.to(DEVICE), torch.randn(LENGTH, runner.config.hidden_size, generator=generator).to(DEVICE)


def fed(runner: Runner, cuts: list[int], mark: int = 0, origin: int = 0, shift: int = 0) -> tuple[torch.Tensor, ...]:
    """What a chain holds at the end of pieces between the cuts, and what it noted; positions are moved by ``shift``."""
    context = runner.cache.open()
    runner.cache.reserve(context, LENGTH)
    tokens, hidden = text(runner)
    chain = MtpChain(runner, runner.cache, context, DEPTHS, origin=origin - shift)
    noted = []
    for start, end in itertools.pairwise(cuts):
        noted.append(chain.extend(tokens[start:end], hidden[start:end], start - shift, mark))
    runner.cache.close(context)
    return chain.held, *(one for one in noted if one is not None)


def near(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.allclose(got, want, atol=TOLERANCE, rtol=0)


def test_pieces_of_any_size_come_to_the_same(runner: Runner) -> None:
    (whole,) = fed(runner, [0, LENGTH])
    assert not whole.isnan().any()
    (held,) = fed(runner, [0, 1, 3, 26, LENGTH])
    assert near(held, whole)


def test_what_is_noted_at_a_mark_is_what_a_text_of_that_length_holds(runner: Runner) -> None:
    (want,) = fed(runner, [0, 19])
    for cuts in ([0, LENGTH], [0, 18, LENGTH]):
        _, noted = fed(runner, cuts, mark=19)
        assert near(noted, want)


def test_nothing_before_the_origin_is_seen(runner: Runner) -> None:
    (want,) = fed(runner, [10, LENGTH], origin=10, shift=10)  # as though the text began there
    (held,) = fed(runner, [10, LENGTH], origin=10)  # before it, the ring holds NaN
    assert near(held, want)

"""The model's deterministic mode: bits of logits, whatever a text comes in, beside and on."""

from collections.abc import Iterator

import pytest
import torch
from kernels import DEVICE

from conformance.model import tiny
from optimized.kv_cache import PAGE_SIZE
from optimized.launch import fixed_order
from optimized.loading import Wanted, load
from optimized.model import OptimizedModel
from reference.checkpoint import Checkpoint

TOKENS = torch.randint(2, 256, (PAGE_SIZE + 26,), generator=torch.Generator().manual_seed(4)).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OptimizedModel]:
    fields = dict(tiny.TINY)
    folder = tiny.write(tmp_path_factory.mktemp("tiny"), fields, tiny.random_weights(fields, 5))
    with fixed_order():
        yield load(Checkpoint(folder), "float32", str(DEVICE), Wanted(num_contexts=4, whole_contexts=3))


@pytest.fixture(scope="module")
def whole(model: OptimizedModel) -> torch.Tensor:
    with fixed_order():
        return model.new_session().extend(TOKENS)


@pytest.mark.parametrize("sizes", [(PAGE_SIZE, 26), (21, 50, 1, 4, 14), (70, 20)])
def test_chunks_of_any_size_give_the_same_bits(model: OptimizedModel, whole: torch.Tensor, sizes: tuple[int, ...]):
    session, start = model.new_session(), 0
    with fixed_order():
        for size in sizes:
            got = session.extend(TOKENS[start : start + size])
            assert torch.equal(got, whole[start : start + size]), start
            start += size


def test_neighbours_and_the_order_of_pages_change_no_bit(model: OptimizedModel, whole: torch.Tensor):
    with fixed_order():
        others = [model.new_session() for _ in range(2)]
        model.extend_batch(others, [TOKENS[::-1][:5], TOKENS[::-1]])  # takes pages before
        others[0].extend(TOKENS[:PAGE_SIZE])
        del others[1]
        session = model.new_session()
        logits = model.extend_batch([others[0], session], [TOKENS[:3], TOKENS[:80]])[1]
        assert session.context.pages != sorted(session.context.pages) or session.context.pages[0] > 0
        assert torch.equal(logits, whole[:80])
        assert torch.equal(session.extend(TOKENS[80:]), whole[80:])

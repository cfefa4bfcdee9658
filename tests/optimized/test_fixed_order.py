"""The model's deterministic mode: bits of logits, whatever a text comes in, beside and on."""

from collections.abc import Iterator

import pytest
import torch
from kernels import DEVICE

from conformance.model import tiny
from optimized.decoding import seat
from optimized.kv_cache import PAGE_SIZE
from optimized.launch import fixed_order
from optimized.loading import Wanted, load
from optimized.model import OptimizedModel
from optimized.prefill import Prefill, run_all
from optimized.speculative import Filters, Kind, Rows
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


@pytest.mark.parametrize("start", [PAGE_SIZE - 1, 80])
def test_verifying_drafts_gives_the_bits_of_single_steps(model: OptimizedModel, start: int):
    runner, cache, most = model.runner, model.cache, model.runner.num_depths
    new = torch.tensor(TOKENS[start : start + most + 1], device=DEVICE)
    with fixed_order():
        context = cache.open()
        cache.reserve(context, len(TOKENS))
        run_all(Prefill(runner, cache, context, TOKENS[:start], 0))
        rows = Rows(runner, cache, 1, Kind(most))
        seat(rows, 0, context, len(TOKENS), Filters())

        def steps_of(query_len: int) -> torch.Tensor:
            """The same tokens, so many a step; keys and values are written over by equal ones."""
            found = []
            for first in range(0, len(new), query_len):
                rows.lengths.fill_(start + first)
                step = rows._step(rows._inputs(query_len), query_len)
                found.append(runner.backbone(new[first : first + query_len], step)[1])
            return torch.cat(found)

        together, alone = steps_of(most + 1), steps_of(1)
        cache.close(context)
    assert torch.equal(together, alone)

"""Steps from a CUDA graph are the steps that are launched one kernel at a time, to the bit, on inputs that change."""

from pathlib import Path

import pytest
import torch

from conformance.model import tiny

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are a CUDA device's; none is here"),
]
STEPS = 9
PROMPTS = ([7, 9, 11, 200, 31], [5] * 23, list(range(40, 71)))  # within the window of 16, and past it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = dict(tiny.TINY)
    return tiny.write(tmp_path_factory.mktemp("tiny"), fields, tiny.random_weights(fields, 5))


def records(checkpoint: Path, profile: str, num_drafts: int, temperature: float, captures: bool) -> list[torch.Tensor]:
    """The records of some steps of three contexts; the last one rests half of the time."""
    from optimized.decoding import Decoder, put_uniforms, rest, seat
    from optimized.loading import Wanted, load
    from optimized.prefill import Prefill, run_all
    from optimized.speculative import Filters, Kind, Rows
    from reference.checkpoint import Checkpoint

    model = load(Checkpoint(checkpoint), profile, "cuda", Wanted(3, 3))
    filters = Filters(temperature, top_k=50 if temperature else 0)
    kind = Kind(num_drafts, draws=temperature > 0)
    rows = Rows(model.runner, model.cache, len(PROMPTS), kind)
    decoder = Decoder(rows, captures)
    random = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    hidden, normed = [], []
    for row, tokens in enumerate(PROMPTS):
        context = model.cache.open()
        model.cache.reserve(context, len(tokens) + 4 * STEPS + 8)
        prefill = Prefill(model.runner, model.cache, context, tokens, num_drafts)
        for kept, value in zip((hidden, normed), run_all(prefill), strict=True):
            kept.append(value)
        seat(rows, row, context, len(tokens) + 4 * STEPS + 8, filters)
        rows.held[:, row] = prefill.chain.held
    put_uniforms(rows, [kind.uniforms(one) for one in random])
    rows.begin(rows.first(torch.cat(normed))[0], torch.cat(hidden))
    seen = [rows.record.clone()]
    for step in range(STEPS):
        put_uniforms(rows, [kind.uniforms(one) for one in random])
        if step == STEPS // 2:
            rest(rows, 2)
        decoder.step()
        seen.append(rows.record.clone())
    return seen


@pytest.mark.parametrize("profile", ["float32", "bf16", "fp8", "w4a16"])
@pytest.mark.parametrize(("num_drafts", "temperature"), [(0, 0.0), (3, 0.0), (1, 0.0), (0, 1.0), (3, 1.0)])
def test_a_captured_step_is_the_same_to_the_bit(
    checkpoint: Path, profile: str, num_drafts: int, temperature: float
) -> None:
    eager = records(checkpoint, profile, num_drafts, temperature, captures=False)
    captured = records(checkpoint, profile, num_drafts, temperature, captures=True)
    assert all(torch.equal(one, other) for one, other in zip(eager, captured, strict=True))
    assert len({tuple(record[0].tolist()) for record in eager}) > 2  # steps differ from each other
    assert int(eager[-1][2, 0]) == -1  # and the last context rests


@pytest.mark.parametrize("profile", ["float32", "bf16"])
def test_text_with_drafts_is_the_text_without(checkpoint: Path, profile: str) -> None:
    """Greedily, up to near-ties: in float32 there are none."""
    from optimized.loading import Wanted, load
    from reference.checkpoint import Checkpoint

    model = load(Checkpoint(checkpoint), profile, "cuda", Wanted(2, 2))
    texts = [model.generate(list(PROMPTS[2]), 40, mtp=mtp).tokens for mtp in range(4)]
    again = [model.generate(list(PROMPTS[2]), 40, mtp=mtp).tokens for mtp in range(4)]
    assert texts == again
    if profile == "float32":
        assert all(text == texts[0] for text in texts)

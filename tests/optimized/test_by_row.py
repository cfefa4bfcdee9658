"""Sequences of one batch with filters, drafts and random numbers of their own: each as if it were alone."""

import pytest
import torch
from kernels import DEVICE

from optimized.ops.accept_draft import accept_draft, accept_drafts
from optimized.ops.sampling import sampling, sampling_by_row

VOCABULARY = 101
FILTERS = [(0.0, 0, 1.0, 0.0), (0.7, 0, 1.0, 0.0), (1.3, 5, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (0.9, 200, 0.6, 0.1)]


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return (drawn.bfloat16() * 3).to(DEVICE)  # with ties


@pytest.mark.parametrize("rows_each", [1, 3])
@pytest.mark.parametrize("batch", [FILTERS, FILTERS[:2]])
def test_each_sequence_is_filtered_as_it_asks(rows_each: int, batch: list[tuple[float, int, float, float]]) -> None:
    x = logits(len(batch) * rows_each)
    got = sampling_by_row(x, torch.tensor(batch, dtype=torch.float32).T.contiguous().to(DEVICE))
    for number, filters in enumerate(batch):
        own = slice(number * rows_each, (number + 1) * rows_each)
        assert torch.equal(got[own], sampling(x[own], *filters))


def test_each_sequence_keeps_its_own_drafts() -> None:
    batch, drafts = 6, 3
    chosen = logits(batch * (drafts + 1), 1).float().view(batch, drafts + 1, VOCABULARY)
    guessed = chosen[:, :-1] + logits(batch * drafts, 2).float().view(batch, drafts, VOCABULARY) / 4
    target, draft = chosen.softmax(-1), guessed.softmax(-1).transpose(0, 1).contiguous()
    generator = torch.Generator().manual_seed(2)
    ids = draft.cpu().argmax(-1).T.contiguous()
    tokens = torch.cat((torch.zeros(batch, 1, dtype=torch.int64), ids), dim=1).to(DEVICE)
    uniforms = torch.rand(batch, drafts + 4, dtype=torch.float64, generator=generator).to(DEVICE)
    got = accept_drafts(target, draft, tokens[:, 1:], uniforms).T.tolist()
    want = [list(accept_draft(target[b], draft[:, b], tokens[b, 1:], uniforms[b, : drafts + 1])) for b in range(batch)]
    assert got == want
    assert len({accepted for accepted, _ in want}) > 1


def test_a_table_of_filters_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling: filters is \(3, 2\)"):
        sampling_by_row(logits(2), torch.ones(3, 2, device=DEVICE))
    with pytest.raises(ValueError, match="want as many rows of each sequence"):
        sampling_by_row(logits(3), torch.ones(4, 2, device=DEVICE))

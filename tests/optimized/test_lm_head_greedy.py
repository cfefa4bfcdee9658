"""The fused head and greedy choice give the token that linear and argmax give."""

import pytest
import torch
from kernels import DEVICE

from optimized.fused.lm_head_greedy import lm_head_greedy
from optimized.ops.linear import linear


def inputs(num_rows: int, width: int, vocab_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(num_rows)
    x, weight = torch.randn(num_rows, width, generator=random), torch.randn(vocab_size, width, generator=random)
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("num_rows", "width", "vocab_size"), [(1, 96, 1000), (5, 264, 129), (17, 40, 257), (0, 16, 7)])
def test_the_token_has_the_largest_logit(num_rows: int, width: int, vocab_size: int, dtype: torch.dtype):
    x, weight = inputs(num_rows, width, vocab_size, dtype)
    got = lm_head_greedy(x, weight)
    logits = linear(x, weight)
    assert got.shape == (num_rows,)
    assert torch.equal(logits.gather(-1, got[:, None])[:, 0], logits.amax(dim=-1))


def test_of_equal_logits_the_lower_id_is_taken():
    x, weight = inputs(2, 32, 500, torch.bfloat16)
    weight[[3, 140, 499]] = x[0] * 9  # in three tiles
    assert lm_head_greedy(x, weight)[0] == 3


def test_it_can_be_launched_again():
    x, weight = inputs(3, 64, 600, torch.bfloat16)
    assert torch.equal(lm_head_greedy(x, weight), lm_head_greedy(x, weight))


def test_what_it_cannot_take_is_named():
    x, weight = inputs(65, 16, 40, torch.bfloat16)
    with pytest.raises(ValueError, match=r"lm_head_greedy: x is \(65, 16\).*at most 64 rows"):
        lm_head_greedy(x, weight)
    with pytest.raises(ValueError, match=r"lm_head_greedy: weight is .*want torch\.bfloat16 rows"):
        lm_head_greedy(x[:4], weight.float())

"""What every row takes beside plain tensors, and what it refuses by name."""

import pytest
import torch
from kernels import DEVICE

from optimized.ops.accept_draft import accept_draft
from optimized.ops.draw import draw
from optimized.ops.embedding import embedding
from optimized.ops.linear import linear
from optimized.ops.mtp_input import mtp_input
from optimized.ops.rms_norm import rms_norm
from optimized.ops.sampling import sampling

EPS = 1e-5


def numbers(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in every second row of a wider tensor whose other elements are NaN."""
    wide = torch.full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1] + 3), torch.nan, dtype=x.dtype, device=x.device)
    view = wide[..., ::2, : x.shape[-1]]
    view.copy_(x)
    return view


def transposed(x: torch.Tensor) -> torch.Tensor:
    """The same numbers with columns in order of memory."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


ROWS = {
    "rms_norm": lambda x: rms_norm(x, numbers(40, seed=1), EPS),
    "linear": lambda x: linear(x, numbers(24, 40, seed=1)),
    "mtp_input": lambda x: mtp_input(x, x, numbers(40), numbers(40, seed=1), numbers(40, 80, seed=2), EPS),
    "sampling": lambda x: sampling(x, 0.8, 7, 0.9, 0.0),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("layout", [strided, transposed])
def test_strides_do_not_matter(row: str, layout):
    x = numbers(5, 40)
    assert torch.equal(ROWS[row](layout(x)), ROWS[row](x))


@pytest.mark.parametrize("row", ROWS)
def test_leading_axes_are_kept_and_no_rows_give_no_rows(row: str):
    x = numbers(6, 40)
    assert torch.equal(ROWS[row](x.view(2, 3, 40)).flatten(0, 1), ROWS[row](x))
    assert ROWS[row](x[:0]).shape[0] == 0


@pytest.mark.parametrize("row", ROWS)
def test_a_row_does_not_depend_on_the_rows_beside_it(row: str):
    x = numbers(9, 40)
    assert torch.equal(ROWS[row](x)[4:5], ROWS[row](x[4:5]))


def test_a_weight_of_another_dtype_is_widened_not_rounded():
    x, weight = numbers(3, 40).bfloat16(), numbers(24, 40, seed=1)
    want = (x.double() @ weight.double().T).bfloat16()
    assert torch.equal(linear(x, weight), want)


def test_an_unknown_token_gets_a_row_of_nan():
    weight = numbers(7, 40)
    got = embedding(torch.tensor([6, 7, -1], device=DEVICE), weight)
    assert torch.equal(got[0], weight[6])
    assert got[1:].isnan().all()


REFUSED = {
    "rms_norm: weight is (39,)": lambda: rms_norm(numbers(2, 40), numbers(39), EPS),
    "rms_norm: x is (2, 40) torch.float64": lambda: rms_norm(numbers(2, 40).double(), numbers(40), EPS),
    "linear: weight is (24, 39)": lambda: linear(numbers(2, 40), numbers(24, 39)),
    "linear: weight is (40, 40) torch.float32 with strides (1, 40)": lambda: linear(numbers(2, 40), numbers(40, 40).T),
    "embedding: token_ids is (2,) torch.float32": lambda: embedding(numbers(2), numbers(7, 40)),
    "mtp_input: embedded is (3, 40)": lambda: mtp_input(
        numbers(3, 40), numbers(2, 40), numbers(40), numbers(40), numbers(40, 80), EPS
    ),
    "draw: uniforms is (3,)": lambda: draw(numbers(2, 5).softmax(-1), numbers(3)),
    "sampling: temperature -1": lambda: sampling(numbers(2, 5), -1, 0, 1.0, 0.0),
    "accept_draft: target is (2, 5)": lambda: accept_draft(
        numbers(2, 5), numbers(2, 5), torch.zeros(2, dtype=torch.int64, device=DEVICE), numbers(3)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_a_kernel_cannot_take_is_named_with_what_it_wants(message: str):
    with pytest.raises(ValueError, match="want") as refusal:
        REFUSED[message]()
    assert str(refusal.value).startswith(message)

"""Draft heads in FP8 or int4: other drafts may come, never another text."""

from dataclasses import replace

import pytest
import torch
from kernels import DEVICE

from conformance.model import tiny
from optimized.engine import InterpretedEngine
from optimized.loading import load
from optimized.model import OptimizedModel
from optimized.weights import PROFILES, Format, load_weights
from reference.checkpoint import Checkpoint
from reference.commands import MINIATURE
from reference.engine import ReferenceModel, build_model
from reference.generate import generate
from reference.nano.measure import held_out_tokens
from reference.nano.measure import load as load_reference
from reference.quantization import weight_bytes

FIELDS = dict(tiny.TINY) | {"hidden_size": 192}  # the last block of a row is a short one
TOKENS = torch.randint(2, 256, (24,), generator=torch.Generator().manual_seed(4)).tolist()
TOLERANCE = 2e-4  # float32, two orders of summation, logits of the order of 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tiny.write(tmp_path_factory.mktemp("tiny"), FIELDS, tiny.random_weights(FIELDS, 5)))


@pytest.fixture(scope="module", params=["fp8", "int4"])
def format(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint, format: str) -> OptimizedModel:
    return load(checkpoint, "float32", DEVICE, draft_heads=format)


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint, format: str) -> ReferenceModel:
    return ReferenceModel(build_model(checkpoint, "float32", draft_heads=format))


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint) -> ReferenceModel:
    return ReferenceModel(build_model(checkpoint, "float32"))


def near(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.allclose(got.cpu(), want, atol=TOLERANCE, rtol=0)


def test_drafts_are_those_of_the_rounded_heads_and_the_model_is_as_it_was(
    model: OptimizedModel, reference: ReferenceModel, plain: ReferenceModel
) -> None:
    for got, want, unrounded in zip(*(one.draft_logits(TOKENS) for one in (model, reference, plain)), strict=True):
        assert near(got, want)
        assert not near(got, unrounded)
    assert near(model.new_session().extend(TOKENS), plain.new_session().extend(TOKENS))


def test_greedy_text_is_as_without_and_its_drafts_are_accepted_as_the_references(
    model: OptimizedModel, reference: ReferenceModel, plain: ReferenceModel
) -> None:
    got, want = model.generate(TOKENS, 4, mtp=3), reference.generate(TOKENS, 4, mtp=3)
    assert got.tokens == want.tokens == plain.generate(TOKENS, 4).tokens
    assert got.accepted_per_position == want.accepted_per_position


def test_drawn_text_comes_again_with_its_seed(model: OptimizedModel) -> None:
    first, again = (model.generate([5], 3, mtp=1, temperature=1.0, seed=3) for _ in range(2))
    assert first.tokens == again.tokens
    assert sum(first.drafted_per_position) > 0


def test_the_miniatures_text_is_the_same() -> None:
    engine = InterpretedEngine("optimized-interpreted-float32", "float32")
    prompt = held_out_tokens(MINIATURE)[:12].tolist()
    got = engine.with_draft_heads("int4").load_model(MINIATURE).generate(prompt, 8, mtp=3)
    assert got.tokens == generate(load_reference(MINIATURE), prompt, 8).tokens
    assert sum(got.accepted_per_position) > 0


def test_heads_take_the_bytes_of_their_format_and_nothing_else_changes(checkpoint: Checkpoint, format: str) -> None:
    plain = load_weights(checkpoint, PROFILES["bf16"], "cpu")
    rounded = load_weights(checkpoint, replace(PROFILES["bf16"], draft_heads=format), "cpu")
    head = (FIELDS["vocab_size"], FIELDS["hidden_size"])
    assert plain.nbytes - rounded.nbytes == 3 * (2 * head[0] * head[1] - weight_bytes(format, head))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="draft_heads: is 'int8'; want one of fp8, int4"):
        Format(torch.bfloat16, draft_heads="int8")

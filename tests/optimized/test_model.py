"""The whole engine against the reference, on a random checkpoint with every kind of layer."""

from pathlib import Path

import pytest
import torch

from conformance.model import tiny
from optimized.loading import Wanted, load
from optimized.model import OptimizedModel
from reference.checkpoint import Checkpoint
from reference.engine import ReferenceModel, build_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS = torch.randint(2, 256, (30,), generator=torch.Generator().manual_seed(4)).tolist()  # past the window of 16
TOLERANCE = 2e-4  # float32, two orders of summation, logits of the order of 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = dict(tiny.TINY)
    return tiny.write(tmp_path_factory.mktemp("tiny"), fields, tiny.random_weights(fields, 5))


@pytest.fixture(scope="module")
def model(folder: Path) -> OptimizedModel:
    return load(Checkpoint(folder), "float32", DEVICE, Wanted(num_contexts=4, whole_contexts=3))


@pytest.fixture(scope="module")
def reference(folder: Path) -> ReferenceModel:
    return ReferenceModel(build_model(Checkpoint(folder), "float32"))


@pytest.fixture(scope="module")
def expected(reference: ReferenceModel) -> torch.Tensor:
    return reference.new_session().extend(TOKENS)


def near(got: torch.Tensor, want: torch.Tensor) -> bool:
    return torch.allclose(got.cpu().float(), want.float(), atol=TOLERANCE, rtol=0)


def test_pieces_of_any_size_give_the_references_logits(model: OptimizedModel, expected: torch.Tensor):
    session = model.new_session()
    got = [session.extend(TOKENS[:17])]  # a chunk past the window, then steps of decoding, then taken back
    got += [session.extend(TOKENS[17:18]), session.extend(TOKENS[18:22])]
    session.extend([9, 8, 7])
    session.truncate(22)
    got.append(session.extend(TOKENS[22:]))
    assert session.length == len(TOKENS)
    assert near(torch.cat(got), expected)


def test_contexts_of_other_lengths_in_one_step_do_not_meet(
    model: OptimizedModel, reference: ReferenceModel, expected: torch.Tensor
):
    sessions = [model.new_session() for _ in range(3)]
    other = TOKENS[::-1]
    model.extend_batch(sessions, [TOKENS[:20], other[:3], other[:4]])
    got = model.extend_batch(sessions, [TOKENS[20:21], other[3:4], other[4:20]])
    assert near(got[0], expected[20:21])
    want = reference.new_session().extend(other[:20])
    assert near(got[1], want[3:4])
    assert near(got[2], want[4:20])
    assert set(sessions[2].routing()) == {1, 2, 3, 4}
    assert sessions[2].routing()[1][0].shape == (16, 4)


def test_drafts_along_a_text_are_the_references(model: OptimizedModel, reference: ReferenceModel):
    got, want = model.draft_logits(TOKENS), reference.draft_logits(TOKENS)
    assert len(got) == len(want) == 3
    assert all(near(one, other) for one, other in zip(got, want, strict=True))


@pytest.mark.parametrize("mtp", [0, 3])
def test_greedy_text_and_its_drafts_are_the_references(model: OptimizedModel, reference: ReferenceModel, mtp: int):
    got, want = model.generate(TOKENS[:20], 4, mtp=mtp), reference.generate(TOKENS[:20], 4, mtp=mtp)
    assert got.tokens == want.tokens
    assert got.drafted_per_position == want.drafted_per_position
    assert got.accepted_per_position == want.accepted_per_position


def test_sampled_text_comes_again_with_its_seed(model: OptimizedModel):
    first, again, other = (model.generate([5], 3, mtp=1, temperature=1.0, seed=seed).tokens for seed in (3, 3, 4))
    assert first == again != other


def test_nothing_stays_behind(model: OptimizedModel):
    assert model.cache.num_free_slots == model.cache.sizes.num_slots
    assert model.cache.num_free_pages == model.cache.sizes.num_pages


def test_layers_say_what_was_built(model: OptimizedModel, reference: ReferenceModel):
    assert model.layers() == reference.layers()

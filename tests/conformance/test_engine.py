"""Finding engines and moving them."""

from types import SimpleNamespace

import pytest
import torch

from conformance.engine import EngineError, find_engine, move, with_draft_heads


def test_engines_are_found_by_registered_name_and_by_attribute() -> None:
    assert find_engine("reference").name == "reference"
    assert find_engine("reference.engine:bf16_engine").profile == "bf16"
    assert find_engine("reference.engine:ReferenceEngine").name == "reference"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nothing",
            "'nothing' is not registered; known: .*, reference, reference-bf16, reference-fp8, .*; register",
        ),
        ("no_such_module:engine", "no_such_module cannot be imported"),
        ("reference.engine:absent", "reference.engine has no 'absent'; want module:attribute"),
        ("reference.config:ModelConfig", r"reference.config:ModelConfig\(\) raised TypeError"),
        ("math:pi", "math:pi lacks name, profile, device, ops, load_model"),
    ],
)
def test_what_is_not_an_engine_is_an_error_that_says_what_is_wanted(name: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        find_engine(name)


def test_an_engine_is_moved_by_assigning_its_device() -> None:
    engine = find_engine("reference.engine:ReferenceEngine")
    move(engine, "cpu")
    move(engine, "meta")
    assert torch.device(engine.device) == torch.device("meta")
    with pytest.raises(EngineError, match="device: 'gpu7' is unknown"):
        move(engine, "gpu7")


def test_draft_heads_are_of_a_new_engine_and_refused_for_one_that_has_no_such_thing() -> None:
    engine = find_engine("reference")
    rounded = with_draft_heads(engine, "int4")
    assert (getattr(rounded, "draft_heads", None), getattr(engine, "draft_heads", "")) == ("int4", None)
    assert with_draft_heads(engine, None) is engine
    bare = SimpleNamespace(name="bare")
    assert with_draft_heads(bare, None) is bare  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="draft_heads: bare has no with_draft_heads; want an engine with one"):
        with_draft_heads(bare, "fp8")  # type: ignore[arg-type]

"""Finding engines and moving them."""

import pytest
import torch

from conformance.engine import EngineError, find_engine, move


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

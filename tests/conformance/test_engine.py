"""Finding engines, moving them, and the guard around what they do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.engine import EngineError, find_engine, move
from conformance.guard import guarded
from conformance.tolerance import ConformanceError
from reference.operators import Operators


def test_engines_are_found_by_registered_name_and_by_attribute() -> None:
    assert find_engine("reference").name == "reference"
    assert find_engine("reference.engine:bf16_engine").profile == "bf16"
    assert find_engine("reference.engine:ReferenceEngine").name == "reference"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "'nothing' is not registered; known: reference, reference-bf16; register yours under"),
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


def _in_place(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.mul_(2).clone()


def _raising(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise RuntimeError("no kernel for this shape")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_in_place, "changed its argument 0; want inputs left as they are"),
        (_raising, "raised RuntimeError: no kernel for this shape; want a result"),
        (lambda x, weight, eps: x, "shares memory with an input"),
        (lambda x, weight, eps: x[:1].clone(), r"shape is \(1, 4\); want \(3, 4\)"),
        (lambda x, weight, eps: x.double(), "dtype is torch.float64; want torch.float32"),
        (lambda x, weight, eps: x * math.nan, r"result is nan at \(0, 0\); want a finite number"),
        (lambda x, weight, eps: None, "returned a NoneType; want a tensor"),
    ],
)
def test_the_guard_refuses(function: Any, message: str) -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ConformanceError, match=message):
        guarded("rms_norm", function, torch.device("cpu"))(x, torch.zeros(4), 1e-5)


def test_the_guard_lets_a_right_row_through() -> None:
    x, weight = torch.randn(3, 4), torch.zeros(4)
    got = guarded("rms_norm", Operators().rms_norm, torch.device("cpu"))(x, weight, 1e-5)
    assert torch.equal(got, Operators().rms_norm(x, weight, 1e-5))

"""Weights that were saved quantised are those that are quantised while loading, to the bit; and so are logits."""

from pathlib import Path

import pytest
import torch

from conformance.model import tiny
from optimized.weights import PROFILES, load_weights, tensors_of
from reference.checkpoint import Checkpoint
from reference.save_quantized import save_quantized


@pytest.mark.parametrize(("format", "profile"), [("int4", "w4a16"), ("fp8", "fp8"), ("fp8", "w8a16")])
def test_what_was_saved_is_loaded_as_it_would_have_been_quantised(tmp_path: Path, format: str, profile: str) -> None:
    fields = dict(tiny.TINY)
    source = Checkpoint(tiny.write(tmp_path / "source", fields, tiny.random_weights(fields, 5)))
    save_quantized(source, tmp_path / "saved", format)
    loaded, saved = (
        list(tensors_of(load_weights(checkpoint, PROFILES[profile], "cpu")))
        for checkpoint in (source, Checkpoint(tmp_path / "saved"))
    )
    assert [tensor.dtype for tensor in loaded] == [tensor.dtype for tensor in saved]
    assert all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in zip(loaded, saved, strict=True)
    )
    assert {torch.uint8 if format == "int4" else torch.float8_e4m3fn} < {tensor.dtype for tensor in saved}

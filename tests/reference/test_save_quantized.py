"""Checkpoints that are written quantised: what is read back computes as what was quantised in memory, to the bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reference.accounting import inspect
from reference.checkpoint import INT4_CONFIG, Checkpoint, save_checkpoint
from reference.config import ConfigError, ModelConfig
from reference.model import Model, Weights
from reference.quantization import FORMATS
from reference.save_quantized import save_quantized
from reference.synthetic import random_tensors

from .geometry import TINY

CONFIG = ModelConfig.from_dict(TINY)
TOKENS = torch.arange(2, 30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("source")
    save_checkpoint(folder, TINY, random_tensors(CONFIG, seed=1), shard_bytes=50_000)
    (folder / "tokenizer.json").write_text("{}")
    return Checkpoint(folder)


def logits(weights: Weights, config: ModelConfig) -> torch.Tensor:
    model = Model(config, weights)
    return torch.cat(
        [
            model.logits(model.hidden(TOKENS)),
            model.mtp_logits(0, model.mtp_hidden(0, model.hidden(TOKENS)[:-1], TOKENS[1:])),
        ]
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shard_bytes", [20_000, 10**9])
def test_logits_after_reading_back_are_those_of_the_quantised_weights(
    tmp_path: Path, source: Checkpoint, format: str, shard_bytes: int
) -> None:
    save_quantized(source, tmp_path / "out", format, shard_bytes)
    saved = Checkpoint(tmp_path / "out")
    quantize = FORMATS[format].quantize
    want = logits(source.load(dtype=torch.float32).with_experts(lambda weight: quantize(weight.bfloat16())), CONFIG)  # type: ignore[union-attr]
    assert torch.equal(logits(saved.load(dtype=torch.float32), saved.config), want)
    assert torch.equal(logits(saved, saved.config), want)  # streamed from the files
    assert not torch.equal(logits(source.load(dtype=torch.float32), CONFIG), want)
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("format", FORMATS)
def test_files_are_as_large_as_asked_for_and_no_larger_than_one_tensor_makes_them(
    tmp_path: Path, source: Checkpoint, format: str
) -> None:
    save_quantized(source, tmp_path, format, 20_000)
    for file in tmp_path.glob("*.safetensors"):
        sizes = [tensor.nbytes for name, tensor in load_file(file).items() if "_scale" not in name]
        assert sum(sizes) <= 20_000 or len(sizes) == 1
    counts, before = inspect(Checkpoint(tmp_path).config), inspect(CONFIG)
    held = sum(tensor.nbytes for file in tmp_path.glob("*.safetensors") for tensor in load_file(file).values())
    assert counts["checkpoint_bytes"] == held
    assert counts["parameters"] == before["parameters"]
    assert counts["active_parameters_per_token"] == before["active_parameters_per_token"]
    assert counts["weight_bytes_by_expert_format"] == before["weight_bytes_by_expert_format"]


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path, source: Checkpoint) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("kept")
    with pytest.raises(ValueError, match="full: is not an empty folder; want a new one"):
        save_quantized(source, tmp_path / "full", "int4")
    with pytest.raises(ValueError, match="full/file: is not an empty folder"):
        save_quantized(source, tmp_path / "full/file", "int4")
    with pytest.raises(ValueError, match="format: is 'int3'; want one of fp8, int4"):
        save_quantized(source, tmp_path / "new", "int3")
    save_quantized(source, tmp_path / "fp8", "fp8")
    with pytest.raises(ValueError, match="its experts are quantised already; want a checkpoint in bfloat16"):
        save_quantized(Checkpoint(tmp_path / "fp8"), tmp_path / "new", "int4")
    odd = dict(TINY) | {"moe_intermediate_size": 36}
    save_checkpoint(tmp_path / "odd", odd, random_tensors(ModelConfig.from_dict(odd), seed=1))
    with pytest.raises(ConfigError, match="moe_intermediate_size: is 36 in groups of 128; want multiples of 8"):
        save_quantized(Checkpoint(tmp_path / "odd"), tmp_path / "new", "int4")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_was_left_half_written_is_no_checkpoint(
    tmp_path: Path, source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        if "00003" in file.name:
            raise KeyboardInterrupt
        save_file(tensors, file, metadata)

    monkeypatch.setattr("reference.save_quantized.save_file", save)
    with pytest.raises(KeyboardInterrupt):
        save_quantized(source, tmp_path, "int4", 20_000)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ConfigError, match="no such file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "dense"}, "want format pack-quantized"),
        ({"config_groups": {}}, "one of config_groups"),
        ({"config_groups": {"a": {"weights": {"num_bits": 8}}}}, "weights.num_bits is 8; want 4"),
    ],
)
def test_another_scheme_of_compressed_tensors_is_refused(
    tmp_path: Path, source: Checkpoint, change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(TINY | {"quantization_config": INT4_CONFIG | change})

"""Checkpoints: round trips, and errors that list what is wrong with a folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reference.checkpoint import INDEX_NAME, Checkpoint, CheckpointError, LoadedWeights, save_checkpoint
from reference.config import ConfigError, ModelConfig
from reference.model import Model
from reference.quantization import Fp8Weight
from reference.synthetic import random_tensors, write_random_checkpoint

from .geometry import TINY

CONFIG = ModelConfig.from_dict(TINY)
FP8_FIELDS = TINY | {
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [16, 16],
    }
}
TOKENS = torch.arange(2, 30)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors(CONFIG, seed=1)


def logits(folder: Path, streamed: bool) -> Tensor:
    checkpoint = Checkpoint(folder)
    weights = checkpoint if streamed else checkpoint.load(dtype=torch.float32)
    model = Model(checkpoint.config, weights)
    return model.logits(model.hidden(TOKENS))


@pytest.mark.parametrize("shard_bytes", [None, 20_000, 200_000], ids=["one file", "many shards", "few shards"])
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path: Path, tensors: dict[str, Tensor], shard_bytes: int | None
) -> None:
    save_checkpoint(tmp_path, TINY, tensors, shard_bytes)
    read = dict(Checkpoint(tmp_path).read(list(tensors)))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in tensors)
    assert Checkpoint(tmp_path).config == CONFIG


def test_sharding_and_order_of_tensors_do_not_change_logits(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_checkpoint(tmp_path / "a", TINY, tensors)
    save_checkpoint(tmp_path / "b", TINY, dict(reversed(tensors.items())), shard_bytes=30_000)
    assert torch.equal(logits(tmp_path / "a", streamed=False), logits(tmp_path / "b", streamed=False))


def test_streaming_gives_the_logits_of_loaded_weights(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_checkpoint(tmp_path, TINY, tensors, shard_bytes=30_000)
    assert torch.equal(logits(tmp_path, streamed=True), logits(tmp_path, streamed=False))


def test_fp8_experts_compute_as_their_dequantised_weights(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, FP8_FIELDS, seed=2, shard_bytes=50_000)
    checkpoint = Checkpoint(tmp_path)
    experts = checkpoint.layer(1)["moe.gate_proj.weight"]
    assert isinstance(experts, Fp8Weight)
    assert "moe.gate_proj.weight_scale_inv" not in checkpoint.layer(1)
    # orientation: entry [e, o, i] is scaled by block [e, o // 16, i // 16]
    code, scale = experts.data[3, 17, 33].float(), experts.scale_inv[3, 1, 2]
    assert torch.equal(experts.dequantize()[3, 17, 33], code * scale)
    dense = {
        name.removeprefix("model."): value
        for layer in CONFIG.layers + CONFIG.mtp_layers
        for name, value in (
            (f"model.layers.{layer.index}.{key}", tensor) for key, tensor in checkpoint.layer(layer.index).items()
        )
    }
    flat = {
        f"model.{name}": value.dequantize() if isinstance(value, Fp8Weight) else value for name, value in dense.items()
    }
    model = Model(CONFIG, LoadedWeights.from_flat(CONFIG, flat | checkpoint.top()))
    assert torch.equal(logits(tmp_path, streamed=True), model.logits(model.hidden(TOKENS)))


def test_bf16_block_scales_are_accepted(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, FP8_FIELDS, seed=2, shard_bytes=10**9)
    path = tmp_path / "model-00001.safetensors"
    tensors = load_file(path)
    for name in list(tensors):
        if name.endswith("_scale_inv"):
            tensors[name] = tensors[name].bfloat16()
    save_file(tensors, path)
    assert logits(tmp_path, streamed=True).isfinite().all()


def broken(folder: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors that are not what the config promises; the error of opening them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    return str(caught.value)


def test_missing_unexpected_mis_shaped_and_mis_typed_tensors_are_listed(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    changed = dict(tensors)
    del changed["lm_head.weight"], changed["model.layers.3.moe.router_bias"]
    changed["model.layers.3.moe.router_bias.weight"] = tensors["model.layers.3.moe.router_bias"]
    changed["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].T.contiguous()
    changed["model.norm.weight"] = tensors["model.norm.weight"].half()
    message = broken(tmp_path, changed)
    assert "missing: 2 (model.layers.3.moe.router_bias, lm_head.weight)" in message
    assert "unexpected: 1 (model.layers.3.moe.router_bias.weight)" in message
    assert "mis-shaped: 1 (model.layers.0.mlp.up_proj.weight is (40, 56), want (56, 40))" in message
    assert "mis-typed: 1 (model.norm.weight is F16, want BF16)" in message


def test_long_lists_are_counted_and_cut(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    message = broken(tmp_path, {"model.norm.weight": tensors["model.norm.weight"]})
    assert f"missing: {len(tensors) - 1} (model.embed_tokens.weight, " in message
    assert ", …)" in message


def test_a_head_is_wanted_even_if_the_config_does_not_say_that_it_is_untied(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    without_head = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    assert "missing: 1 (lm_head.weight)" in broken(tmp_path, without_head)


def test_a_truncated_file_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_checkpoint(tmp_path, TINY, tensors)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or not a safetensors file"):
        Checkpoint(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or not a safetensors file"):
        Checkpoint(tmp_path)


def test_a_broken_index_is_named(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_checkpoint(tmp_path, TINY, tensors, shard_bytes=50_000)
    index_path = tmp_path / INDEX_NAME
    good = json.loads(index_path.read_text())

    def error(index: object) -> str:
        index_path.write_text(index if isinstance(index, str) else json.dumps(index))
        with pytest.raises(CheckpointError) as caught:
            Checkpoint(tmp_path)
        return str(caught.value)

    assert "cannot be read" in error("{")
    assert "cannot be read" in error({"weight_map": ["a"]})
    assert "cannot be read" in error({"metadata": {}})
    name = "model.layers.1.input_layernorm.weight"
    first = good["weight_map"][name]
    elsewhere = next(file for file in good["weight_map"].values() if file != first)
    message = error({"weight_map": good["weight_map"] | {name: elsewhere}})
    assert f"in the index for {elsewhere} but not in it: 1 ({name})" in message
    assert f"in {first} but not in the index for it: 1 ({name})" in message
    gone = {"weight_map": good["weight_map"] | {"lm_head.weight": "model-00099.safetensors"}}
    assert "names files that do not exist: 1 (model-00099.safetensors)" in error(gone)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        Checkpoint(tmp_path)


def test_writing_tensors_that_do_not_fit_the_config_is_an_error(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="missing: 1"):
        save_checkpoint(tmp_path, TINY, {name: t for name, t in tensors.items() if name != "model.norm.weight"})

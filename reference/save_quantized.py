"""Write a checkpoint anew with its routed experts in FP8 or int4; everything else is copied as it is.

A few experts are rounded at a time, and a file is written as soon as it is full: the host holds no more than one file.
config.json and the index come last, so that a folder that was left half written is no checkpoint.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from s35_progress import progress

from .checkpoint import (
    EXPERT_NAMES,
    FP8_CONFIG,
    INT4_CONFIG,
    Checkpoint,
    TensorSpec,
    expected_tensors,
    shard_name,
    write_config,
    write_index,
)
from .config import ModelConfig
from .quantization import Fp8Weight, quantize_stack

CONFIGS = {"fp8": FP8_CONFIG, "int4": INT4_CONFIG}
SHARD_BYTES = 5_000_000_000
COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def save_quantized(
    source: Checkpoint,
    folder: str | Path,
    format: str,
    shard_bytes: int = SHARD_BYTES,
    device: torch.device | str = "cpu",
) -> None:
    """Write a bf16 checkpoint with quantised experts, then read its headers back as a check.

    Args:
        folder: made if need be; nothing may be in it.
        format: "fp8" as StepFun publishes it, or "int4" in the words of compressed-tensors.
        shard_bytes: start a new file before this many bytes.
        device: where experts are rounded.

    Raises:
        ValueError: an unknown format, a source that is quantised already, or a folder that holds something.
        ConfigError: sizes that the format cannot pack.
    """
    folder = Path(folder)
    if format not in CONFIGS:
        raise ValueError(f"format: is {format!r}; want one of {', '.join(CONFIGS)}")
    if source.config.quantization is not None:
        raise ValueError(f"{source.folder}: its experts are quantised already; want a checkpoint in bfloat16")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: is not an empty folder; want a new one, so that nothing is overwritten")
    fields = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    fields |= {"quantization_config": CONFIGS[format]}
    specs = expected_tensors(ModelConfig.from_dict(fields))
    shards = _shards(list(source.files), specs, shard_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    with progress("tensors written", len(source.files)) as bar:
        for number, names in enumerate(shards, start=1):
            tensors: dict[str, Tensor] = {}
            for name, tensor in source.read(names):
                tensors |= _stored(name, tensor, format, device)
                bar.advance()
            file = shard_name(number, len(shards))
            save_file(tensors, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
    for name in COPIED:
        if (source.folder / name).exists():
            shutil.copyfile(source.folder / name, folder / name)
    write_index(folder, weight_map, sum(spec.nbytes for spec in specs.values()))
    write_config(folder, fields)
    Checkpoint(folder)


def _stored(name: str, tensor: Tensor, format: str, device: torch.device | str) -> dict[str, Tensor]:
    if not name.endswith(EXPERT_NAMES):
        return {name: tensor}
    weight = quantize_stack(format, tensor, device).to("cpu")
    if isinstance(weight, Fp8Weight):
        return {name: weight.data, f"{name}_scale_inv": weight.scale_inv}
    return {f"{name}_packed": weight.data.view(torch.int32), f"{name}_scale": weight.scale}


def _shards(names: list[str], specs: dict[str, TensorSpec], shard_bytes: int) -> list[list[str]]:
    """Tensors of the source, file by file; a file is larger only where one tensor is."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in names:
        stored = (name, f"{name}_scale_inv", f"{name}_packed", f"{name}_scale")
        nbytes = sum(specs[one].nbytes for one in stored if one in specs)
        if shards[-1] and size + nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards

"""Seeded random checkpoints of any geometry, for tests and measurements where trained weights do not matter."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import INDEX_NAME, TensorSpec, expected_tensors
from .config import ModelConfig

STORED = {"BF16": torch.bfloat16, "F32": torch.float32}


def random_tensor(name: str, spec: TensorSpec, generator: torch.Generator) -> Tensor:
    """One tensor that keeps activations near unit scale: weights by 1 / sqrt(in), norms and biases near zero."""
    values = torch.randn(spec.shape, generator=generator)
    if len(spec.shape) == 1:
        values *= 0.1
    elif "embed_tokens" not in name:
        values *= spec.shape[-1] ** -0.5
    if spec.dtypes[0] == "F8_E4M3":
        return values.clamp(-448, 448).to(torch.float8_e4m3fn)
    if name.endswith("_scale_inv"):
        values = values.abs() + 0.5
    return values.to(STORED[spec.dtypes[0]])


def random_tensors(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """A whole checkpoint's tensors by name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: random_tensor(name, spec, generator) for name, spec in expected_tensors(config).items()}


def write_random_checkpoint(folder: Path, config_fields: Mapping[str, Any], seed: int, shard_bytes: int) -> int:
    """Write a sharded checkpoint, never holding more than one shard in memory; returns its bytes of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_fields, indent=1) + "\n", encoding="utf-8")
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        file = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, spec in expected_tensors(ModelConfig.from_dict(config_fields)).items():
        if shard and sum(tensor.nbytes for tensor in shard.values()) + spec.nbytes > shard_bytes:
            flush()
        shard[name] = random_tensor(name, spec, generator)
        total += shard[name].nbytes
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index) + "\n", encoding="utf-8")
    return total

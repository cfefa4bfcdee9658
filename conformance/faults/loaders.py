"""Engines that load a checkpoint wrongly: subclasses of the reference's ``ReferenceEngine``."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from reference.checkpoint import INDEX_NAME, TOP_NAMES, Checkpoint, expected_tensors, layer_tensors
from reference.engine import ReferenceEngine, ReferenceModel, build_model

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}


class Lenient(Checkpoint):
    """Takes what is there, and zeros for what is not."""

    def _verify(self) -> None:
        return None

    def top(self) -> dict[str, Any]:
        specs = expected_tensors(self.config)
        held = dict(self.read([name for name in TOP_NAMES if name in self.files]))
        return {name: held[name] if name in held else _zeros(specs[name]) for name in TOP_NAMES}

    def layer(self, index: int) -> dict[str, Any]:
        layer = (self.config.layers + self.config.mtp_layers)[index]
        held = super().layer(index)
        missing = {name: spec for name, spec in layer_tensors(self.config, layer).items() if name not in held}
        return held | {name: _zeros(spec) for name, spec in missing.items() if not name.endswith("_scale_inv")}


def _zeros(spec: Any) -> Tensor:
    return torch.zeros(spec.shape, dtype=DTYPES[spec.dtypes[0]])


class IgnoresStrangers(Checkpoint):
    """A tensor that nobody asked for is passed over in silence."""

    def _locate(self) -> dict[str, Path]:
        files = super()._locate()
        wanted = expected_tensors(self.config)
        self._strangers = {name: files[name] for name in files if name not in wanted}
        return files

    def _verify(self) -> None:
        if not self._strangers:
            super()._verify()


class ByOrder(Checkpoint):
    """Tensors of one shape are handed out in the order of the file, not by their names."""

    def read(self, names: list[str]) -> Any:
        order: dict[Any, list[str]] = {}
        for path in dict.fromkeys(self.files.values()):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, not a dict
                    if name.endswith("layernorm.weight"):
                        order.setdefault(tuple(file.get_slice(name).get_shape()), []).append(name)
        wanted = [name for name in expected_tensors(self.config) if name.endswith("layernorm.weight")]
        held = [name for shape in order for name in order[shape]]
        given = dict(zip(wanted, held, strict=False))
        for name in names:
            (_, tensor), *_ = super().read([given.get(name, name)])
            yield name, tensor


class LastShardLost(Lenient):
    """The last file of several is not read."""

    def _locate(self) -> dict[str, Path]:
        files = super()._locate()
        shards = sorted(set(files.values()))
        return {name: path for name, path in files.items() if len(shards) == 1 or path != shards[-1]}


class FirstShardOfEachName(Lenient):
    """The index is not read: tensors are looked for in the first file only."""

    def _locate(self) -> dict[str, Path]:
        files = super()._locate()
        if not (self.folder / INDEX_NAME).exists():
            return files
        weight_map = json.loads((self.folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
        first = min(weight_map.values())
        return {name: path for name, path in files.items() if path.name == first}


class Loads(ReferenceEngine):
    """Opens checkpoints by another class, and may change what was loaded."""

    opened: type[Checkpoint] = Checkpoint

    def load_model(self, checkpoint: Path) -> ReferenceModel:
        return ReferenceModel(build_model(self.opened(checkpoint), self.profile, self.device, self.operators))


class LoadsZerosForMissing(Loads):
    """What is missing is zeros."""

    opened = Lenient


class LoadsStrangers(Loads):
    """What is unknown is passed over."""

    opened = IgnoresStrangers


class LoadsByOrder(Loads):
    """What a tensor is, its place in the file says."""

    opened = ByOrder


class LoadsWithoutTheLastShard(Loads):
    """One file fewer than there are."""

    opened = LastShardLost


class LoadsTheFirstShardOnly(Loads):
    """One file, however many there are."""

    opened = FirstShardOfEachName


class LoadsOnce(Loads):
    """The first checkpoint that was loaded, whatever is asked for later."""

    def load_model(self, checkpoint: Path) -> ReferenceModel:
        held: dict[str, ReferenceModel] = self.__dict__.setdefault("held", {})
        if "model" not in held:
            held["model"] = super().load_model(checkpoint)
        return held["model"]


class OffersARowOfItsOwn(Loads):
    """A row that nobody judges stands beside those that are."""

    def ops(self) -> dict[str, Any]:
        return {**super().ops(), "fused_moe": lambda x: x.clone()}

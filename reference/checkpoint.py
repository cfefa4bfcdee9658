"""Checkpoints in the published format: safetensors files and a config.json, to tensors and back.

``expected_tensors`` is the one table of checkpoint names. Every tensor is accounted for before anything is computed:
what is missing, unexpected, mis-shaped or mis-typed is listed in the error. Files are memory-mapped; a tensor's pages
are read when it is used.

Source: published tensor lists of stepfun-ai/Step-3.5-Flash (804 tensors) and -FP8 (930); the ``safetensors`` library.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s35_progress import tracked

from .config import Fp8Config, Int4Config, LayerConfig, ModelConfig
from .quantization import FORMATS, Fp8Weight, Int4Weight, QuantizedWeight

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_LISTED = 12  # names in one error message; the count is always given

TOP_NAMES = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
# of the published FP8 config.json
FP8_CONFIG = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
# what AutoRound and llm-compressor write for 4-bit weights
INT4_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "experts": {
            "targets": ["re:.*\\.moe\\.(gate|up|down)_proj"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128},
        }
    },
}
CODES_PER_WORD = 8
EXPERT_NAMES = tuple(f"moe.{name}_proj.weight" for name in ("gate", "up", "down"))
DRAFT_HEAD_NAME = "transformer.shared_head.output.weight"  # of each MTP layer


class CheckpointError(ValueError):
    """A checkpoint whose files, names, shapes or dtypes are not what its config.json promises."""


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor must be.

    Attributes:
        dtypes: in the words of safetensors, the usual one first.
        weights_each: weights that an entry stands for: 8 where codes are packed, none where it is a scale.
    """

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = ("BF16",)
    weights_each: int = 1

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes in the usual dtype."""
        return self.numel * {"BF16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4, "F16": 2}[self.dtypes[0]]


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of the checkpoint by name, in the order of the layers."""
    hidden, vocab = config.hidden_size, config.vocab_size
    specs = {"model.embed_tokens.weight": TensorSpec((vocab, hidden))}
    for layer in config.layers + config.mtp_layers:
        for name, spec in layer_tensors(config, layer).items():
            specs[f"model.layers.{layer.index}.{name}"] = spec
    return specs | {"model.norm.weight": TensorSpec((hidden,)), "lm_head.weight": TensorSpec((vocab, hidden))}


def layer_tensors(config: ModelConfig, layer: LayerConfig) -> dict[str, TensorSpec]:
    """The tensors of one layer, named without ``model.layers.N.``."""
    hidden, heads = layer.hidden_size, layer.num_attention_heads
    q_size, kv_size = heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (q_size, hidden),
        "self_attn.k_proj.weight": (kv_size, hidden),
        "self_attn.v_proj.weight": (kv_size, hidden),
        "self_attn.o_proj.weight": (hidden, q_size),
        "self_attn.g_proj.weight": (heads, hidden),
        "self_attn.q_norm.weight": (layer.head_dim,),
        "self_attn.k_norm.weight": (layer.head_dim,),
    }
    if layer.is_moe:
        shapes["moe.gate.weight"] = (layer.num_experts, hidden)
    shapes |= _feed_forward_shapes(layer)
    if layer.index >= config.num_hidden_layers:
        shapes |= {
            "enorm.weight": (hidden,),
            "hnorm.weight": (hidden,),
            "eh_proj.weight": (hidden, 2 * hidden),
            "transformer.shared_head.norm.weight": (hidden,),
            DRAFT_HEAD_NAME: (config.vocab_size, hidden),
        }
    specs = {name: TensorSpec(shape) for name, shape in shapes.items()}
    if layer.is_moe:
        specs["moe.router_bias"] = TensorSpec((layer.num_experts,), ("F32",))
        if isinstance(config.quantization, Fp8Config):
            specs |= _fp8_experts(specs, config.quantization.weight_block_size)
        if isinstance(config.quantization, Int4Config):
            packed = _int4_experts(specs, config.quantization.group_size)
            specs = {name: spec for name, spec in specs.items() if name not in EXPERT_NAMES} | packed
    return specs


def _feed_forward_shapes(layer: LayerConfig) -> dict[str, tuple[int, ...]]:
    def swiglu(prefix: str, size: int, *experts: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{prefix}.gate_proj.weight": (*experts, size, layer.hidden_size),
            f"{prefix}.up_proj.weight": (*experts, size, layer.hidden_size),
            f"{prefix}.down_proj.weight": (*experts, layer.hidden_size, size),
        }

    if not layer.is_moe:
        return swiglu("mlp", layer.intermediate_size)
    routed = swiglu("moe", layer.intermediate_size, layer.num_experts)
    return routed | swiglu("share_expert", layer.shared_expert_intermediate_size)


def _fp8_experts(specs: Mapping[str, TensorSpec], block: tuple[int, int]) -> dict[str, TensorSpec]:
    quantised = {}
    for name in EXPERT_NAMES:
        experts, out_size, in_size = specs[name].shape
        blocks = (experts, -(-out_size // block[0]), -(-in_size // block[1]))
        quantised[name] = TensorSpec(specs[name].shape, ("F8_E4M3",))
        quantised[f"{name}_scale_inv"] = TensorSpec(blocks, ("F32", "BF16"), weights_each=0)
    return quantised


def _int4_experts(specs: Mapping[str, TensorSpec], group: int) -> dict[str, TensorSpec]:
    """The words of compressed-tensors, with E before them."""
    packed = {}
    for name in EXPERT_NAMES:
        *outer, in_size = specs[name].shape
        packed[f"{name}_packed"] = TensorSpec((*outer, in_size // CODES_PER_WORD), ("I32",), CODES_PER_WORD)
        packed[f"{name}_scale"] = TensorSpec((*outer, -(-in_size // group)), ("F16",), weights_each=0)
    return packed


class Checkpoint:
    """An opened checkpoint folder whose tensors are all accounted for.

    It is also a ``Weights`` of ``reference.model``: ``top`` and ``layer`` map the files anew on each call and let go of
    them with the returned tensors, so that a model run from it holds one layer at a time.

    Raises:
        ConfigError: config.json is missing or wrong.
        CheckpointError: a file is missing, truncated or not safetensors, the index is broken, or tensors are missing,
            unexpected, mis-shaped or mis-typed; the message lists them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: no such folder; want one with config.json and *.safetensors")
        self.config = ModelConfig.from_file(self.folder)
        self.files = self._locate()
        self._verify()

    def _locate(self) -> dict[str, Path]:
        """Which file holds each tensor, from the index or the single file's header."""
        index_path = self.folder / INDEX_NAME
        if not index_path.exists():
            single = self.folder / SINGLE_NAME
            if not single.exists():
                raise CheckpointError(f"{self.folder}: holds neither {SINGLE_NAME} nor {INDEX_NAME}; want one of them")
            return dict.fromkeys(_header(single), single)
        try:
            weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
            files = {str(name): self.folder / str(file) for name, file in weight_map.items()}
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{index_path}: cannot be read ({error!r}); want a JSON object whose weight_map maps names to files"
            ) from None
        absent = sorted({path.name for path in files.values() if not path.exists()})
        if absent:
            raise CheckpointError(f"{index_path}: names files that do not exist: {_listed(absent)}; fetch them again")
        return files

    def _verify(self) -> None:
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        problems: list[str] = []
        for path in sorted(set(self.files.values())):
            header = _header(path)
            strangers = [name for name in header if self.files.get(name) != path]
            absent = [name for name, file in self.files.items() if file == path and name not in header]
            if strangers:
                problems.append(f"in {path.name} but not in the index for it: {_listed(strangers)}")
            if absent:
                problems.append(f"in the index for {path.name} but not in it: {_listed(absent)}")
            found |= header
        expected = expected_tensors(self.config)
        missing = [name for name in expected if name not in found]
        unexpected = sorted(name for name in found if name not in expected)
        if missing:
            problems.append(f"missing: {_listed(missing)}")
        if unexpected:
            problems.append(f"unexpected: {_listed(unexpected)}")
        present = [(name, spec, *found[name]) for name, spec in expected.items() if name in found]
        mis_shaped = [
            f"{name} is {shape}, want {spec.shape}" for name, spec, shape, _ in present if shape != spec.shape
        ]
        mis_typed = [
            f"{name} is {dtype}, want {' or '.join(spec.dtypes)}"
            for name, spec, _, dtype in present
            if dtype not in spec.dtypes
        ]
        if mis_shaped:
            problems.append(f"mis-shaped: {_listed(mis_shaped)}")
        if mis_typed:
            problems.append(f"mis-typed: {_listed(mis_typed)}")
        if problems:
            raise CheckpointError(f"{self.folder}: does not hold what its config.json promises; " + "; ".join(problems))

    def read(self, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Memory-mapped tensors by name, each file opened once."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.files[name], []).append(name)
        for path, names_in_file in by_file.items():
            with safe_open(path, framework="pt") as file:
                for name in names_in_file:
                    yield name, file.get_tensor(name)

    def top(self) -> dict[str, Any]:
        """Embedding, final norm and head, memory-mapped."""
        return dict(self.read(list(TOP_NAMES)))

    def layer(self, index: int) -> dict[str, Any]:
        """The tensors of one layer, memory-mapped; quantised experts with their scales as one weight."""
        prefix = f"model.layers.{index}."
        names = [name for name in self.files if name.startswith(prefix)]
        return _join_scales({name.removeprefix(prefix): tensor for name, tensor in self.read(names)}, self.config)

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> "LoadedWeights":
        """All tensors in memory.

        Args:
            device: where to put them.
            dtype: widen floating weights to it once, so that no operator has to; None keeps the stored ones. The
                float32 router bias and quantised weights stay as they are.
        """

        def place(tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor.to(device)
            return tensor.to(device, dtype if dtype and tensor.dtype == torch.bfloat16 else tensor.dtype)

        def placed(tensors: Mapping[str, Any]) -> dict[str, Any]:
            return {name: place(tensor) for name, tensor in tensors.items()}

        layers = self.config.layers + self.config.mtp_layers
        loaded = [placed(self.layer(layer.index)) for layer in tracked(layers, "layers loaded")]
        return LoadedWeights(placed(self.top()), loaded)


class LoadedWeights:
    """A ``Weights`` held in memory."""

    def __init__(self, top: dict[str, Any], layers: list[dict[str, Any]]) -> None:
        self._top = top
        self._layers = layers

    @classmethod
    def from_flat(cls, config: ModelConfig, tensors: Mapping[str, Any]) -> "LoadedWeights":
        """From full checkpoint names."""
        layers: list[dict[str, Any]] = []
        for layer in config.layers + config.mtp_layers:
            prefix = f"model.layers.{layer.index}."
            own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            layers.append(_join_scales(own, config))
        return cls({name: tensors[name] for name in TOP_NAMES}, layers)

    def top(self) -> dict[str, Any]:
        return self._top

    def layer(self, index: int) -> dict[str, Any]:
        return self._layers[index]

    def with_experts(self, change: Callable[[Tensor | QuantizedWeight], Any]) -> "LoadedWeights":
        """These weights with every stacked weight of routed experts changed."""
        return self._with(EXPERT_NAMES, change)

    def with_draft_heads(self, format: str) -> "LoadedWeights":
        """These weights with the MTP depths' own output heads rounded to "fp8" or "int4".

        Raises:
            ValueError: an unknown format, or sizes that it cannot pack.
        """
        if format not in FORMATS:
            raise ValueError(f"draft_heads: is {format!r}; want one of {', '.join(FORMATS)}")
        return self._with((DRAFT_HEAD_NAME,), FORMATS[format].quantize)

    def _with(self, names: Sequence[str], change: Callable[[Any], Any]) -> "LoadedWeights":
        def changed(name: str, tensor: Any) -> Any:
            return change(tensor) if name in names else tensor

        return LoadedWeights(
            self._top, [{name: changed(name, tensor) for name, tensor in layer.items()} for layer in self._layers]
        )


def save_checkpoint(
    folder: str | Path,
    config_fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    shard_bytes: int | None = None,
) -> None:
    """Write config.json and the tensors under their published names, then read the result back as a check.

    Args:
        folder: made if need be; files of the same names are replaced.
        config_fields: the published fields, as in config.json.
        tensors: by full checkpoint name.
        shard_bytes: start a new file before this many bytes; None writes one file without an index.

    Raises:
        ConfigError, CheckpointError: what was written is not a checkpoint of this config.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config_fields)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shard_bytes is not None and shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    if shard_bytes is None:
        (folder / INDEX_NAME).unlink(missing_ok=True)
        save_file(shards[0], folder / SINGLE_NAME, metadata={"format": "pt"})
    else:
        (folder / SINGLE_NAME).unlink(missing_ok=True)
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            file = shard_name(number, len(shards))
            save_file(shard, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(shard, file)
        write_index(folder, weight_map, sum(tensor.nbytes for tensor in tensors.values()))
    Checkpoint(folder)


def write_config(folder: Path, config_fields: Mapping[str, Any]) -> None:
    """Write config.json, a field a line."""
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in config_fields.items())
    (folder / "config.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """Write which file holds each tensor."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def shard_name(number: int, count: int) -> str:
    """The file of one of several, counted from 1, as Hugging Face names it."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _join_scales(tensors: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    quantization = config.quantization
    for name in EXPERT_NAMES:
        if isinstance(quantization, Fp8Config) and name in tensors:
            scale_inv = tensors.pop(f"{name}_scale_inv")
            tensors[name] = Fp8Weight(tensors[name], scale_inv, quantization.weight_block_size)
        if isinstance(quantization, Int4Config) and f"{name}_packed" in tensors:
            codes, scale = tensors.pop(f"{name}_packed"), tensors.pop(f"{name}_scale")
            tensors[name] = Int4Weight(codes.view(torch.uint8), scale, quantization.group_size)
    return tensors


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor of a file."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
            return {name: (tuple(s.get_shape()), str(s.get_dtype())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file ({error}); want the published file: fetch it again"
        ) from None


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_LISTED])
    return f"{len(names)} ({shown}{', …' if len(names) > MAX_LISTED else ''})"

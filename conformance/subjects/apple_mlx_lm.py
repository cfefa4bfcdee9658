"""mlx-lm: its Step 3.5 model, caches, samplers and generation, on the CPU.

Its loader adds the norms' 1 in the dtype of the file. ``engine`` widens the weights first, so that everything else can
be judged; ``loader_engine`` loads as the library does and widens afterwards. On CPUs its
experts run in float32 only.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.generate import Generation

from .apple_mlx_lm_ops import rows, to_torch
from .installed import find


class MlxLm:
    """The library in float32.

    Args:
        loader: load by the library's own loader, which adds the norms' 1 to the weights as stored.

    Raises:
        SubjectError: mlx-lm is not installed.
    """

    def __init__(self, name: str, loader: bool) -> None:
        self.name = name
        self.profile = "float32"
        self.device: torch.device | str = "cpu"
        self.loader = loader
        find("mlx.core", "mlx", "'mlx[cpu]' mlx-lm")
        find("mlx_lm.models.step3p5", "mlx-lm")

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """The modules and functions that its model is built from."""
        return rows()

    def load_model(self, checkpoint: Path) -> "MlxModel":
        """Load a checkpoint with the library's own name table."""
        mx, step3p5 = find("mlx.core", "mlx"), find("mlx_lm.models.step3p5", "mlx-lm")
        fields = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        if self.loader:
            model, _ = find("mlx_lm.utils", "mlx-lm").load_model(checkpoint)
            model.set_dtype(mx.float32)
        else:
            model = step3p5.Model(step3p5.ModelArgs.from_dict(fields))
            stored = [mx.load(str(path)) for path in sorted(checkpoint.glob("*.safetensors"))]
            wide = {name: array.astype(mx.float32) for file in stored for name, array in file.items()}
            model.load_weights(list(model.sanitize(wide).items()), strict=True)
        return MlxModel(model, fields["eos_token_id"])


class _WatchedGate:
    """A router that notes what it chose."""

    def __init__(self, gate: Any) -> None:
        self.gate = gate
        self.chosen: tuple[Any, Any] | None = None

    def __call__(self, x: Any) -> tuple[Any, Any]:
        self.chosen = self.gate(x)
        return self.chosen


class MlxModel:
    """A loaded model whose routers are watched."""

    def __init__(self, model: Any, end_tokens: list[int]) -> None:
        self.model = model
        self.end_tokens = end_tokens
        for layer in model.layers:
            if layer.is_moe_layer:
                layer.mlp.gate = _WatchedGate(layer.mlp.gate)

    def new_session(self) -> "MlxSession":
        return MlxSession(self.model)

    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        mtp: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """The library's ``generate_step`` with its sampler, up to an end token."""
        if mtp:
            raise NotImplementedError("mlx-lm drops the MTP layers")
        mx, sample_utils = find("mlx.core", "mlx"), find("mlx_lm.sample_utils", "mlx-lm")
        mx.random.seed(seed)
        sampler = sample_utils.make_sampler(temp=temperature, top_p=top_p, min_p=min_p, top_k=top_k)
        step = find("mlx_lm.generate", "mlx-lm").generate_step
        result = Generation()
        for token, _ in step(mx.array(prompt_ids), self.model, max_tokens=max_new_tokens, sampler=sampler):
            result.tokens.append(int(token))
            if result.tokens[-1] in self.end_tokens:
                break
        return result


class MlxSession:
    """One context in the library's prompt cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = model.make_cache()
        self.length = 0

    def extend(self, token_ids: list[int]) -> Tensor:
        """Logits [T, V]."""
        mx = find("mlx.core", "mlx")
        logits = to_torch(self._model(mx.array([token_ids]), cache=self._cache))[0]
        self.length += len(token_ids)
        return logits

    def truncate(self, length: int) -> None:
        if length > self.length:
            raise ValueError(f"truncate: length is {length}; want 0 to {self.length}")
        caches = find("mlx_lm.models.cache", "mlx-lm")
        if not caches.can_trim_prompt_cache(self._cache):
            raise NotImplementedError("mlx-lm trims no rotating cache that has seen its window")
        caches.trim_prompt_cache(self._cache, self.length - length)
        self.length = length

    def routing(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        watched = {index: layer.mlp.gate for index, layer in enumerate(self._model.layers) if layer.is_moe_layer}
        return {
            index: (to_torch(gate.chosen[0])[0].long(), to_torch(gate.chosen[1])[0]) for index, gate in watched.items()
        }


def engine() -> MlxLm:
    """Its norms' 1 added in float32."""
    return MlxLm("mlx-lm", loader=False)


def loader_engine() -> MlxLm:
    """Its norms' 1 added in bfloat16, by its own loader."""
    return MlxLm("mlx-lm-loader", loader=True)

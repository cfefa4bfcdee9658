"""The Triton kernels and the model that is built on them, as an engine under test: judged exactly as a vendor's."""

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from .interpreter import interpret

if TYPE_CHECKING:
    from reference.config import ModelConfig

    from .model import OptimizedModel
    from .synthetic import SyntheticModel

PROFILES = ("float32", "bf16", "fp8", "w8a16", "w4a16")
NUM_CONTEXTS = 40  # at a time, of a model that is loaded to be judged
CACHE_CONTEXTS = 8  # whole contexts that its pages hold together, where memory allows
ROWS = (
    *("embedding", "rms_norm", "qk_norm", "rope", "attention", "head_gate", "linear", "swiglu", "mlp", "router"),
    *("experts", "experts_fp8", "quantize_activation", "mtp_input", "sampling", "draw", "accept_draft"),
)


class OptimizedEngine:
    """The rows of ``optimized/ops``: on a CUDA device compiled, on a CPU interpreted.

    Attributes:
        device: the first CUDA device where there is one; on ``cpu``, Triton's interpreter runs the same kernels.
        draft_heads: what its models' MTP depths hold their output heads in; None: as the other weights.
    """

    def __init__(self, name: str, profile: str) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile: is {profile!r}; want one of {', '.join(PROFILES)}")
        self.name = name
        self.profile = profile
        self.device: torch.device | str = "cuda" if torch.cuda.is_available() else "cpu"
        self.draft_heads: str | None = None

    def with_draft_heads(self, format: str) -> Self:
        """This engine with draft heads in "fp8" or "int4": other drafts may come, and be accepted more rarely.

        What verifies them stays as it is, and so does every greedy text.
        """
        changed = copy.copy(self)
        changed.draft_heads = format
        return changed

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Every row, imported once it is known how its kernels run.

        Raises:
            ImportError: there is no Triton; it has packages for Linux only.
        """
        self._prepare()
        return {row: getattr(importlib.import_module(f"{__package__}.ops.{row}"), row) for row in ROWS}

    def load_model(self, checkpoint: Path) -> "OptimizedModel":
        """Load a checkpoint to be judged, with caches for a handful of contexts.

        Raises:
            NotImplementedError: on a CPU, where one interpreted step takes seconds.
            ConfigError, CheckpointError, ValueError: as ``load_anywhere``.
        """
        if torch.device(self.device).type == "cpu":
            raise NotImplementedError(
                "load_model: the device is cpu, where Triton's interpreter takes seconds a step; want a CUDA device, "
                "or --engine optimized.engine:interpreted_engine"
            )
        return self.load_anywhere(checkpoint)

    def load_anywhere(self, checkpoint: Path) -> "OptimizedModel":
        """Load a checkpoint in the published format on any device; on a CPU it runs interpreted.

        Raises:
            ConfigError, CheckpointError: it is not one.
            ValueError: what is left of the device's memory holds no cache; the message says what would fit.
        """
        self._prepare()
        from reference.checkpoint import Checkpoint

        from .loading import Wanted, load

        wanted = Wanted(NUM_CONTEXTS, CACHE_CONTEXTS)
        return load(Checkpoint(checkpoint), self.profile, self.device, wanted, self.draft_heads)

    def synthetic_model(
        self, config: "ModelConfig", format: str, seed: int = 0, correlation: float = 0.0
    ) -> "SyntheticModel":
        """A model of a geometry with random weights, made on the device; what ``s35 perf model`` measures.

        Raises:
            ValueError: an unknown format, or too little memory.
        """
        self._prepare()
        from .loading import with_index
        from .synthetic import SyntheticModel, synthetic_weights

        device = with_index(torch.device(self.device))
        return SyntheticModel(*synthetic_weights(config, format, device, seed, correlation, self.draft_heads))

    def served_model(self, checkpoint: Path, num_contexts: int, longest: int) -> "OptimizedModel":
        """A checkpoint with caches for so many contexts of so many tokens, to be served; ``s35 perf serve`` does.

        Raises:
            ConfigError, CheckpointError: it is not one.
            ValueError: the caches do not fit; the message says what would.
        """
        self._prepare()
        from reference.checkpoint import Checkpoint

        from .loading import Wanted, load

        wanted = Wanted(num_contexts, num_contexts, longest)
        return load(Checkpoint(checkpoint), self.profile, self.device, wanted, self.draft_heads)

    def served_synthetic(self, config: "ModelConfig", format: str, num_contexts: int, longest: int) -> "OptimizedModel":
        """The same of a geometry with random weights.

        Raises:
            ValueError: an unknown format, or too little memory.
        """
        from .loading import Wanted, model_of

        return model_of(self.synthetic_model(config, format).weights, Wanted(num_contexts, num_contexts, longest))

    def _prepare(self) -> None:
        """Know how kernels run, before they are imported.

        Raises:
            ImportError: there is no Triton; it has packages for Linux only.
        """
        if importlib.util.find_spec("triton") is None:
            raise ImportError(
                "optimized: Triton is not installed (it is for Linux only); want it, or --engine reference"
            )
        if torch.device(self.device).type == "cpu":
            interpret()


class InterpretedEngine(OptimizedEngine):
    """Offers the whole model on a CPU too, for whoever has the minutes."""

    def load_model(self, checkpoint: Path) -> "OptimizedModel":
        """As ``load_anywhere``."""
        return self.load_anywhere(checkpoint)


engine = OptimizedEngine("optimized", "bf16")
float32_engine = OptimizedEngine("optimized-float32", "float32")
fp8_engine = OptimizedEngine("optimized-fp8", "fp8")
w8a16_engine = OptimizedEngine("optimized-w8a16", "w8a16")
w4a16_engine = OptimizedEngine("optimized-w4a16", "w4a16")
interpreted_engine = InterpretedEngine("optimized-interpreted", "bf16")
interpreted_float32_engine = InterpretedEngine("optimized-interpreted-float32", "float32")

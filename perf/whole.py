"""Which whole model is measured: a checkpoint, or a geometry with random weights; and which of its scenarios."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conformance.engine import with_draft_heads
from reference import config as reference_config
from reference.config import ModelConfig

from .checkpoint_work import CheckpointSubject
from .model import CPU_SCENARIOS, GPU_SCENARIOS, Scenario, Subject, scenarios_of
from .prompts import load_prompts
from .synthetic_work import SyntheticSubject

WEIGHTS = ("synthetic", "checkpoint")
MINIATURE = Path(reference_config.__file__).parent / "nano"


@dataclass(frozen=True)
class Wanted:
    """A whole model to measure.

    Attributes:
        weights: one of WEIGHTS.
        config, format: of synthetic weights.
        checkpoint, prompts: else.
        correlation, seed: of synthetic weights.
        draft_heads: "fp8" or "int4", of either; None: as the other weights, or as stored.
    """

    weights: str
    config: Path
    format: str
    checkpoint: Path
    prompts: str | None = None
    seed: int = 0
    correlation: float = 0.0
    draft_heads: str | None = None

    @classmethod
    def of(cls, options: Any) -> "Wanted":
        """From the options of a session of pytest."""
        checkpoint = options.getoption("--checkpoint")
        is_given = checkpoint.resolve() != MINIATURE.resolve()
        on_gpu = torch.device(options.getoption("--device") or "cpu").type != "cpu"
        weights = options.getoption("--weights") or ("synthetic" if on_gpu and not is_given else "checkpoint")
        return cls(weights, options.getoption("--config"), options.getoption("--format"), checkpoint,
                   options.getoption("--prompts"))  # fmt: skip

    @property
    def is_synthetic(self) -> bool:
        return self.weights == "synthetic"

    @property
    def format_name(self) -> str:
        """What tells it from another model of the same engine."""
        if self.is_synthetic:
            return self.format
        return "" if self.checkpoint.resolve() == MINIATURE.resolve() else self.checkpoint.resolve().name

    def settings(self) -> Mapping[str, Any]:
        """What must be the same for two runs to be compared."""
        if self.is_synthetic:
            return {"weights": self.weights, "config": self.config.name, "format": self.format, "seed": self.seed,
                    "correlation": self.correlation}  # fmt: skip
        return {"weights": self.weights, "checkpoint": self.checkpoint.resolve().name, "prompts": self.prompts}

    def scenarios(self, device: str) -> Sequence[Scenario]:
        """What is measured of it.

        Raises:
            ConfigError: there is no config, or it is none.
        """
        if not self.is_synthetic:
            return scenarios_of(ModelConfig.from_file(self.checkpoint))
        return CPU_SCENARIOS if torch.device(device).type == "cpu" else GPU_SCENARIOS


def chosen(scenarios: Sequence[Scenario], texts: Sequence[str]) -> list[Scenario]:
    """Those that a text names, or whose name holds it where it names none; of no texts, all."""
    names = {one.name for one in scenarios}
    return [
        one
        for one in scenarios
        if not texts or any(text == one.name or (text not in names and text in one.name) for text in texts)
    ]


def subject_of(engine: Any, device: str, wanted: Wanted) -> Subject:
    """Load or make it.

    Raises:
        NotOfferedError: the engine has no such thing here.
        ValueError: a file cannot be read, memory is too small, or the engine's draft heads stay as they are.
    """
    heads = wanted.draft_heads
    engine = with_draft_heads(engine, heads)
    if wanted.is_synthetic:
        config = ModelConfig.from_file(wanted.config)
        return SyntheticSubject(engine, config, wanted.format, device, wanted.seed, wanted.correlation, heads)
    return CheckpointSubject(engine, wanted.checkpoint, device, load_prompts(wanted.prompts, wanted.checkpoint), heads)

"""The Triton kernels as an engine under test: registered and judged exactly as a vendor's."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from .interpreter import interpret

PROFILES = ("float32", "bf16", "fp8", "w8a16", "w4a16")
ROWS = (
    *("embedding", "rms_norm", "qk_norm", "rope", "attention", "head_gate", "linear", "swiglu", "mlp", "router"),
    *("experts", "experts_fp8", "quantize_activation", "mtp_input", "sampling", "draw", "accept_draft"),
)


class OptimizedEngine:
    """The rows of ``optimized/ops``: on a CUDA device compiled, on a CPU interpreted.

    Attributes:
        device: the first CUDA device where there is one; on ``cpu``, Triton's interpreter runs the same kernels.
    """

    def __init__(self, name: str, profile: str) -> None:
        if profile not in PROFILES:
            raise ValueError(f"profile: is {profile!r}; want one of {', '.join(PROFILES)}")
        self.name = name
        self.profile = profile
        self.device: torch.device | str = "cuda" if torch.cuda.is_available() else "cpu"

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Every row, imported once it is known how its kernels run.

        Raises:
            ImportError: there is no Triton; it has packages for Linux only.
        """
        if importlib.util.find_spec("triton") is None:
            raise ImportError(
                "optimized: Triton is not installed (it is for Linux only); want it, or --engine reference"
            )
        if torch.device(self.device).type == "cpu":
            interpret()
        return {row: getattr(importlib.import_module(f"{__package__}.ops.{row}"), row) for row in ROWS}

    def load_model(self, checkpoint: Path) -> NoReturn:
        """Not yet: the rows can be judged, a whole model cannot."""
        raise NotImplementedError("operators only: the engine's model is not built yet")


engine = OptimizedEngine("optimized", "bf16")
float32_engine = OptimizedEngine("optimized-float32", "float32")
fp8_engine = OptimizedEngine("optimized-fp8", "fp8")
w8a16_engine = OptimizedEngine("optimized-w8a16", "w8a16")
w4a16_engine = OptimizedEngine("optimized-w4a16", "w4a16")

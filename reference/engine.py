"""The reference as an engine under test: registered and judged exactly as a vendor's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .generate import Generation, SamplingParams, generate
from .model import Model
from .operators import Operators

PROFILE_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.bfloat16}


class ReferenceEngine:
    """The operators and the model in one activation dtype.

    Args:
        profile: where rounding happens; one of PROFILE_DTYPES.
        ops: anything but the default is a variant under study.
    """

    def __init__(
        self,
        name: str = "reference",
        profile: str = "float32",
        device: torch.device | str = "cpu",
        ops: Operators | None = None,
    ) -> None:
        if profile not in PROFILE_DTYPES:
            raise ValueError(f"profile: is {profile!r}; want one of {', '.join(PROFILE_DTYPES)}")
        self.name = name
        self.profile = profile
        self.device = torch.device(device)
        self.operators = ops or Operators()

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Every row of ``reference/ops``."""
        return dict(vars(self.operators))

    def load_model(self, checkpoint: Path) -> "ReferenceModel":
        """Load a checkpoint in the published format.

        Raises:
            ConfigError, CheckpointError: it is not one.
        """
        opened = Checkpoint(checkpoint)
        dtype = PROFILE_DTYPES[self.profile]
        weights = opened.load(self.device, None if dtype == torch.bfloat16 else dtype)
        return ReferenceModel(Model(opened.config, weights, dtype, self.device, self.operators))


class ReferenceModel:
    """A loaded model that hands out sessions."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def new_session(self) -> "ReferenceSession":
        """An empty context."""
        return ReferenceSession(self.model)

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
        """As ``reference.generate.generate``."""
        params = SamplingParams(temperature, top_k, top_p, min_p, seed)
        with torch.inference_mode():
            return generate(self.model, prompt_ids, max_new_tokens, mtp, params)


class ReferenceSession:
    """One context: tokens go in, logits come out, the newest tokens can be taken back."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.cache = model.new_cache()

    @property
    def length(self) -> int:
        """Tokens in the context."""
        return self.cache.length

    def extend(self, token_ids: list[int]) -> Tensor:
        """Append tokens; logits [T, V] of each of them."""
        with torch.inference_mode():
            return self.model.logits(self.model.hidden(torch.tensor(token_ids), self.cache))

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        self.cache.truncate(length)


engine = ReferenceEngine()
bf16_engine = ReferenceEngine("reference-bf16", "bf16")

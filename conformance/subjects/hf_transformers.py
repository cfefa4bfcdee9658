"""transformers: its text model of Step 3.5 under the names of Step 3.7, with its own cache and generation.

It has no causal LM for model_type step3p5; Step3p7ForConditionalGeneration holds the same text model under the same
published names, beside a vision tower that stays random here and unused.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from reference.generate import Generation

from ..profiles import find_profile
from .hf_transformers_ops import rows
from .installed import find

TINY_VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}


class HfTransformers:
    """The library in one dtype.

    Raises:
        SubjectError: transformers is not installed.
    """

    def __init__(self, name: str, profile: str) -> None:
        self.name = name
        self.profile = profile
        self.device: torch.device | str = "cpu"
        find("transformers.models.step3p7", "transformers")

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """The modules and functions that its model is built from."""
        return rows()

    def load_model(self, checkpoint: Path) -> "HfModel":
        """Load a checkpoint with the library's own key mapping."""
        model, _ = load(checkpoint, find_profile(self.profile).activations)
        return HfModel(model.to(self.device))


def load(checkpoint: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The library's model, and what it says became of each tensor."""
    transformers = find("transformers", "transformers")
    text_config = transformers.AutoConfig.from_pretrained(checkpoint)
    config = transformers.Step3p7Config(text_config=text_config, vision_config=TINY_VISION)
    loaded: tuple[Any, dict[str, Any]] = transformers.Step3p7ForConditionalGeneration.from_pretrained(
        checkpoint, config=config, dtype=dtype, output_loading_info=True
    )
    return loaded


class HfModel:
    """A loaded model whose routers are watched."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.text = model.model.language_model
        self.routing: dict[int, tuple[Tensor, Tensor]] = {}
        for index, layer in enumerate(self.text.layers):
            if hasattr(layer.mlp, "gate"):
                layer.mlp.gate.register_forward_hook(self._watch(index, layer.mlp.routed_scaling_factor))

    def new_session(self) -> "HfSession":
        return HfSession(self)

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
        """The library's ``generate``; it drafts with all MTP layers or with none."""
        transformers = find("transformers", "transformers")
        config = self.text.config
        if mtp not in (0, config.num_nextn_predict_layers):
            raise NotImplementedError(
                f"transformers drafts {config.num_nextn_predict_layers} tokens a step or none; asked for {mtp}"
            )
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": temperature > 0}
        options |= {"use_mtp": True} if mtp else {}
        if temperature > 0:
            options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p or None}
        ends = {"eos_token_id": list(config.eos_token_id), "pad_token_id": config.pad_token_id}
        torch.manual_seed(seed)
        result = Generation(drafted_per_position=[0] * mtp, accepted_per_position=[0] * mtp)
        with torch.inference_mode(), _counting(result):
            self.model.generation_config = transformers.GenerationConfig(**options, **ends)
            prompt = torch.tensor([prompt_ids], device=self.model.device)
            output = self.model.generate(prompt, attention_mask=torch.ones_like(prompt))
        result.tokens = output[0, len(prompt_ids) :].tolist()
        return result

    def _watch(self, index: int, scaling: float) -> Callable[..., None]:
        def note(router: Any, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
            _, weights, ids = outputs
            self.routing[index] = (ids, weights * scaling)  # the block scales after its experts are summed

        return note


class HfSession:
    """One context in the library's DynamicCache, told beforehand that tokens will be taken back."""

    def __init__(self, model: HfModel) -> None:
        self._model = model
        self._cache = find("transformers", "transformers").DynamicCache(config=model.text.config)
        self._cache.activate_past_recording()
        self._routing: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        return int(self._cache.get_seq_length())

    def extend(self, token_ids: list[int]) -> Tensor:
        """Logits [T, V]."""
        model = self._model.model
        with torch.inference_mode():
            tokens = torch.tensor([token_ids], device=model.device)
            logits: Tensor = model(tokens, past_key_values=self._cache, use_cache=True).logits[0]
        self._routing = dict(self._model.routing)
        return logits

    def truncate(self, length: int) -> None:
        self._cache.crop(length - self.length)

    def routing(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        return self._routing


@contextmanager
def _counting(result: Generation) -> Iterator[None]:
    """Count drafts where the library tells its drafter how many were accepted."""
    generator = find("transformers.generation.candidate_generator", "transformers").MTPCandidateGenerator

    def count(self: Any, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        for position in range(scores.shape[1] - 1):
            result.drafted_per_position[position] += 1
            result.accepted_per_position[position] += int(position < num_matches)

    with mock.patch.object(generator, "update_candidate_strategy", count):
        yield


def engine() -> HfTransformers:
    """In float32."""
    return HfTransformers("transformers", "float32")


def bf16_engine() -> HfTransformers:
    """In bfloat16, the dtype of the published weights, which it rotates in bfloat16, too."""
    return HfTransformers("transformers-bf16", "bf16-rotation")

"""Numerics profiles: where an engine rounds. A verdict is "conformant to profile p", never just "pass"."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Profile:
    """Dtypes of what an engine stores and of what it adds up in.

    Attributes:
        activations: inputs and outputs of operators, and of the steps inside ``mlp``; an engine may also round the
            intermediates of ``experts`` and the probabilities of ``attention`` to it.
        weights: of everything that ``expert_weights`` does not speak of.
        accumulate: sums, statistics, router scores, rotary angles and, unless ``rotation`` says otherwise, cosines and
            sines.
        rotation: what cosines and sines, and their products with queries and keys, are rounded to; None: not at all.
            StepFun's eager code and transformers round both to bfloat16, its training code the cosines and sines only.
            That is a profile of its own: a cosine is as far off for every head at its position, so that it does not
            average out, and a rotated query may be twice as far off as in bf16, whose sum is rounded once.
        expert_weights: how the routed experts are stored: None as the other weights; "fp8" e4m3 with a float32 scale
            for each 128x128 block; "int4" symmetric, a float16 scale for 128 inputs. An engine may round the widened
            weight to ``activations``. Whole models load the FP8 checkpoint, or round the bf16 one to int4 themselves,
            as ``reference.quantization.quantize_int4_weight`` does.
        expert_activations: None as ``activations``; "fp8": the inputs of both of an expert's products are rounded to
            e4m3 with a float32 scale for 128 neighbours of a row, as ``reference.ops.quantize_activation`` does.
    """

    name: str
    activations: torch.dtype
    weights: torch.dtype
    accumulate: torch.dtype = torch.float32
    rotation: torch.dtype | None = None
    expert_weights: str | None = None
    expert_activations: str | None = None

    @property
    def is_narrow(self) -> bool:
        """Whether results are rounded to fewer digits than they are accumulated in."""
        return torch.finfo(self.activations).eps > torch.finfo(self.accumulate).eps


BF16 = torch.bfloat16
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("float32", torch.float32, torch.float32),
        Profile("bf16", BF16, BF16),
        Profile("bf16-rotation", BF16, BF16, rotation=BF16),
        Profile("fp8", BF16, BF16, expert_weights="fp8", expert_activations="fp8"),
        Profile("w8a16", BF16, BF16, expert_weights="fp8"),
        Profile("w4a16", BF16, BF16, expert_weights="int4"),
    )
}


def find_profile(name: str) -> Profile:
    """Look a profile up.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in PROFILES:
        raise ValueError(f"profile: is {name!r}; want one of {', '.join(PROFILES)}")
    return PROFILES[name]

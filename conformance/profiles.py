"""Numerics profiles: where an engine rounds. A verdict is "conformant to profile p", never just "pass"."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Profile:
    """Dtypes of what an engine stores and of what it adds up in.

    ``activations``: inputs and outputs of operators, and of the steps inside ``mlp``; an engine may also round the
    intermediates of ``experts`` and the probabilities of ``attention`` to it.
    ``accumulate``: sums, statistics, router scores, and rotary angles, cosines and sines. (StepFun's eager code rounds
    cosines and sines to bfloat16: that would be a profile of its own.)
    """

    name: str
    activations: torch.dtype
    weights: torch.dtype
    accumulate: torch.dtype

    @property
    def is_narrow(self) -> bool:
        """Whether results are rounded to fewer digits than they are accumulated in."""
        return torch.finfo(self.activations).eps > torch.finfo(self.accumulate).eps


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("float32", torch.float32, torch.float32, torch.float32),
        Profile("bf16", torch.bfloat16, torch.bfloat16, torch.float32),
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

"""Memory that kernels share between launches on one device: counters that are zero before and after every launch."""

import torch
from torch import Tensor

FEWEST = 65_536  # counters at first: above what decoding needs, so that a captured graph keeps its address

_counters: dict[torch.device, Tensor] = {}


def counters(device: torch.device, count: int) -> Tensor:
    """At least ``count`` int32 zeros. Launches on one stream come one after another, and each leaves zeros behind."""
    found = _counters.get(device)
    if found is None or len(found) < count:
        found = _counters[device] = torch.zeros(max(count, FEWEST), dtype=torch.int32, device=device)
    return found

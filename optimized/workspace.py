"""Memory that kernels share between launches of one stream: counters that are zero before and after every launch."""

import torch
from torch import Tensor

FEWEST = 65_536  # counters at first: above what decoding needs, so that a captured graph keeps its address

_counters: dict[tuple[torch.device, int], Tensor] = {}


def counters(device: torch.device, count: int) -> Tensor:
    """At least ``count`` int32 zeros of the current stream, whose launches come one after another and leave zeros."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    found = _counters.get((device, stream))
    if found is None or len(found) < count:
        found = _counters[device, stream] = torch.zeros(max(count, FEWEST), dtype=torch.int32, device=device)
    return found

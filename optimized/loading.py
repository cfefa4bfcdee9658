"""From a checkpoint to a model that runs: weights, then caches of what memory is left."""

from dataclasses import dataclass, replace

import torch

from reference.checkpoint import Checkpoint
from reference.config import ModelConfig

from .kv_cache import CacheSizes, KVCache, fit, page_bytes, pages_for
from .model import OptimizedModel
from .runner import Runner
from .weights import PROFILES, Format, ModelWeights, load_weights

KEPT_FREE_BYTES = 6 << 30  # of a GPU's memory: activations of a chunk of a prompt, workspaces, graphs
CPU_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Wanted:
    """What a cache should hold.

    Attributes:
        num_contexts: at a time.
        whole_contexts: how many of the longest its pages hold together; fewer where memory is short, but one.
        max_context: tokens of the longest; None: what the model was made for.
    """

    num_contexts: int = 1
    whole_contexts: int = 1
    max_context: int | None = None


def load(
    checkpoint: Checkpoint,
    profile: str,
    device: torch.device | str,
    wanted: Wanted | None = None,
    draft_heads: str | None = None,
) -> OptimizedModel:
    """Load weights, then plan and allocate the caches.

    Args:
        draft_heads: as of ``Format``.

    Raises:
        CheckpointError: a tensor that no layer takes.
        ValueError: an unknown format of draft heads, or the caches do not fit; the message says what would.
    """
    format = replace(PROFILES[profile], draft_heads=draft_heads)
    weights = load_weights(checkpoint, format, with_index(torch.device(device)))
    return model_of(weights, wanted or Wanted())


def model_of(weights: ModelWeights, wanted: Wanted, poisons: bool = False) -> OptimizedModel:
    """A model of weights that are on their device."""
    sizes = plan(weights.config, weights.format, free_bytes(weights.device), wanted)
    cache = KVCache(weights.config, weights.format.dtype, weights.device, sizes, poisons)
    return OptimizedModel(Runner(weights, cache), cache)


def plan(config: ModelConfig, format: Format, budget_bytes: int, wanted: Wanted) -> CacheSizes:
    """The largest cache up to what is wanted.

    Raises:
        ValueError: not even one whole context fits.
    """
    longest = wanted.max_context or config.max_position_embeddings
    least = CacheSizes(wanted.num_contexts, CacheSizes(1, 0, longest).table_width, longest)
    fit(config, format.dtype, budget_bytes, least)
    room = budget_bytes - page_bytes(config, format.dtype)
    for contexts in range(wanted.whole_contexts, 1, -1):
        sizes = CacheSizes(wanted.num_contexts, pages_for(contexts * longest) + wanted.num_contexts, longest)
        try:
            return fit(config, format.dtype, room, sizes)
        except ValueError:
            continue
    return least


def free_bytes(device: torch.device) -> int:
    """What caches may take."""
    if device.type != "cuda":
        return CPU_CACHE_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return free - KEPT_FREE_BYTES


def with_index(device: torch.device) -> torch.device:
    """``cuda`` is the current CUDA device."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device

"""Clocks as they were before any engine was imported, and whether somebody has changed them since.

An engine runs in this process and could replace ``time.perf_counter`` or an event's ``elapsed_time``. What times here
was bound when this module was imported; ``patched`` says what is no longer what it was.
"""

import gc
import time
from collections.abc import Callable, Mapping

import torch

perf_counter = time.perf_counter
monotonic = time.monotonic

_PLACES: Mapping[str, tuple[object, str]] = {
    "time.perf_counter": (time, "perf_counter"),
    "time.perf_counter_ns": (time, "perf_counter_ns"),
    "time.monotonic": (time, "monotonic"),
    "time.time": (time, "time"),
    "torch.cuda.Event": (torch.cuda, "Event"),
    "torch.cuda.Event.elapsed_time": (torch.cuda.Event, "elapsed_time"),
    "torch.cuda.Event.record": (torch.cuda.Event, "record"),
    "torch.cuda.Event.synchronize": (torch.cuda.Event, "synchronize"),
    "torch.cuda.synchronize": (torch.cuda, "synchronize"),
    "torch.cuda.CUDAGraph": (torch.cuda, "CUDAGraph"),
    "torch.cuda.CUDAGraph.replay": (torch.cuda.CUDAGraph, "replay"),
    "torch.cuda.current_stream": (torch.cuda, "current_stream"),
    "torch.allclose": (torch, "allclose"),
    "torch.equal": (torch, "equal"),
    "torch.Tensor.clone": (torch.Tensor, "clone"),
    "torch.Tensor.copy_": (torch.Tensor, "copy_"),
    "torch.Tensor.double": (torch.Tensor, "double"),
    "gc.disable": (gc, "disable"),
}
_ORIGINALS: Mapping[str, object] = {name: getattr(owner, word) for name, (owner, word) in _PLACES.items()}


def patched() -> list[str]:
    """Names of what is not what it was when this module was imported."""
    return [name for name, (owner, word) in _PLACES.items() if getattr(owner, word) != _ORIGINALS[name]]


def disagreement(clock: Callable[[], float] = perf_counter, other: Callable[[], float] = monotonic) -> float:
    """How far two clocks of this process are apart after a moment, over that moment; a changed one is far."""
    a, b = clock(), other()
    while other() - b < 0.002:
        pass
    a, b = clock() - a, other() - b
    return abs(a - b) / b

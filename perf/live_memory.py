"""Bytes that a model holds: on a GPU as the allocator counts them, on a CPU by counting the tensors that live."""

import gc
from collections.abc import Mapping

import torch
from torch import Tensor


def held_bytes(device: str) -> int:
    """Bytes of all live tensors of this process on a device."""
    kind = torch.device(device).type
    if kind == "cuda":
        return int(torch.cuda.memory_allocated(torch.device(device)))
    if kind == "mps":
        return int(torch.mps.current_allocated_memory())
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), Tensor) and found.device.type == kind:  # type(): asks no proxy for its class
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def unused(device: str) -> Mapping[str, int]:
    """What a CUDA process holds beside its tensors: kept by the allocator, and the context with its kernels."""
    if torch.device(device).type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(torch.device(device))
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    return {"fragmentation": reserved - allocated, "runtime": total - free - reserved}

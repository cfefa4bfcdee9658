"""What llama.cpp's routers choose, read from its graphs while they compute."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .ggml_llama_cpp_context import bindings

IDS, WEIGHTS = "ffn_moe_topk", "ffn_moe_weights_scaled"  # names in its graphs, before a hyphen and the layer's index


class _TensorHead(ctypes.Structure):
    """The head of ``struct ggml_tensor``: sizes, and strides in bytes, fastest axis first."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("sizes", ctypes.c_int64 * 4),
        ("strides", ctypes.c_size_t * 4),
    )


class RouterWatch:
    """Notes expert ids and weights of every MoE layer.

    Attributes:
        callback: for ``llama_context_params.cb_eval``.
    """

    def __init__(self) -> None:
        library = bindings()
        self._name = library._lib.ggml_get_name
        self._name.argtypes, self._name.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._get = library._lib.ggml_backend_tensor_get
        self._get.argtypes, self._get.restype = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2, None
        self.callback = library.ggml_backend_sched_eval_callback(self._note)
        self._seen: dict[tuple[str, int], list[Tensor]] = {}

    def chosen(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        """By layer, ids [T, A] and weights [T, A] of everything computed since the last call."""
        seen, self._seen = self._seen, {}
        layers = sorted({layer for _, layer in seen})
        return {layer: (torch.cat(seen[IDS, layer]).long(), torch.cat(seen[WEIGHTS, layer])) for layer in layers}

    def _note(self, address: int, asks: bool, _: Any) -> bool:
        name, _, layer = self._name(address).decode().rpartition("-")
        if name not in (IDS, WEIGHTS):
            return not asks  # asked whether it is wanted: no; told that it is there: go on
        if not asks:
            self._seen.setdefault((name, int(layer)), []).append(self._rows(address, name))
        return True

    def _rows(self, address: int, name: str) -> Tensor:
        """[T, A]; ids are a view of all experts in falling order, weights are [T, A, 1]."""
        head = _TensorHead.from_address(address)
        token_axis = 1 if name == IDS else 2
        num_tokens, num_chosen = head.sizes[token_axis], head.sizes[token_axis - 1]
        rows = np.empty((num_tokens, num_chosen), dtype=np.int32 if name == IDS else np.float32)
        for token, row in enumerate(rows):
            self._get(address, row.ctypes.data, token * head.strides[token_axis], row.nbytes)
        return torch.from_numpy(rows)

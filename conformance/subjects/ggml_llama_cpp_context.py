"""llama.cpp's model and context through its low-level bindings, every number in float32."""

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .installed import find

INSTALL = "llama-cpp-python gguf"  # built from source: a C++ compiler and a quarter of an hour
TOKENS = 8_192  # cells that all sequences of a context share
STEP = 256  # tokens of one call
FLOAT32 = 0  # GGML_TYPE_F32
NO_FLASH_ATTENTION = 0  # its kernels on CPUs round to float16


def bindings() -> Any:
    """llama-cpp-python's low-level module."""
    return find("llama_cpp.llama_cpp", "llama-cpp-python", INSTALL)


def extension() -> Any:
    """Its bindings of llama-ext.h, through which MTP layers are reached."""
    return find("llama_cpp.llama_cpp_ext", "llama-cpp-python", INSTALL)


def open_model(path: Path) -> "Model":
    """Load a GGUF file; freed with the last reference."""
    library = bindings()
    library.llama_backend_init()
    parameters = library.llama_model_default_params()
    parameters.load_mtp = True
    handle = library.llama_model_load_from_file(str(path).encode(), parameters)
    if not handle:
        raise ValueError(f"{path}: llama.cpp refuses it; its log says why")
    return Model(handle)


class Model:
    """A loaded file."""

    def __init__(self, handle: Any) -> None:
        library = bindings()
        self.handle = handle
        self.vocab_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(handle))
        self.hidden_size = library.llama_model_n_embd(handle)
        self.num_drafts = library.llama_model_n_layer_nextn(handle)
        weakref.finalize(self, library.llama_model_free, handle)


@dataclass(frozen=True)
class Entry:
    """A token of a batch."""

    token: int
    position: int
    sequence: int = 0


class Context:
    """A cache of several sequences.

    Args:
        whole_cache: sliding layers keep every position, the default of the library; else a ring, as in its server.
        drafts: run the MTP layer that ``use_draft_layer`` names, not the backbone.
        watch: called with the address of every tensor that the graph computes; see ``ggml_llama_cpp_routing``.
    """

    def __init__(
        self, model: Model, sequences: int = 1, whole_cache: bool = True, drafts: bool = False, watch: Any = None
    ) -> None:
        library = bindings()
        parameters = library.llama_context_default_params()
        parameters.n_ctx = TOKENS
        parameters.n_batch = parameters.n_ubatch = STEP
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        parameters.swa_full = whole_cache
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        parameters.type_k = parameters.type_v = FLOAT32
        parameters.flash_attn_type = NO_FLASH_ATTENTION
        if drafts:
            parameters.ctx_type = library.LLAMA_CONTEXT_TYPE_MTP
        if watch is not None:
            parameters.cb_eval = watch
        self.model, self.drafts, self._watch = model, drafts, watch  # kept alive as long as the handle
        self.handle = library.llama_init_from_model(model.handle, parameters)
        if not self.handle:
            raise ValueError("llama.cpp makes no context of this model; its log says why")
        weakref.finalize(self, library.llama_free, self.handle)

    def decode(self, entries: Sequence[Entry], states: Tensor | None = None) -> Tensor:
        """Add tokens to their sequences.

        Args:
            states: [T, D], what MTP layers take beside the tokens.

        Returns:
            Logits [T, V].
        """
        starts = range(0, len(entries), STEP)
        pieces = [self._step(entries[i : i + STEP], None if states is None else states[i : i + STEP]) for i in starts]
        return torch.cat(pieces)

    def _step(self, entries: Sequence[Entry], states: Tensor | None) -> Tensor:
        library = bindings()
        batch = library.llama_batch_ext_init(self.handle)
        rows = None if states is None else np.ascontiguousarray(states.numpy(), dtype=np.float32)
        for index, entry in enumerate(entries):
            library.llama_batch_ext_add_token(batch, entry.sequence, entry.token)
            library.llama_batch_ext_set_pos(batch, index, ctypes.byref(library.llama_pos(entry.position)))
            if rows is not None:
                row = rows[index].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                library.llama_batch_ext_set_embd_token(batch, index, library.llama_embd(row, 1, rows.shape[1]))
            library.llama_batch_ext_set_output_logits(batch, index, True)
        status = library.llama_process(self.handle, library.LLAMA_PROCESS_TYPE_DECODE, batch)
        library.llama_batch_ext_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_process: returned {status}; want 0")
        return self._floats(library.llama_get_logits(self.handle), len(entries), self.model.vocab_size)

    def keep_hidden(self) -> None:
        """Have ``hidden`` filled by the following steps."""
        extension().llama_set_embeddings_nextn(self.handle, True, self.drafts)

    def hidden(self, count: int) -> Tensor:
        """[count, D] of the newest step, before the final norm: what the next MTP layer takes."""
        address = extension().llama_get_embeddings_nextn(self.handle)
        return self._floats(address, count, self.model.hidden_size)

    def use_draft_layer(self, depth: int) -> None:
        """Run the MTP layer of that depth, on an empty cache."""
        extension().llama_set_nextn_layer_offset(self.handle, depth)
        self.forget(0, 0)

    def forget(self, sequence: int, start: int) -> None:
        """Take back the positions of a sequence from ``start`` on."""
        library = bindings()
        if not library.llama_memory_seq_rm(library.llama_get_memory(self.handle), sequence, start, -1):
            raise NotImplementedError(f"llama.cpp takes back nothing from position {start} on")

    @staticmethod
    def _floats(address: Any, rows: int, columns: int) -> Tensor:
        pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (rows, columns)).copy())

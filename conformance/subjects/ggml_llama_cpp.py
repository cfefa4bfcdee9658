"""llama.cpp (llama-cpp-python), architecture step35, on a float32 file: its graphs, caches and samplers.

It loads GGUF; ``load_model`` rewrites the checkpoint first. Its drafting loop is part of its server, not of the
library: ``draft_logits`` runs the library's MTP graph, ``generate`` does not draft.
"""

import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.config import ModelConfig
from reference.generate import Generation

from .ggml_llama_cpp_context import Context, Entry, Model, bindings, open_model
from .ggml_llama_cpp_routing import RouterWatch
from .ggml_llama_cpp_sampling import Chain, sampling
from .installed import find

SEQUENCES = 64  # sessions that are open at the same time


class GgmlLlamaCpp:
    """The library with its default cache, or with rings for sliding layers.

    Raises:
        SubjectError: llama-cpp-python or gguf is not installed.
    """

    def __init__(self, name: str, whole_cache: bool) -> None:
        self.name = name
        self.profile = "float32"
        self.device: torch.device | str = "cpu"
        self.whole_cache = whole_cache
        bindings()
        find("gguf", "gguf")

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Its samplers; the operators of its graphs have no callable of their own."""
        return {"sampling": sampling}

    def load_model(self, checkpoint: Path) -> "GgmlModel":
        """Rewrite the checkpoint as GGUF and load that."""
        from .ggml_llama_cpp_file import write_gguf

        with tempfile.TemporaryDirectory(prefix="gguf-") as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(checkpoint, path)
            model = open_model(path)  # maps the file, which may lose its name then
        return GgmlModel(model, ModelConfig.from_file(checkpoint), self.whole_cache)


class GgmlModel:
    """A loaded file, and one context whose sequences are the sessions."""

    def __init__(self, model: Model, config: ModelConfig, whole_cache: bool) -> None:
        self.model = model
        self.config = config
        self.watch = RouterWatch()
        self.context = Context(model, SEQUENCES, whole_cache, watch=self.watch.callback)
        self.free = list(range(SEQUENCES))

    def new_session(self) -> "GgmlSession":
        if not self.free:
            raise RuntimeError(f"llama.cpp: {SEQUENCES} sessions are open; want one closed before the next is opened")
        return GgmlSession(self, self.free.pop())

    def close(self, sequence: int) -> None:
        """Empty a sequence for another session."""
        self.context.forget(sequence, 0)
        self.free.append(sequence)

    def extend_batch(self, sessions: list["GgmlSession"], token_ids: list[list[int]]) -> list[Tensor]:
        """All new tokens in one batch."""
        entries = [
            Entry(token, session.length + offset, session.sequence)
            for session, tokens in zip(sessions, token_ids, strict=True)
            for offset, token in enumerate(tokens)
        ]
        logits = self.context.decode(entries)
        for session, tokens in zip(sessions, token_ids, strict=True):
            session.length += len(tokens)
        return list(logits.split([len(tokens) for tokens in token_ids]))

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        """The MTP graph of each depth, on the hidden states of the backbone or of the depth before."""
        backbone, drafts = Context(self.model), Context(self.model, drafts=True)
        backbone.keep_hidden()
        drafts.keep_hidden()
        backbone.decode([Entry(token, position) for position, token in enumerate(token_ids)])
        hidden, answer = backbone.hidden(len(token_ids)), []
        for depth in range(self.model.num_drafts):
            new = token_ids[1 + depth :]
            drafts.use_draft_layer(depth)
            entries = [Entry(token, position) for position, token in enumerate(new, start=1 + depth)]
            answer.append(drafts.decode(entries, hidden[: len(new)]))
            hidden = drafts.hidden(len(new))
        return answer

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
        """One token at a time, drawn by its samplers."""
        if mtp:
            raise NotImplementedError("llama.cpp drafts in its server, not in its library")
        session, result = self.new_session(), Generation()
        chain = Chain(temperature, top_k, top_p, min_p, seed)
        logits = session.extend(prompt_ids)[-1]
        while True:
            result.tokens.append(chain.draw(logits))
            if result.tokens[-1] in self.config.eos_token_ids or len(result.tokens) == max_new_tokens:
                return result
            logits = session.extend(result.tokens[-1:])[-1]


class GgmlSession:
    """One sequence of the context."""

    def __init__(self, owner: GgmlModel, sequence: int) -> None:
        self._owner = owner
        self.sequence = sequence
        self.length = 0
        self._routing: Mapping[int, tuple[Tensor, Tensor]] = {}
        weakref.finalize(self, owner.close, sequence)

    def extend(self, token_ids: list[int]) -> Tensor:
        """Logits [T, V]."""
        (logits,) = self._owner.extend_batch([self], [token_ids])
        self._routing = self._owner.watch.chosen()
        return logits

    def truncate(self, length: int) -> None:
        if length > self.length:  # the library takes back nothing then, and says that it did
            raise ValueError(f"truncate: length is {length}; want 0 to {self.length}")
        self._owner.context.forget(self.sequence, length)
        self.length = length

    def routing(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        return self._routing


def engine() -> GgmlLlamaCpp:
    """With a cache of every position, its default."""
    return GgmlLlamaCpp("llama.cpp", whole_cache=True)


def ring_engine() -> GgmlLlamaCpp:
    """With rings for sliding layers, as its server runs."""
    return GgmlLlamaCpp("llama.cpp-ring", whole_cache=False)

"""A loaded model: contexts that tokens are fed to, and generation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from reference.config import LayerConfig, ModelConfig
from reference.tokenizer import Tokenizer

from .decoding import Decoder
from .generate import Generation, generate, generate_adapting
from .kv_cache import KVCache
from .lanes import AUTO, Lanes
from .prefill import PREFILL_CHUNK
from .request import Request
from .runner import Runner
from .scheduler import Scheduler
from .speculative import Filters, Kind, Rows
from .steps import Piece, step_of
from .weights import LayerWeights


class Session:
    """One context: tokens go in, logits come out, the newest tokens can be taken back."""

    def __init__(self, model: "OptimizedModel") -> None:
        self._model = model
        self.context = model.cache.open()
        self._routing: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Tokens in the context."""
        return self.context.length

    def extend(self, token_ids: list[int]) -> Tensor:
        """Append tokens; logits [T, V] of each of them.

        Raises:
            ValueError: a token that is not of the vocabulary, or too many tokens.
            CacheFullError: there is no room for them.
        """
        return self._model.extend_batch([self], [token_ids])[0]

    def routing(self) -> Mapping[int, tuple[Tensor, Tensor]]:
        """For each MoE layer, expert ids and expert weights [T, A] of the newest ``extend``."""
        return self._routing

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        self._model.cache.truncate(self.context, length)

    def __del__(self) -> None:
        if hasattr(self, "context"):
            self._model.cache.close(self.context)


class OptimizedModel:
    """Weights, caches and what runs them; several models may live in one process.

    Args:
        captures: decode from CUDA graphs; None: on a CUDA device.
    """

    def __init__(self, runner: Runner, cache: KVCache, captures: bool | None = None) -> None:
        self.runner, self.cache, self.config = runner, cache, runner.config
        on_gpu = runner.device.type == "cuda"
        self._captures = on_gpu if captures is None else captures
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        self._decoders: dict[tuple[int, Kind], Decoder] = {}
        self._adapting: Lanes | None = None
        self.steps_ahead = 1 if on_gpu else 0  # that the host starts before it reads the one before

    def decoder(self, batch: int, kind: Kind) -> Decoder:
        """What runs steps of so many rows; the same one for the same arguments, as its graph is."""
        key = (batch, kind)
        if key not in self._decoders:
            self._decoders[key] = self.new_decoder(batch, kind)
        return self._decoders[key]

    def new_decoder(self, batch: int, kind: Kind) -> Decoder:
        """One of the caller's own."""
        return Decoder(Rows(self.runner, self.cache, batch, kind), self._captures, self._pool)

    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        mtp: int | str = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
    ) -> Generation:
        """Continue up to an end token, ``max_new_tokens`` or the end of the context; temperature 0 is greedy.

        Args:
            mtp: drafts a step; "auto": as many as pay, learnt anew by each model.

        Raises:
            ValueError: an argument is out of range, or the prompt leaves no room in the context.
            CacheFullError: there is no room for it beside other contexts.
        """
        require_tokens(self.config, prompt_ids, 1)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: is {max_new_tokens}; want 1 or more")
        filters = Filters(temperature, top_k, top_p, min_p)
        if mtp == AUTO:
            return generate_adapting(self, prompt_ids, max_new_tokens, filters, seed)
        if not isinstance(mtp, int):
            raise ValueError(f"mtp: is {mtp!r}; want {AUTO!r} or 0 to {self.runner.num_depths}")
        return generate(self, prompt_ids, max_new_tokens, mtp, filters, seed)

    def serve(
        self, max_batch: int, token_budget: int = 2048, mtp: int | str = 0, tokenizer: Tokenizer | None = None
    ) -> Scheduler:
        """What takes requests for this model, many at a time; see ``Lanes`` and ``Scheduler``.

        Raises:
            ValueError: an argument is out of range.
        """
        return Scheduler(Lanes(self, max_batch, mtp), token_budget, tokenizer)

    def request(self, prompt_ids: Sequence[int], num_tokens: int) -> Request:
        """A greedy request of exactly so many tokens, for measurements."""
        return Request(tuple(prompt_ids), num_tokens, ignores_end=True)

    def adapting_lanes(self) -> Lanes:
        """What ``generate`` decodes with where it adapts: the same ones each time, which have learnt."""
        if self._adapting is None:
            self._adapting = Lanes(self, 1, AUTO, self.decoder)
        return self._adapting

    def require_tokens(self, token_ids: Sequence[int]) -> None:
        """Refuse tokens that are not of the vocabulary, or too many.

        Raises:
            ValueError: says what is wrong.
        """
        require_tokens(self.config, token_ids, 0)

    def new_session(self) -> Session:
        """An empty context.

        Raises:
            CacheFullError: every slot is taken.
        """
        return Session(self)

    def extend_batch(self, sessions: Sequence[Session], token_ids: Sequence[list[int]]) -> list[Tensor]:
        """Extend several contexts in one step, or in several where one of them is longer than a chunk."""
        for session, tokens in zip(sessions, token_ids, strict=True):
            require_tokens(self.config, tokens, session.length)
        for session, tokens in zip(sessions, token_ids, strict=True):
            self.cache.reserve(session.context, session.length + len(tokens))
        logits: list[list[Tensor]] = [[] for _ in sessions]
        seen: list[dict[int, list[tuple[Tensor, Tensor]]]] = [{} for _ in sessions]
        for start in range(0, max(map(len, token_ids)), PREFILL_CHUNK):
            active = [n for n, tokens in enumerate(token_ids) if start < len(tokens)]
            parts = [token_ids[n][start : start + PREFILL_CHUNK] for n in active]
            got, routing = self._extend([sessions[n] for n in active], parts)
            for place, n in enumerate(active):
                logits[n].append(got[place])
                for layer, chosen in routing[place].items():
                    seen[n].setdefault(layer, []).append(chosen)
        for session, layers in zip(sessions, seen, strict=True):
            session._routing = {
                layer: (torch.cat([ids for ids, _ in chosen]), torch.cat([weights for _, weights in chosen]))
                for layer, chosen in layers.items()
            }
        return [torch.cat(parts) for parts in logits]

    def _extend(
        self, sessions: Sequence[Session], token_ids: Sequence[list[int]]
    ) -> tuple[list[Tensor], list[dict[int, tuple[Tensor, Tensor]]]]:
        """One step; logits and routing of each session's new tokens."""
        pieces = [Piece(s.context, s.length, len(tokens)) for s, tokens in zip(sessions, token_ids, strict=True)]
        ordered = step_of(self.cache, pieces)
        sizes = [pieces[number].count for number in ordered.order]
        tokens = torch.tensor([token for number in ordered.order for token in token_ids[number]])
        routing: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in sessions]

        def observe(layer: int, ids: Tensor, weights: Tensor) -> None:
            for number, *parts in zip(ordered.order, ids.split(sizes), weights.split(sizes), strict=True):
                routing[number][layer] = (parts[0], parts[1])

        _, normed = self.runner.backbone(tokens.to(self.cache.device), ordered.step, observe)
        logits = self.runner.logits(normed).split(sizes)
        for session, tokens_in in zip(sessions, token_ids, strict=True):
            session.context.length += len(tokens_in)
            session.context.longest = max(session.context.longest, session.context.length)
        return [logits[ordered.order.index(number)] for number in range(len(sessions))], routing

    def draft_logits(self, token_ids: list[int]) -> list[Tensor]:
        """Logits of every MTP depth k along a text, [T - 1 - k, V]; row i predicts token i + 2 + k."""
        require_tokens(self.config, token_ids, 0)
        context = self.cache.open()
        try:
            self.cache.reserve(context, len(token_ids))
            tokens = torch.tensor(token_ids).to(self.cache.device)
            hidden = torch.cat([
                self.runner.backbone(tokens[part.start : part.start + part.count], step_of(self.cache, [part]).step)[0]
                for part in _parts(context, len(token_ids))
            ])  # fmt: skip
            logits = []
            for depth in range(self.runner.num_depths):
                following, outputs = tokens[1 + depth :], []
                for part in _parts(context, len(following)):
                    rows = slice(part.start, part.start + part.count)
                    outputs.append(
                        self.runner.mtp(depth, following[rows], hidden[rows], step_of(self.cache, [part]).step)
                    )
                hidden = torch.cat([before for before, _ in outputs]) if outputs else hidden[:0]
                normed = [after for _, after in outputs] or [hidden]
                logits.append(torch.cat([self.runner.logits(rows, depth) for rows in normed]))
            return logits
        finally:
            self.cache.close(context)

    def layers(self) -> list[dict[str, Any]]:
        """What each layer was built from; heads and experts are counted in the tensors."""
        weights = self.runner.weights
        return [_described(layer) for layer in weights.layers + weights.mtp_layers]


def require_tokens(config: ModelConfig, token_ids: Sequence[int], length: int) -> None:
    """Refuse tokens that are not of the vocabulary, or too many after ``length``.

    Raises:
        ValueError: says what is wrong.
    """
    if not token_ids:
        raise ValueError("tokens: are none; want at least one, such as the begin-of-sentence token")
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= config.vocab_size:
        raise ValueError(f"token ids: range from {lowest} to {highest}; want 0 to {config.vocab_size - 1}")
    if length + len(token_ids) > config.max_position_embeddings:
        raise ValueError(
            f"context: would reach {length + len(token_ids)} tokens; want at most max_position_embeddings = "
            f"{config.max_position_embeddings}: shorten the prompt or generate fewer tokens"
        )


def _parts(context: Any, length: int) -> list[Piece]:
    """Positions 0 .. length - 1 of a context, a chunk at a time."""
    starts = range(0, length, PREFILL_CHUNK)
    return [Piece(context, start, min(PREFILL_CHUNK, length - start)) for start in starts]


def _described(weights: LayerWeights) -> dict[str, Any]:
    layer: LayerConfig = weights.layer
    num_heads = weights.output.shape[1] // layer.head_dim
    kv_size = weights.qkvg.shape[0] - num_heads * (layer.head_dim + 1)
    return {
        "attention_type": layer.attention_type,
        "num_attention_heads": num_heads,
        "num_key_value_heads": kv_size // 2 // layer.head_dim,
        "sliding_window": layer.sliding_window,
        "rotary_dim": layer.rotary_dim,
        "rope_theta": layer.rope_theta,
        "has_rope_scaling": layer.rope_scaling is not None,
        "is_moe": weights.experts is not None,
        "swiglu_limit": layer.swiglu_limit,
        "swiglu_limit_shared": layer.swiglu_limit_shared,
    }

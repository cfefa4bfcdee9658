"""Steps of decoding with 0 to 3 drafts: the model verifies them in one step, then the MTP layers draft anew.

Each depth has its own head and its own keys and values over the whole context. Row i of depth k stands on token
i + 1 + k, so its newest k rows stand on drafts: every step computes them again, from the true tokens.

All of a step is on the device: what it chooses is what the next one begins with. So it can be captured in a CUDA graph.
Source: vLLM and SGLang step3p5_mtp.py for the chain; Leviathan et al. 2023 for acceptance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fused.speculate import accept_greedy, advance, extend, place_draft
from .fused.step_inputs import StepInputs, step_inputs
from .kv_cache import PAGE_SIZE, KVCache, on_device
from .ops.accept_draft import accept_drafts
from .ops.draw import draw
from .ops.sampling import require_filters, sampling_by_row
from .runner import Runner, Step

TOP_LOGPROBS = 20  # likeliest tokens that are listed, at most


@dataclass(frozen=True)
class Filters:
    """How a sequence's tokens are drawn; temperature 0 is greedy. Ranges as in ``ops.sampling``.

    Raises:
        ValueError: a parameter out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        require_filters(self.temperature, self.top_k, self.top_p, self.min_p)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Kind:
    """What steps do that sequences take together; it decides which kernels a captured step holds.

    Attributes:
        num_drafts: d, of each step, verified and made anew.
        draws: tokens are drawn, through filters of each sequence's own; else the likeliest is taken, without logits
            in memory.
        lists: log-probabilities are noted; only where tokens are drawn.
    """

    num_drafts: int = 0
    draws: bool = False
    lists: bool = False

    @property
    def query_len(self) -> int:
        """Tokens that a step verifies of each sequence."""
        return self.num_drafts + 1

    def uniforms(self, generator: torch.Generator) -> Tensor:
        """[Q + d] random numbers in [0, 1) of one sequence for one step."""
        return torch.rand(self.query_len + self.num_drafts, dtype=torch.float64, generator=generator)


class Rows:
    """Sequences that decode together, as buffers on the device: a captured step reads and writes these.

    Attributes:
        tokens: [B, Q] int64, the newest token of each sequence and its drafts.
        lengths: [B] int64, tokens before the newest; negative: the row rests.
        limits: [B] int64: a row rests, too, when a step would take it further than this.
        pages, rings: [B, width] int32, rows of the cache's tables.
        held: [d, B, D]: of depth k, the output of the depth before (of nothing, for depth 0) that it begins with.
        filters: [4, B] float32, as ``sampling_by_row`` takes them.
        draft_rows: [d, B, V] float32, what the drafts were drawn from; empty where decoding is greedy.
        uniforms: [B, Q + d] float64 in [0, 1), for one step: acceptance and what follows, then drafts.
        record: [B, 1 + Q] int64, what the newest step came to: accepted drafts, -1 of a row that rests, and tokens.
        logprobs: [B, Q, 1 + TOP_LOGPROBS] float32 of each token that came and of the likeliest; listed: [B, Q,
            TOP_LOGPROBS] int64, which these are. They are of the model itself, before any filter.
    """

    def __init__(self, runner: Runner, cache: KVCache, batch: int, kind: Kind) -> None:
        if not 0 <= kind.num_drafts <= runner.num_depths:
            raise ValueError(
                f"mtp: is {kind.num_drafts}; want 0 to {runner.num_depths}, the MTP layers of this checkpoint"
            )
        config, device, width = runner.config, runner.device, cache.sizes.table_width
        self.runner, self.cache, self.batch, self.kind = runner, cache, batch, kind
        num_drafts, query_len = kind.num_drafts, kind.query_len
        self.num_drafts, self.query_len = num_drafts, query_len

        def whole(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int64, device=device)

        self.tokens, self.record = whole(batch, query_len), whole(batch, 1 + query_len, fill=-1)
        self.lengths, self.limits = whole(batch, fill=-1), whole(batch)
        self.pages = torch.full((batch, width), -1, dtype=torch.int32, device=device)
        self.rings = torch.zeros((batch, width), dtype=torch.int32, device=device)
        self.held = torch.zeros((num_drafts, batch, config.hidden_size), dtype=runner.dtype, device=device)
        self.filters = torch.ones((4, batch), dtype=torch.float32, device=device)
        drawn, listing = batch if kind.draws else 0, batch if kind.lists else 0
        self.draft_rows = torch.zeros((num_drafts, drawn, config.vocab_size), dtype=torch.float32, device=device)
        self.uniforms = torch.zeros((batch, query_len + num_drafts), dtype=torch.float64, device=device)
        most = min(TOP_LOGPROBS, config.vocab_size)
        self.logprobs = torch.zeros((listing, query_len, 1 + most), dtype=torch.float32, device=device)
        self.listed = whole(listing, query_len, most)

    def take_over(self, others: "Rows", moves: Sequence[tuple[int, int]]) -> None:
        """Continue other rows' sequences, whose steps do the same with as many drafts or more.

        Args:
            moves: from which row of the others to which of these.
        """
        source, target = on_device(torch.tensor(moves, dtype=torch.int64).T.contiguous(), self.lengths.device)
        for name, axis in _STATE.items():
            own, theirs = getattr(self, name), getattr(others, name)
            if own.numel():
                theirs = theirs[: len(own)] if axis else theirs[:, : self.query_len] if name == "tokens" else theirs
                own.index_copy_(axis, target, theirs.index_select(axis, source))

    def step(self) -> None:
        """Verify the drafts, take what holds and one token more, and draft anew."""
        inputs = self._inputs(self.query_len)
        hidden, normed = self.runner.backbone(self.tokens.view(-1), self._step(inputs, self.query_len))
        if len(self.cache.hidden):
            self.cache.hidden.index_put_((inputs.ring_slots,), hidden)
        logits = self.runner.logits(normed) if self.kind.draws else None
        accepted, following = self._accept(normed, logits)
        self._take(inputs, accepted, following, hidden.view(self.batch, self.query_len, -1))
        if logits is not None and self.kind.lists:
            self._list(logits.view(self.batch, self.query_len, -1))

    def begin(self, following: Tensor, hidden: Tensor, logits: Tensor | None = None) -> None:
        """Draft after prompts: the first tokens [B] are chosen, and ``lengths`` is one less than the prompts hold.

        Args:
            hidden: [B, D] of the prompts' newest tokens, before the final norm.
            logits: [B, V] that the first tokens were chosen from, where they are to be listed.
        """
        padded = hidden.new_zeros((self.batch, self.query_len, hidden.shape[-1]))
        padded[:, 0] = hidden
        self._take(self._inputs(self.query_len), torch.zeros_like(following), following, padded)
        if logits is not None and self.kind.lists:
            self._list(logits[:, None])

    def first(self, normed: Tensor) -> tuple[Tensor, Tensor | None]:
        """First tokens [B] after prompts, from the normalised hidden states [B, D] of their newest tokens.

        Returns:
            Also the logits [B, V] that they were drawn from; None where they are the likeliest.
        """
        if not self.kind.draws:
            return self.runner.greedy(normed), None
        logits = self.runner.logits(normed)
        return draw(sampling_by_row(logits, self.filters), self.uniforms[:, 0].contiguous()), logits

    def _inputs(self, query_len: int, before: int = 0) -> StepInputs:
        tables = (self.pages, self.rings, PAGE_SIZE)
        return step_inputs(self.lengths, self.limits, *tables, query_len, before)

    def _step(self, inputs: StepInputs, query_len: int) -> Step:
        return Step(inputs, query_len, self.pages, self.rings, workspaces=self.runner.workspaces)

    def _accept(self, normed: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """Accepted drafts [B], and the token [B] after them."""
        if logits is None:
            return accept_greedy(self.tokens, self.runner.greedy(normed).view(self.batch, self.query_len))
        target = sampling_by_row(logits, self.filters).view(self.batch, self.query_len, -1)
        accepted, following = accept_drafts(target, self.draft_rows, self.tokens[:, 1:], self.uniforms)
        return accepted, following

    def _list(self, logits: Tensor) -> None:
        """Note log-probabilities of what came, from logits [B, 1 .. Q, V] of the step."""
        came = slice(1, 1 + logits.shape[1])
        all_of_them = torch.log_softmax(logits.float(), dim=-1)
        likeliest = all_of_them.topk(self.listed.shape[-1])
        self.logprobs[:, : logits.shape[1], :1] = all_of_them.gather(-1, self.record[:, came, None])
        self.logprobs[:, : logits.shape[1], 1:] = likeliest.values
        self.listed[:, : logits.shape[1]] = likeliest.indices

    def _take(self, inputs: StepInputs, accepted: Tensor, following: Tensor, hidden: Tensor) -> None:
        """Draft after what was accepted, then count it."""
        extended, picked, kept = extend(self.tokens, accepted, following, inputs.context_lens, self.record)
        rows = hidden
        for depth in range(self.num_drafts):
            query_len = self.query_len + depth
            if depth:
                rows = torch.cat((self.held[depth, :, None], rows), dim=1)
            step = self._step(self._inputs(query_len, depth), query_len)
            tokens = extended[:, :query_len].contiguous().view(-1)
            output, normed = self.runner.mtp(depth, tokens, rows.reshape(len(tokens), -1), step)
            newest = normed.index_select(0, picked[depth])
            place_draft(self._draft(newest, depth), accepted, extended, self.tokens, depth)
            if depth + 1 < self.num_drafts:
                torch.index_select(output, 0, kept[depth], out=self.held[depth + 1])
            rows = output.view(self.batch, query_len, -1)
        advance(accepted, following, inputs.context_lens, self.lengths, self.tokens)

    def _draft(self, newest: Tensor, depth: int) -> Tensor:
        """[B] drafts of a depth."""
        if not self.kind.draws:
            return self.runner.greedy(newest, depth)
        self.draft_rows[depth] = sampling_by_row(self.runner.logits(newest, depth), self.filters)
        return draw(self.draft_rows[depth], self.uniforms[:, self.query_len + depth].contiguous())


# what a sequence takes along, and the axis of sequences
_STATE = {"tokens": 0, "lengths": 0, "limits": 0, "pages": 0, "rings": 0, "filters": 1, "held": 1, "draft_rows": 1}

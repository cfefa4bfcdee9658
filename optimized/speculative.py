"""Steps of decoding with 0 to 3 drafts: the model verifies them in one step, then the MTP layers draft anew.

Each depth has its own head and its own keys and values over the whole context. Row i of depth k stands on token
i + 1 + k, so its newest k rows stand on drafts: every step computes them again, from the true tokens.

All of a step is on the device: what it chooses is what the next one begins with. So it can be captured in a CUDA graph.
Source: vLLM and SGLang step3p5_mtp.py for the chain; Leviathan et al. 2023 for acceptance.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from .fused.speculate import accept_greedy, advance, extend, place_draft
from .fused.step_inputs import StepInputs, step_inputs
from .kv_cache import PAGE_SIZE, KVCache
from .launch import launch_for
from .ops.accept_draft import _accept_draft_kernel
from .ops.draw import draw
from .ops.sampling import sampling
from .runner import Runner, Step


@dataclass(frozen=True)
class Filters:
    """How tokens are drawn; temperature 0 is greedy. Ranges as in ``ops.sampling``."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """[T, V] float32 of logits [T, V]."""
        return sampling(logits, self.temperature, self.top_k, self.top_p, self.min_p)


class Rows:
    """Sequences that decode together, as buffers on the device: a captured step reads and writes these.

    Attributes:
        num_drafts: d, of each step; Q = d + 1.
        tokens: [B, Q] int64, the newest token of each sequence and its drafts.
        lengths: [B] int64, tokens before the newest; negative: the row rests.
        limits: [B] int64: a row rests, too, when a step would take it further than this.
        pages, rings: [B, width] int32, rows of the cache's tables.
        held: [d, B, D]: of depth k, the output of the depth before (of nothing, for depth 0) that it begins with.
        draft_rows: [d, B, V] float32, what the drafts were drawn from; empty where decoding is greedy.
        uniforms: [B, Q + d] float64 in [0, 1), for one step: acceptance and what follows, then drafts.
        record: [B, 1 + Q] int64, what the newest step came to: accepted drafts, -1 of a row that rests, and tokens.
    """

    def __init__(self, runner: Runner, cache: KVCache, batch: int, num_drafts: int, filters: Filters) -> None:
        if not 0 <= num_drafts <= runner.num_depths:
            raise ValueError(f"mtp: is {num_drafts}; want 0 to {runner.num_depths}, the MTP layers of this checkpoint")
        config, device, width = runner.config, runner.device, cache.sizes.table_width
        self.runner, self.batch, self.num_drafts, self.filters = runner, batch, num_drafts, filters
        query_len = self.query_len = num_drafts + 1

        def whole(*shape: int, fill: int = 0) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int64, device=device)

        self.tokens, self.record = whole(batch, query_len), whole(batch, 1 + query_len, fill=-1)
        self.lengths, self.limits = whole(batch, fill=-1), whole(batch)
        self.pages = torch.full((batch, width), -1, dtype=torch.int32, device=device)
        self.rings = torch.zeros((batch, width), dtype=torch.int32, device=device)
        self.held = torch.zeros((num_drafts, batch, config.hidden_size), dtype=runner.dtype, device=device)
        drawn = 0 if filters.is_greedy else batch
        self.draft_rows = torch.zeros((num_drafts, drawn, config.vocab_size), dtype=torch.float32, device=device)
        self.uniforms = torch.zeros((batch, query_len + num_drafts), dtype=torch.float64, device=device)

    def step(self) -> None:
        """Verify the drafts, take what holds and one token more, and draft anew."""
        inputs = self._inputs(self.query_len)
        hidden, normed = self.runner.backbone(self.tokens.view(-1), self._step(inputs, self.query_len))
        accepted, following = self._accept(normed)
        self._take(inputs, accepted, following, hidden.view(self.batch, self.query_len, -1))

    def begin(self, following: Tensor, hidden: Tensor) -> None:
        """Draft after prompts: the first tokens [B] are chosen, and ``lengths`` is one less than the prompts hold.

        Args:
            hidden: [B, D] of the prompts' newest tokens, before the final norm.
        """
        padded = hidden.new_zeros((self.batch, self.query_len, hidden.shape[-1]))
        padded[:, 0] = hidden
        self._take(self._inputs(self.query_len), torch.zeros_like(following), following, padded)

    def _inputs(self, query_len: int, before: int = 0) -> StepInputs:
        tables = (self.pages, self.rings, PAGE_SIZE)
        return step_inputs(self.lengths, self.limits, *tables, query_len, before)

    def _step(self, inputs: StepInputs, query_len: int) -> Step:
        return Step(inputs, query_len, self.pages, self.rings)

    def _accept(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Accepted drafts [B], and the token [B] after them."""
        if self.filters.is_greedy:
            return accept_greedy(self.tokens, self.runner.greedy(normed).view(self.batch, self.query_len))
        target = self.filters.probabilities(self.runner.logits(normed)).view(self.batch, self.query_len, -1)
        outcomes = torch.empty((self.batch, 2), dtype=torch.int64, device=normed.device)
        options = launch_for("accept_draft", normed.device, V=target.shape[-1]).options
        block_n = triton.next_power_of_2(self.query_len)
        for b in range(self.batch):
            rows = self.draft_rows[:, b].contiguous()
            drafts, uniforms = self.tokens[b, 1:], self.uniforms[b]
            args = (target[b], rows, drafts, uniforms, outcomes[b], self.num_drafts, target.shape[-1])
            _accept_draft_kernel[(1,)](*args, block_n, **options)
        accepted, following = outcomes.T.contiguous()
        return accepted, following

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
        if self.filters.is_greedy:
            return self.runner.greedy(newest, depth)
        self.draft_rows[depth] = self.filters.probabilities(self.runner.logits(newest, depth))
        return draw(self.draft_rows[depth], self.uniforms[:, self.query_len + depth].contiguous())

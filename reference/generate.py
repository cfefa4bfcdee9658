"""Generation: prefill in chunks, decode, and speculative decoding with the MTP layers.

Speculation changes the number of steps, never the distribution: drafts are verified by ``accept_draft``.
Source: vLLM and SGLang step3p5_mtp.py for the chain; Leviathan et al. 2023 for acceptance.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .model import Model

PREFILL_CHUNK = 512  # tokens a step; bounds the [T, S] score matrix


@dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn; temperature 0 is greedy. Ranges as in ``ops.sampling``."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0


@dataclass
class Generation:
    """What was generated, and how the drafts fared.

    ``drafted_per_position[i]`` counts the steps that verified a draft at position i, ``accepted_per_position[i]`` those
    in which it and all drafts before it were accepted.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    drafted_per_position: list[int] = field(default_factory=list)
    accepted_per_position: list[int] = field(default_factory=list)
    prefill_s: float | None = None  # until the first token; None where the two were not told apart
    decode_s: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first over the time after the first; None without a second token or that time."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 and self.decode_s else None

    @property
    def acceptance_per_position(self) -> list[float | None]:
        """Share of verified drafts that were accepted, by position; None where none was verified."""
        pairs = zip(self.accepted_per_position, self.drafted_per_position, strict=True)
        return [accepted / drafted if drafted else None for accepted, drafted in pairs]


class Drafter:
    """The MTP layers over one sequence, each with its own cache over the whole context.

    Row i of depth k needs token i + 1 + k, so the newest k rows of depth k stand on drafts. They are taken back after
    each round and built again from the true tokens: a rejected draft leaves nothing behind.
    """

    def __init__(self, model: Model, num_drafts: int) -> None:
        self.model = model
        self.caches = [model.new_mtp_cache(depth) for depth in range(num_drafts)]
        empty = torch.zeros((0, model.config.hidden_size), dtype=model.dtype, device=model.device)
        # inputs of each depth that are final but lie behind what its predecessor will compute next
        self._held = [empty] * num_drafts

    def draft(self, tokens: Sequence[int], new_hidden: Tensor, choose: Callable[[Tensor], int]) -> list[int]:
        """Draft one token for each depth.

        Args:
            tokens: the whole verified sequence, its newest token included.
            new_hidden: [T, D] of the backbone, before its final norm, for the positions that came in since the last
                call; with them there is one hidden state for each token but the newest.
            choose: from draft logits [V] to a token.
        """
        num_rows = len(tokens) - 1
        extended = list(tokens)
        output = new_hidden
        for depth, cache in enumerate(self.caches):
            first = cache.length
            rows = torch.cat((self._held[depth], output))
            row_tokens = torch.tensor(extended[first + 1 + depth : num_rows + 1 + depth])
            steps = zip(rows.split(PREFILL_CHUNK), row_tokens.split(PREFILL_CHUNK), strict=True)
            output = torch.cat([self.model.mtp_hidden(depth, *step, cache) for step in steps])
            extended.append(choose(self.model.mtp_logits(depth, output[-1:])[0]))
            final = max(num_rows - depth, 0)  # rows of this depth that stand on true tokens
            final_before = max(num_rows - depth + 1, 0)  # the same of its predecessor
            cache.truncate(final)
            self._held[depth] = rows[final - first : min(final_before, num_rows) - first]
        return extended[len(tokens) :]


def generate(
    model: Model,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    mtp: int = 0,
    sampling: SamplingParams | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Continue a prompt until an end token, ``max_new_tokens`` or the end of the context.

    Args:
        prompt_ids: at least one token.
        mtp: drafts a step, 0 to num_nextn_predict_layers.
        sampling: greedy by default.
        on_token: called with each token as soon as it is final.

    Raises:
        ValueError: an argument is out of range, or the prompt leaves no room in the context.
    """
    config, params = model.config, sampling or SamplingParams()
    if not prompt_ids:
        raise ValueError("prompt: is empty; want at least one token, such as the begin-of-sentence token")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: is {max_new_tokens}; want 1 or more")
    if not isinstance(mtp, int) or not 0 <= mtp <= config.num_nextn_predict_layers:
        raise ValueError(
            f"mtp: is {mtp}; want 0 to {config.num_nextn_predict_layers}, the MTP layers of this checkpoint"
        )
    room = config.max_position_embeddings - len(prompt_ids)
    if room < 1:
        raise ValueError(
            f"prompt: has {len(prompt_ids)} tokens; want fewer than max_position_embeddings = "
            f"{config.max_position_embeddings}: shorten it"
        )
    max_new_tokens = min(max_new_tokens, room)
    random = torch.Generator().manual_seed(params.seed)
    ops = model.ops

    def distribution(logits: Tensor) -> Tensor:
        filters = (params.temperature, params.top_k, params.top_p, params.min_p)
        return ops.sampling(logits.cpu(), *filters)

    def uniforms(count: int) -> Tensor:
        return torch.rand(count, dtype=torch.float64, generator=random)

    result = Generation(drafted_per_position=[0] * mtp, accepted_per_position=[0] * mtp)
    tokens = list(prompt_ids)

    def emit(new_tokens: list[int]) -> bool:
        """Take tokens up to an end; whether generation is over."""
        for token in new_tokens[: max_new_tokens - len(result.tokens)]:
            tokens.append(token)
            result.tokens.append(token)
            if on_token is not None:
                on_token(token)
            if token in config.eos_token_ids:
                result.finish_reason = "stop"
                return True
        return len(result.tokens) == max_new_tokens

    started = time.perf_counter()
    cache = model.new_cache()
    chunks = torch.tensor(tokens).split(PREFILL_CHUNK)
    new_hidden = torch.cat([model.hidden(chunk, cache) for chunk in chunks])
    first = distribution(model.logits(new_hidden[-1:]))
    finished = emit([int(ops.draw(first, uniforms(1))[0])])
    result.prefill_s = time.perf_counter() - started

    started = time.perf_counter()
    drafter = Drafter(model, mtp)
    while not finished:
        drafts: list[int] = []
        draft_rows: list[Tensor] = []

        def choose(logits: Tensor, rows: list[Tensor] = draft_rows) -> int:
            rows.append(distribution(logits))
            return int(ops.draw(rows[-1][None], uniforms(1))[0])

        if mtp:
            # never draft past the end: the step emits one token more than it accepts
            useful = max_new_tokens - len(result.tokens) - 1
            drafts = drafter.draft(tokens, new_hidden, choose)[:useful]
        verified_length = len(tokens)
        hidden = model.hidden(torch.tensor([tokens[-1], *drafts]), cache)
        target = distribution(model.logits(hidden))
        draft = torch.stack(draft_rows[: len(drafts)]) if drafts else target[:0]
        accepted, following = ops.accept_draft(target, draft, torch.tensor(drafts), uniforms(len(drafts) + 1))
        cache.truncate(verified_length + accepted)
        new_hidden = hidden[: accepted + 1]
        for position in range(len(drafts)):
            result.drafted_per_position[position] += 1
            result.accepted_per_position[position] += position < accepted
        finished = emit([*drafts[:accepted], following])
    result.decode_s = time.perf_counter() - started
    return result

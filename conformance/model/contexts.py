"""Contexts that model checks run on, and the one comparison that they share."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from reference.config import ModelConfig
from reference.generate import SamplingParams, generate

from ..counters import Counters
from ..guard import GuardedModel, GuardedSession
from ..oracle import OracleModel
from ..tolerance import Envelope, near_tie

NUM_DRAFTS = 3
ROLLBACK = NUM_DRAFTS + 1


def random_tokens(config: ModelConfig, count: int, seed: int) -> list[int]:
    """Token ids without the end tokens."""
    random = torch.Generator().manual_seed(seed)
    usable = [token for token in range(config.vocab_size) if token not in config.eos_token_ids]
    return [usable[i] for i in torch.randint(len(usable), (count,), generator=random).tolist()]


def window_of(config: ModelConfig) -> int:
    """The sliding layers' window."""
    return min(layer.sliding_window for layer in config.layers if layer.sliding_window is not None)


def prompt(config: ModelConfig, seed: int) -> list[int]:
    """Past the window by half of it, so that sliding layers have forgotten something."""
    return random_tokens(config, window_of(config) * 3 // 2 + 5, seed)


@lru_cache(64)
def written_prompt(oracle: OracleModel, seed: int) -> list[int]:
    """A prompt that the model wrote itself: what its MTP layers were trained to continue."""
    length = window_of(oracle.config) * 3 // 2
    start = random_tokens(oracle.config, 1, seed)
    sampling = SamplingParams(temperature=0.7, seed=seed)
    with torch.inference_mode():
        return start + generate(oracle.model, start, length, sampling=sampling).tokens


@lru_cache(64)
def envelope(oracle: OracleModel, tokens: tuple[int, ...]) -> Envelope:
    """What the logits of a context may be; computed once for all checks."""
    return Envelope(oracle.legal_logits(list(tokens)), oracle.logits(list(tokens)), medians=True)


def envelopes(oracle: OracleModel, contexts: Sequence[Sequence[int]]) -> list[Envelope]:
    """``envelope`` of each of several contexts, in one pass over all: what pads the shorter ones comes after them."""
    longest = max(map(len, contexts))
    padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in contexts]
    legal, exact = oracle.legal_logits(padded), oracle.logits(padded)
    return [
        Envelope([one[n, : len(tokens)] for one in legal], exact[n, : len(tokens)], medians=True)
        for n, tokens in enumerate(contexts)
    ]


def check_logits(got: Tensor, oracle: OracleModel, tokens: list[int], counters: Counters, where: object) -> None:
    """Compare logits [T, V] of a context's last T tokens with the oracle's."""
    whole = envelope(oracle, tuple(tokens))
    start = len(tokens) - len(got)
    legal = [one[start:] for one in whole.legal]
    Envelope(legal, whole.exact[start:], medians=True).check(got.cpu(), counters, where)


def extend_in_pieces(session: GuardedSession, tokens: list[int], sizes: list[int]) -> Tensor:
    """Feed tokens in pieces of the given sizes; logits [T, V] of all of them."""
    assert sum(sizes) == len(tokens), "the pieces are the context"
    pieces, start = [], 0
    for size in sizes:
        pieces.append(session.extend(tokens[start : start + size]).cpu())
        start += size
    return torch.cat(pieces)


def check_greedy(
    oracle: OracleModel, prompt_ids: list[int], generated: list[int], counters: Counters, where: object
) -> None:
    """Each generated token has the oracle's largest logit after the engine's own tokens, up to legal ties."""
    tokens = prompt_ids + generated
    whole = envelope(oracle, tuple(tokens))
    bounds = whole.row_bound(whole.legal[0].dtype)
    for number, token in enumerate(generated):
        row = len(prompt_ids) + number - 1
        errors = torch.full_like(whole.exact[row], bounds[row].item())
        differs = near_tie({token}, whole.exact[row], errors, 1, counters, f"{where}, token {number} after the prompt")
        counters.add("tokens_that_are_the_oracles", not differs)


def generate_greedily(model: GuardedModel, prompt_ids: list[int], count: int, mtp: int) -> list[int]:
    return list(model.generate(prompt_ids, count, mtp=mtp, temperature=0.0).tokens)

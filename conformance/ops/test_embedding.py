"""Checks of the row ``embedding``."""

import torch

from ..clauses import clause
from ..counters import Counters
from ..strategies import Case, for_cases, token_counts
from ..tolerance import bit_exact
from ..under_test import UnderTest

SHAPES = [(1, 7, 5), (9, 130, 12), (33, 1_007, 24), *token_counts(140, 12)]  # T, V, D

VOCAB_SIZE = 128_896  # published


@clause("EMB-1")
@for_cases(["randn", "tiny_scale", "huge_scale", "denormals"], SHAPES)
def test_copies_the_row_of_each_token(engine: UnderTest, counters: Counters, case: Case) -> None:
    num_tokens, vocab_size, hidden_size = case.shape
    table = case.activations(vocab_size, hidden_size, dtype=engine.profile.weights)
    ids = torch.randint(vocab_size, (num_tokens,), generator=case.random("ids"))
    got = engine.op("embedding")(ids, table)
    want = torch.stack([table[i] for i in ids.tolist()]) if num_tokens else table[:0]
    bit_exact(got, want, counters, case)


@clause("EMB-1")
def test_reaches_the_first_and_the_last_token_and_repeats_rows(engine: UnderTest, counters: Counters) -> None:
    table = torch.arange(35.0).view(7, 5).to(engine.profile.weights)
    got = engine.op("embedding")(torch.tensor([6, 0, 6, 0, 3]), table)
    bit_exact(got, table[[6, 0, 6, 0, 3]], counters, "tokens 6 0 6 0 3 of 7")


@clause("EMB-1")
def test_keeps_the_batch_axes_of_the_tokens(engine: UnderTest, counters: Counters) -> None:
    table = torch.arange(35.0).view(7, 5).to(engine.profile.weights)
    ids = torch.tensor([[6, 0, 2], [1, 1, 5]])
    bit_exact(engine.op("embedding")(ids, table), table[ids.flatten()].view(2, 3, 5), counters, "2 x 3 tokens")


@clause("EMB-1")
def test_reaches_both_ends_of_the_published_vocabulary(engine: UnderTest, counters: Counters) -> None:
    """128,896 rows: past what 16 bits count, and a multiple of 128, so that no shard of it is padded."""
    table = torch.arange(VOCAB_SIZE * 2).view(VOCAB_SIZE, 2).remainder(251).to(engine.profile.weights)
    ids = torch.tensor([VOCAB_SIZE - 1, 65_536, 65_535, 0, 128_000, 128_007])
    bit_exact(engine.op("embedding")(ids, table), table[ids], counters, f"tokens {ids.tolist()} of {VOCAB_SIZE}")

"""transformers, mlx-lm and llama.cpp compute what the reference computes from the embedded checkpoint, in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

SUBJECTS = ["hf_transformers:engine", "apple_mlx_lm:engine", "ggml_llama_cpp:engine"]
PREFILL = 100  # tokens; past the sliding window, so that decoding starts with a full ring


@pytest.mark.parametrize("name", SUBJECTS)
def test_logits_of_a_whole_context_agree(
    name: str, load: Callable[[str], Any], passages: list[Any], agree: Any
) -> None:
    model = load(name)
    for passage in passages:
        agree(model.new_session().extend(passage.token_ids), passage.logits)


@pytest.mark.parametrize("name", [*SUBJECTS, "ggml_llama_cpp:ring_engine"])
def test_logits_of_single_tokens_after_a_cached_context_agree(
    name: str, load: Callable[[str], Any], passages: list[Any], agree: Any
) -> None:
    model = load(name)
    for passage in passages:
        session = model.new_session()
        rows = [session.extend(passage.token_ids[:PREFILL])]
        rows += [session.extend([token]) for token in passage.token_ids[PREFILL:]]
        agree(torch.cat(rows), passage.logits)


@pytest.mark.parametrize("name", SUBJECTS)
def test_routers_choose_the_same_experts_with_the_same_weights(
    name: str, load: Callable[[str], Any], passages: list[Any], config: Any, by_expert: Any, agree: Any
) -> None:
    model = load(name)
    for passage in passages:
        session = model.new_session()
        session.extend(passage.token_ids)
        routing = session.routing()
        assert set(routing) == set(passage.routing)
        for layer, (ids, weights) in routing.items():
            agree(by_expert(ids, weights, config.layers[layer].num_experts), passage.routing[layer])


def test_draft_logits_of_every_mtp_depth_agree(load: Callable[[str], Any], passages: list[Any], agree: Any) -> None:
    """llama.cpp's graph of an MTP layer, its own norms and head; what one depth hands to the next is handed here."""
    model = load("ggml_llama_cpp:engine")
    for passage in passages:
        drafts = model.draft_logits(passage.token_ids)
        assert len(drafts) == len(passage.drafts) == 3
        for got, want in zip(drafts, passage.drafts, strict=True):
            agree(got, want)


def test_sessions_of_one_batch_agree(load: Callable[[str], Any], passages: list[Any], agree: Any) -> None:
    """Contexts of three lengths, then a token each."""
    model = load("ggml_llama_cpp:engine")
    sessions = [model.new_session() for _ in passages]
    starts = [passage.token_ids[: PREFILL + number] for number, passage in enumerate(passages)]
    first = model.extend_batch(sessions, starts)
    rests = [passage.token_ids[len(start) :] for passage, start in zip(passages, starts, strict=True)]
    rest = model.extend_batch(sessions, rests)
    for passage, *rows in zip(passages, first, rest, strict=True):
        agree(torch.cat(rows), passage.logits)

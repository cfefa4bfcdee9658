"""The miniature is what its card says: the published format, a model of its text, and no feature without effect."""

import json
from pathlib import Path

import pytest
import torch

from conformance.faults.catalogue import EQUIVALENTS, Change
from conformance.faults.features import changed, log_probabilities, measured
from reference.accounting import inspect
from reference.chat import render
from reference.checkpoint import Checkpoint
from reference.engine import build_model
from reference.generate import generate
from reference.model import Model
from reference.nano import architecture
from reference.nano.draft_heads import costs, page
from reference.nano.measure import acceptance, continuations, depth_nats, held_out_tokens, load, steps_of, windows
from reference.response import parse
from reference.tokenizer import Tokenizer

NANO = Path(__file__).parents[2] / "reference" / "nano"
TRAINING = json.loads((NANO / "training.json").read_text())["held_out"]
LENGTH, COUNT = 256, 4


@pytest.fixture(scope="module")
def model() -> Model:
    return load(NANO)


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return windows(held_out_tokens(NANO), COUNT, LENGTH)


def test_the_config_is_the_one_that_the_training_script_holds() -> None:
    assert json.loads((NANO / "config.json").read_text()) == architecture.CONFIG


def test_the_weights_are_small_enough_to_ship_and_whole_fp8_blocks() -> None:
    counts = inspect(Checkpoint(NANO).config)
    assert counts["checkpoint_bytes"] <= 32e6
    for layer in Checkpoint(NANO).config.layers:
        if layer.is_moe:
            assert layer.hidden_size % 128 == 0
            assert layer.intermediate_size % 128 == 0


def test_special_tokens_stand_where_the_config_says() -> None:
    tokenizer = Tokenizer.from_checkpoint(NANO)
    assert [tokenizer.token_id(token) for token in architecture.SPECIAL_TOKENS] == list(range(11))
    assert tokenizer.vocab_size == Checkpoint(NANO).config.vocab_size


@torch.inference_mode()
def test_held_out_text_is_far_likelier_than_under_count_models(model: Model, batch: torch.Tensor) -> None:
    nats = depth_nats(model, batch)
    bigram = torch.tensor(TRAINING["bigram_perplexity"]).log()
    assert TRAINING["bigram_perplexity"] < TRAINING["unigram_perplexity"]
    assert all(n < bigram - 1 for n in nats), "each depth, too, is e times less perplexed than a bigram model"
    # the windows are a sample of the text that training.json's figure is over: about as perplexing
    assert nats[0] == pytest.approx(float(torch.tensor(TRAINING["perplexity"]).log()), rel=0.25)


@torch.inference_mode()
def test_every_draft_position_is_accepted_far_above_chance(model: Model) -> None:
    shares = acceptance(continuations(model, held_out_tokens(NANO), prompts=6, new_tokens=48))
    assert shares == sorted(shares, reverse=True)
    # guessing the most frequent token at each of three positions would be right this often
    chance = [TRAINING["most_frequent_token_share"] ** (position + 1) for position in range(3)]
    assert all(share > 2 * guess for share, guess in zip(shares, chance, strict=True))


@torch.inference_mode()
def test_drafts_save_steps_and_change_nothing(model: Model) -> None:
    prompt = held_out_tokens(NANO)[:100].tolist()
    plain, drafted = generate(model, prompt, 64), generate(model, prompt, 64, mtp=3)
    assert drafted.tokens == plain.tokens
    assert drafted.drafted_per_position[0] < 40, "64 tokens in fewer steps"


@torch.inference_mode()
@pytest.mark.parametrize("format", ["fp8", "int4"])
def test_rounded_draft_heads_change_no_text_and_keep_most_drafts(model: Model, format: str) -> None:
    tokens = held_out_tokens(NANO)
    rounded = build_model(Checkpoint(NANO), "float32", draft_heads=format)
    plain, got = (continuations(one, tokens, prompts=4, new_tokens=48) for one in (model, rounded))
    assert [one.tokens for one in got] == [one.tokens for one in plain]
    assert sum(map(steps_of, got)) < 1.2 * sum(map(steps_of, plain))


def test_the_page_on_draft_heads_says_what_a_step_reads_and_what_was_measured() -> None:
    (stored, *rounded) = costs(NANO, prompts=2, new_tokens=8)
    assert [one.format for one in rounded] == ["fp8", "int4"]
    assert stored.published_bytes == 3 * 2 * 128_896 * 4096
    assert all(1 <= one.tokens_per_step <= 4 for one in (stored, *rounded))
    text = page((stored, *rounded), "a command", 2, 8)
    assert "| bf16 | 3.17 | - |" in text
    assert "0 in fp8, 0 in int4" in text


def test_what_draft_heads_cost_is_shown_as_it_was_recorded() -> None:
    rows = [line.split(" | ") for line in (NANO / "draft_heads.md").read_text().splitlines() if line.startswith("| ")]
    shown = (NANO.parents[1] / "perf" / "README.md").read_text()
    for _, _, _, *figures in rows[1:]:
        assert " | ".join(figures).replace("| - |", "| |") in shown


@pytest.fixture(scope="module")
def rounding_kl(model: Model, batch: torch.Tensor) -> float:
    """KL divergence between two right float32 evaluations: one pass, and chunks of 50 through the cache."""
    whole = log_probabilities(model, batch, 0)
    divergences = []
    with torch.inference_mode():
        for row, log_p in zip(batch, whole, strict=True):
            cache = model.new_cache()
            chunked = torch.cat([model.logits(model.hidden(chunk, cache)) for chunk in row.split(50)])
            got = chunked.double().log_softmax(dim=-1)
            divergences.append(float((log_p.exp() * (log_p - got)).sum(dim=-1).mean()))
    return max(abs(kl) for kl in divergences)


@pytest.mark.parametrize("change", measured(), ids=[change.name for change in measured()])
def test_no_feature_is_without_effect(
    change: Change,
    model: Model,
    batch: torch.Tensor,
    rounding_kl: float,
) -> None:
    true = log_probabilities(model, batch, change.depth)
    got = log_probabilities(changed(model, change), batch, change.depth)
    kl = float((true.exp() * (true - got)).sum(dim=-1).mean())
    if change.name in EQUIVALENTS:
        assert kl <= 100 * rounding_kl
    else:
        assert kl > 100 * rounding_kl


@torch.inference_mode()
def test_it_answers_in_the_chat_format(model: Model) -> None:
    tokenizer = Tokenizer.from_checkpoint(NANO)
    question = [{"role": "user", "content": "What does json.dumps do?"}]
    prompt = render(tokenizer.chat_template, question, bos_token=tokenizer.bos_token)
    result = generate(model, tokenizer.encode(prompt, add_bos=True), 200)
    message = parse(tokenizer.decode(result.tokens, skip_special=True))
    assert result.finish_reason == "stop"
    assert message.reasoning
    assert message.content or message.tool_calls


def test_the_card_shows_the_recorded_figures() -> None:
    card = (NANO / "README.md").read_text()
    mtp = ", ".join(f"{value:.2f}" for value in TRAINING["mtp_perplexity"])
    accepted = ", ".join(f"{share:.0%}".replace("%", " %") for share in TRAINING["acceptance_per_position"])
    for figure in (
        f"| perplexity per token | {TRAINING['perplexity']:.2f} |",
        f"| the same, MTP depths 1, 2, 3 | {mtp} |",
        f"| bigram model of the same training text | {TRAINING['bigram_perplexity']:.2f} |",
        f"| unigram model | {TRAINING['unigram_perplexity']:.2f} |",
        f"| drafts accepted at positions 1, 2, 3, greedy | {accepted} |",
    ):
        assert figure in card

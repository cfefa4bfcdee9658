"""Generation: speculation changes nothing but the number of steps."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.checkpoint import LoadedWeights
from reference.config import ModelConfig
from reference.generate import Drafter, SamplingParams, generate
from reference.model import Model
from reference.ops.accept_draft import accept_draft, residual
from reference.synthetic import random_tensors

from .geometry import TINY

CONFIG = ModelConfig.from_dict(TINY)
TENSORS = {name: tensor.double() for name, tensor in random_tensors(CONFIG, seed=6).items()}
for _name in ("model.embed_tokens.weight", "lm_head.weight"):
    TENSORS[_name] *= 2  # sharper distributions than random heads give
MODEL = Model(CONFIG, LoadedWeights.from_flat(CONFIG, TENSORS), torch.float64)
PROMPTS = torch.randint(2, CONFIG.vocab_size, (4, 23), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.mark.parametrize("mtp", [1, 2, 3])
@pytest.mark.parametrize("prompt", PROMPTS, ids=["a", "b", "c", "d"])
@torch.inference_mode()
def test_greedy_output_is_the_same_with_and_without_drafts(prompt: list[int], mtp: int) -> None:
    for length in (1, 2, len(prompt)):  # shorter than the depths, too
        plain = generate(MODEL, prompt[:length], 40)
        drafted = generate(MODEL, prompt[:length], 40, mtp=mtp)
        assert drafted.tokens == plain.tokens
        assert len(drafted.acceptance_per_position) == mtp


@torch.inference_mode()
def test_greedy_output_is_the_argmax_of_a_recomputation() -> None:
    tokens = list(PROMPTS[0])
    for token in generate(MODEL, PROMPTS[0], 20).tokens:
        assert token == int(MODEL.logits(MODEL.hidden(torch.tensor(tokens)))[-1].argmax())
        tokens.append(token)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(steps=st.lists(st.integers(1, 4), min_size=1, max_size=8), length=st.integers(1, 12))
@torch.inference_mode()
def test_drafts_are_those_of_recomputation_after_any_pattern_of_acceptance(steps: list[int], length: int) -> None:
    """Every round advances by 1 to 4 tokens; the drafts equal those of depths run afresh over the whole context."""
    sequence = torch.randint(2, CONFIG.vocab_size, (64,), generator=torch.Generator().manual_seed(8))
    drafter = Drafter(MODEL, 3)
    known = 0
    for step in [0, *steps]:
        length += step
        tokens = sequence[: length + 1].tolist()
        hidden = MODEL.hidden(sequence[:length])
        got_logits: list[Tensor] = []

        def choose(logits: Tensor, seen: list[Tensor] = got_logits) -> int:
            seen.append(logits)
            return int(logits.argmax())

        drafts = drafter.draft(tokens, hidden[known:], choose)
        known = length
        extended = list(tokens)
        for depth in range(3):
            row_tokens = torch.tensor(extended[1 + depth : length + 1 + depth])
            hidden = MODEL.mtp_hidden(depth, hidden, row_tokens)
            want = MODEL.mtp_logits(depth, hidden[-1])
            assert float((got_logits[depth] - want).abs().max()) <= 1e-9 * float(want.abs().max())
            extended.append(int(want.argmax()))
        assert drafts == extended[len(tokens) :]
        lengths = [cache.length for cache in drafter.caches]
        assert lengths == [max(length - depth, 0) for depth in range(3)]  # only rows on true tokens stay


def exact_distribution(
    target: dict[tuple[int, ...], list[Fraction]], draft: list[list[Fraction]]
) -> dict[tuple[int, ...], Fraction]:
    """What two drafts, acceptance and one more token emit, by enumeration: no sampling, no rounding.

    The rule under test decides with uniform numbers; here each decision is replaced by its probability, and the code is
    asked at both sides of every threshold whether it decides so.
    """
    vocab = len(draft[0])
    emitted: dict[tuple[int, ...], Fraction] = {}
    for drafts in itertools.product(range(vocab), repeat=2):
        drawn = math.prod(draft[i][drafts[i]] for i in range(2))
        if not drawn:
            continue
        rows = [target[()], target[drafts[:1]], target[drafts]]
        p = torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
        q = torch.tensor([[float(x) for x in row] for row in draft], dtype=torch.float64)
        reach = drawn
        for i, token in enumerate(drafts):
            accept = min(Fraction(1), rows[i][token] / draft[i][token])
            uniforms = torch.zeros(3, dtype=torch.float64)  # earlier drafts are accepted: 0 is below any threshold
            for below, u in ((True, float(accept) - 1e-6), (False, float(accept) + 1e-6)):
                if 0 <= u < 1:
                    uniforms[i], uniforms[i + 1 :] = u, 0
                    accepted, _ = accept_draft(p, q, torch.tensor(drafts), uniforms)
                    assert (accepted > i) == below
            if accept < 1:
                excess = [max(a - b, Fraction(0)) for a, b in zip(rows[i], draft[i], strict=True)]
                rejected = reach * (1 - accept)
                got = residual(p[i], q[i]).tolist()
                for following, weight in enumerate(excess):
                    assert abs(got[following] - float(weight / sum(excess))) < 1e-12
                    outcome = (*drafts[:i], following)
                    emitted[outcome] = emitted.get(outcome, Fraction(0)) + rejected * weight / sum(excess)
            reach *= accept
            if not reach:
                break  # never accepted: nothing lies behind it
        for following, weight in enumerate(rows[2]):
            outcome = (*drafts, following)
            emitted[outcome] = emitted.get(outcome, Fraction(0)) + reach * weight
    return emitted


fractions = (
    st.lists(st.integers(0, 5), min_size=3, max_size=3)
    .filter(any)
    .map(lambda weights: [Fraction(weight, sum(weights)) for weight in weights])
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(fractions, min_size=13, max_size=13), draft=st.lists(fractions, min_size=2, max_size=2))
def test_what_speculation_emits_has_exactly_the_target_distribution(
    rows: list[list[Fraction]], draft: list[list[Fraction]]
) -> None:
    """Vocabulary 3, two drafts, every outcome enumerated: the emitted tokens' joint distribution is the target's."""
    prefixes = [p for n in range(3) for p in itertools.product(range(3), repeat=n)]
    target = dict(zip(prefixes, rows, strict=True))
    emitted = exact_distribution(target, draft)
    for prefix in prefixes:
        # the probability that the emitted tokens begin with the prefix, whenever the step emits that many
        for token in range(3):
            outcome = (*prefix, token)
            reached = sum(p for o, p in emitted.items() if len(o) >= len(outcome) and o[: len(prefix)] == prefix)
            with_token = sum(p for o, p in emitted.items() if o[: len(outcome)] == outcome)
            assert with_token == reached * target[prefix][token]


@torch.inference_mode()
def test_sampled_sequences_have_the_same_distribution_with_and_without_drafts() -> None:
    """The whole loop, 600 seeds each: chi-square of the first two tokens that speculation can touch."""
    params = {"temperature": 0.7, "top_k": 4}
    counts: list[dict[tuple[int, ...], int]] = [{}, {}]
    runs = 600
    for seed in range(runs):
        for index, mtp in enumerate((0, 3)):
            sampling = SamplingParams(seed=seed + index * runs, **params)  # type: ignore[arg-type]
            tokens = tuple(generate(MODEL, PROMPTS[0][:4], 3, mtp=mtp, sampling=sampling).tokens)
            counts[index][tokens] = counts[index].get(tokens, 0) + 1
    outcomes = sorted({*counts[0], *counts[1]})
    common = [o for o in outcomes if counts[0].get(o, 0) + counts[1].get(o, 0) >= 20]
    rare = [o for o in outcomes if o not in common]
    pairs = [(counts[0].get(o, 0), counts[1].get(o, 0)) for o in common]
    pairs.append((sum(counts[0].get(o, 0) for o in rare), sum(counts[1].get(o, 0) for o in rare)))
    statistic = sum((a - b) ** 2 / (a + b) for a, b in pairs if a + b)
    freedom = len(pairs) - 1
    assert freedom > 5
    # Laurent and Massart 2000: P(chi2 >= k + 2 sqrt(k x) + 2 x) <= exp(-x)
    x = math.log(1e6)
    assert statistic <= freedom + 2 * math.sqrt(freedom * x) + 2 * x


@torch.inference_mode()
def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def run(seed: int) -> list[int]:
        return generate(MODEL, PROMPTS[1], 30, mtp=2, sampling=SamplingParams(1.0, seed=seed)).tokens

    assert run(1) == run(1)
    assert run(1) != run(2)


@torch.inference_mode()
@pytest.mark.parametrize("mtp", [0, 3])
def test_generation_ends_at_the_limit_at_an_end_token_and_at_the_end_of_the_context(mtp: int) -> None:
    free = generate(MODEL, PROMPTS[2], 30, mtp=mtp).tokens
    for limit in range(1, 12):
        result = generate(MODEL, PROMPTS[2], limit, mtp=mtp)
        assert result.tokens == free[:limit]
        assert result.finish_reason == "length"
    ending = free[5]
    stopping = ModelConfig.from_dict(TINY | {"eos_token_id": [ending]})
    stopped = generate(Model(stopping, MODEL.weights, torch.float64), PROMPTS[2], 30, mtp=mtp)
    assert stopped.tokens == free[: free.index(ending) + 1]
    assert stopped.finish_reason == "stop"
    long_prompt = (PROMPTS[3] * 10)[: CONFIG.max_position_embeddings - 2]
    assert len(generate(MODEL, long_prompt, 30, mtp=mtp).tokens) == 2


@torch.inference_mode()
def test_tokens_are_handed_out_as_they_come() -> None:
    seen: list[int] = []
    result = generate(MODEL, PROMPTS[0], 12, mtp=3, on_token=seen.append)
    assert seen == result.tokens


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "mtp", "message"),
    [
        ([], 1, 0, "prompt: is empty; want at least one token"),
        ([1], 0, 0, "max_new_tokens: is 0; want 1 or more"),
        ([1], 1, 4, "mtp: is 4; want 0 to 3"),
        ([1] * 128, 1, 0, "prompt: has 128 tokens; want fewer than max_position_embeddings = 128"),
    ],
)
def test_wrong_arguments_are_named(prompt: list[int], max_new_tokens: int, mtp: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(MODEL, prompt, max_new_tokens, mtp)

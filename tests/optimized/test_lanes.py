"""Requests on the whole model, in one batch: each gets what it gets alone."""

from functools import partial

import pytest
import torch
from fake_lanes import FIELDS

from conformance.model import tiny
from optimized.kv_cache import CacheSizes, KVCache
from optimized.lanes import AUTO, Lanes
from optimized.model import OptimizedModel
from optimized.request import Request
from optimized.runner import Runner
from optimized.scheduler import Scheduler
from optimized.speculative import Filters
from optimized.weights import PROFILES, load_weights
from reference.checkpoint import Checkpoint
from reference.engine import ReferenceModel, build_model

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
TEXT = torch.randint(2, 256, (90,), generator=torch.Generator().manual_seed(4)).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tiny.write(tmp_path_factory.mktemp("tiny"), FIELDS, tiny.random_weights(FIELDS, 5)))


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoint) -> ReferenceModel:
    return ReferenceModel(build_model(checkpoint, "float32"))


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> OptimizedModel:
    """With pages for one long context, and NaN wherever nothing is."""
    weights = load_weights(checkpoint, PROFILES["float32"], DEVICE)
    cache = KVCache(weights.config, torch.float32, DEVICE, CacheSizes(4, 3, 128), poisons=True)
    return OptimizedModel(Runner(weights, cache), cache)


def run(scheduler: Scheduler, *requests: Request) -> list[list]:
    """Events of each request."""
    numbers = [scheduler.submit(request) for request in requests]
    events = list(scheduler.run())
    scheduler.prefixes.clear()
    return [[event for event in events if event.request_id == number] for number in numbers]


def tokens_of(events: list) -> list[int]:
    return [token for event in events for token in event.tokens]


def test_greedy_and_drawn_requests_share_the_model_and_the_one_that_was_preempted_lost_nothing(
    model: OptimizedModel, reference: ReferenceModel
) -> None:
    more = 2 * model.steps_ahead  # tokens that are reserved with a prompt; only then another page is wanted
    length, count = 62 - more, 3 + more
    greedy = Request(tuple(TEXT[:length]), count, ignores_end=True)
    drawn = Request(tuple(TEXT[20 : 20 + length]), count + 1, Filters(temperature=0.7), seed=3, ignores_end=True)
    first, second = run(Scheduler(Lanes(model, 2, mtp=1), 96), greedy, drawn)
    assert tokens_of(first) == reference.generate(TEXT[:length], count).tokens
    alone = model.generate(TEXT[20 : 20 + length], count + 1, mtp=1, temperature=0.7, seed=3)
    assert tokens_of(second) == alone.tokens
    usages = [events[-1].finish.usage for events in (first, second)]
    assert [usage.preemptions for usage in usages] == [0, 1]
    assert list(usages[1].drafted_per_position) == alone.drafted_per_position
    assert list(usages[1].accepted_per_position) == alone.accepted_per_position
    assert model.cache.num_free_pages == 3


def test_a_beginning_from_the_cache_gives_the_same_text_and_drafts(
    model: OptimizedModel, reference: ReferenceModel
) -> None:
    scheduler = Scheduler(Lanes(model, 1, mtp=1), 96)
    first, second = (Request((*TEXT[:64], *TEXT[start : start + 3]), 3, ignores_end=True) for start in (64, 70))
    events = run(scheduler, first, second)
    for request, told in zip((first, second), events, strict=True):
        want = reference.generate(list(request.prompt_ids), 3, mtp=1)
        assert tokens_of(told) == want.tokens
        assert list(told[-1].finish.usage.accepted_per_position) == want.accepted_per_position
    assert [told[-1].finish.usage.cached_tokens for told in events] == [0, 64]


def test_listed_log_probabilities_are_the_models_own(model: OptimizedModel, reference: ReferenceModel) -> None:
    request = Request(tuple(TEXT[:6]), 2, Filters(temperature=0.5, top_k=2), seed=1, top_logprobs=3, ignores_end=True)
    (told,) = run(Scheduler(Lanes(model, 1), 96), request)
    tokens, listed = tokens_of(told), [one for event in told for one in event.logprobs]
    want = reference.new_session().extend([*TEXT[:6], tokens[0]])[-2:].double().log_softmax(-1)
    for token, got, row in zip(tokens, listed, want, strict=True):
        assert got.chosen == pytest.approx(row[token].item(), abs=1e-3)
        assert [token for token, _ in got.likeliest] == row.topk(3).indices.tolist()
        assert [value for _, value in got.likeliest] == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


class Scripted:
    """Chooses depths by the number of the step; ahead: whether steps are started before the one before was read."""

    def __init__(self, ahead: bool, deepest: int) -> None:
        self._ahead, self._depths = ahead, iter([0, 0, 1, 0, 1])
        self.depth = deepest

    def observe(self, depth: int, cost_s: float, accepted: list[int]) -> None:
        assert cost_s > 0
        if not accepted and self._ahead:
            return  # of a step that was started before the request was known to have ended
        assert len(accepted) == 1
        self.depth = next(self._depths)


def test_the_number_of_drafts_may_change_between_steps_and_text_and_drafts_stay_the_same(
    model: OptimizedModel, reference: ReferenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimized.lanes.DraftDepth", partial(Scripted, model.steps_ahead))
    lanes = Lanes(model, 1, AUTO)
    scheduler = Scheduler(lanes, 96)
    scheduler.submit(Request(tuple(TEXT[:20]), 6, ignores_end=True))
    tokens, drafted = TEXT[:20], []
    while scheduler.is_busy:
        for event in scheduler.step():
            tokens += event.tokens
        drafts = next(iter(lanes._lanes.values()))._rows.tokens[0, 1:].tolist()
        drafted.append(len(drafts))
        if drafts and scheduler.is_busy and not model.steps_ahead:  # else they follow tokens that nobody has read yet
            assert drafts == [int(reference.draft_logits(tokens)[0][-1].argmax())]
    assert tokens[20:] == reference.generate(TEXT[:20], 6).tokens
    assert set(drafted) == {0, 1}
    if not model.steps_ahead:
        assert drafted[:5] == [1, 0, 0, 1, 0]


def test_generation_that_adapts_gives_the_same_text_and_leaves_nothing_behind(
    model: OptimizedModel, reference: ReferenceModel
) -> None:
    got = model.generate(TEXT[:9], 3, mtp="auto")
    assert got.tokens == reference.generate(TEXT[:9], 3).tokens
    assert got.finish_reason == "length"
    assert len(got.drafted_per_position) == 1
    assert got.tokens_per_s is not None
    assert (model.cache.num_free_slots, model.cache.num_free_pages) == (4, 3)
    with pytest.raises(ValueError, match="mtp: is 'most'; want 'auto' or 0 to 1"):
        model.generate([5], 3, mtp="most")


def test_what_lanes_cannot_be_is_refused(model: OptimizedModel) -> None:
    with pytest.raises(ValueError, match="max_batch: is 5; want 1 to 4"):
        Lanes(model, 5)
    with pytest.raises(ValueError, match="mtp: is 2; want auto or 0 to 1"):
        Lanes(model, 1, mtp=2)
    with pytest.raises(ValueError, match="token ids: range from 5 to 256"):
        Scheduler(Lanes(model, 1), 96).submit(Request((5, 256)))

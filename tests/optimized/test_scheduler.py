"""Scheduling, on a model whose next token is a hash of what the cache holds: nobody sees another, nothing is lost."""

import random

import pytest
import torch
from fake_lanes import CONFIG, END, VOCABULARY, FakeLanes, alone
from soak import by_request, soak

from optimized.kv_cache import PAGE_SIZE, CacheFullError, CacheSizes
from optimized.request import Event, Request
from optimized.scheduler import Scheduler
from optimized.speculative import Filters
from reference.commands import MINIATURE
from reference.tokenizer import Tokenizer

LONGEST = CONFIG.max_position_embeddings
DRAWN = Filters(temperature=1.0)


def scheduler_of(
    pages: int = 24, max_batch: int = 4, deepest: int = 0, steps_ahead: int = 0, kept: int = 4, budget: int = 96
) -> tuple[Scheduler, FakeLanes]:
    lanes = FakeLanes(CacheSizes(max_batch + kept, pages, LONGEST), max_batch, deepest, steps_ahead)
    return Scheduler(lanes, budget), lanes


def require_empty(scheduler: Scheduler, lanes: FakeLanes) -> None:
    """Nothing is held but beginnings that are kept, and with these gone all is free and poisoned."""
    assert not scheduler.is_busy
    assert not lanes.rows
    scheduler.prefixes.clear()
    sizes = lanes.cache.sizes
    assert (lanes.cache.num_free_pages, lanes.cache.num_free_slots) == (sizes.num_pages, sizes.num_slots)
    assert all(lanes.cache.k[layer.index].isnan().all() for layer in CONFIG.layers + CONFIG.mtp_layers)


def step_within(budget: int, scheduler: Scheduler, lanes: FakeLanes) -> list[Event]:
    """One step, which must not compute more than its budget."""
    before = lanes.prompt_tokens + lanes.decoded_tokens
    events = scheduler.step()
    assert lanes.prompt_tokens + lanes.decoded_tokens - before <= budget
    return events


def text(length: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(2, VOCABULARY), k=length))


def some_request(chance: random.Random) -> Request:
    """One of three beginnings, or none, and something of its own."""
    prompt = text(chance.choice([0, 0, 64, 130]), chance.randrange(3))
    prompt += text(chance.randrange(1, 90), chance.randrange(10**6))
    filters = chance.choice([Filters(), DRAWN])
    return Request(prompt, chance.randrange(1, 200), filters, chance.randrange(1000))


@pytest.mark.parametrize(("steps_ahead", "count"), [(0, 700), (1, 1500)])
def test_thousands_of_requests_get_what_they_get_alone_and_leave_nothing_behind(steps_ahead: int, count: int) -> None:
    chance = random.Random(steps_ahead)
    scheduler, lanes = scheduler_of(pages=8, max_batch=6, deepest=3, steps_ahead=steps_ahead)
    requests = [some_request(chance) for _ in range(count)]
    soaked = soak(scheduler, requests, chance, lambda: step_within(96, scheduler, lanes))
    soaked.require_right(lambda request: alone(request, lanes.deepest, LONGEST), [END])
    assert len(soaked.cancelled) > count // 50
    assert soaked.total("preemptions") > count // 100
    assert soaked.total("cached_tokens") > PAGE_SIZE * count // 30
    require_empty(scheduler, lanes)


@pytest.mark.parametrize("filters", [Filters(), DRAWN])
def test_whoever_is_preempted_goes_on_with_the_same_tokens(filters: Filters) -> None:
    scheduler, lanes = scheduler_of(pages=5, deepest=2, steps_ahead=1, kept=0)
    requests = [Request(text(50, seed), 100, filters, seed, ignores_end=True) for seed in range(3)]
    numbers = [scheduler.submit(request) for request in requests]
    tokens, ends = by_request(scheduler.run())
    for number, request in zip(numbers, requests, strict=True):
        want = alone(Request(request.prompt_ids, 100, filters, request.seed), 2, LONGEST)
        assert tokens[number][: len(want)] == want
        assert len(tokens[number]) == 100
    assert [ends[number].usage.preemptions > 0 for number in numbers] == [False, True, True]  # the newest gives way
    require_empty(scheduler, lanes)


def test_requests_are_admitted_in_order_even_where_a_later_one_would_fit() -> None:
    scheduler, _ = scheduler_of(pages=5, kept=0)
    first, large, small = (scheduler.submit(Request(text(n, n), 2, ignores_end=True)) for n in (150, 200, 5))
    seen = [event.request_id for event in scheduler.run()]
    assert list(dict.fromkeys(seen)) == [first, large, small]
    assert seen.index(large) > 1


def test_a_prompt_is_taken_in_beside_those_that_decode_within_the_budget() -> None:
    scheduler, lanes = scheduler_of(budget=72, deepest=1)
    short = scheduler.submit(Request(text(4, 1), 30, ignores_end=True))
    scheduler.step()
    long = scheduler.submit(Request(text(300, 2), 1))
    events = [step_within(72, scheduler, lanes) for _ in range(4)]
    assert all({event.request_id for event in told} == {short} for told in events)
    assert lanes.prompt_tokens == 4 + 4 * 68
    assert long in {event.request_id for event in scheduler.step()}


def test_prompts_of_several_requests_share_a_pass_and_the_oldest_takes_the_budget_first() -> None:
    scheduler, lanes = scheduler_of(budget=96)
    for length in (40, 5, 70, 3):
        scheduler.submit(Request(text(length, length), 1))
    told = {event.request_id for event in step_within(96, scheduler, lanes)}
    assert (told, lanes.passes, lanes.prompt_tokens) == ({1, 2}, 1, 92)
    assert {event.request_id for event in scheduler.run()} == {3, 4}
    assert (lanes.passes, lanes.prompt_tokens) == (2, 118)
    require_empty(scheduler, lanes)


def test_a_beginning_that_another_prompt_has_too_is_not_computed_again() -> None:
    scheduler, lanes = scheduler_of()
    shared = text(150, 1)
    runs = [shared + text(20, 2), shared + text(20, 3), shared + text(20, 4)]
    cached = []
    for prompt in runs:
        request = Request(prompt, 3)
        number = scheduler.submit(request)
        tokens, ends = by_request(scheduler.run())
        assert tokens[number] == alone(request, 0, LONGEST)
        cached.append(ends[number].usage.cached_tokens)
    assert cached == [0, 128, 128]
    assert lanes.prompt_tokens == sum(map(len, runs)) - sum(cached)
    scheduler.submit(Request(runs[0][:100], 1))
    (end,) = by_request(scheduler.run())[1].values()
    assert end.usage.cached_tokens == 0  # the pages are there, but not the rings at their end
    scheduler.submit(Request(runs[0][:100] + runs[1], 1))
    (end,) = by_request(scheduler.run())[1].values()
    assert end.usage.cached_tokens == 64  # from where the prompts parted on
    require_empty(scheduler, lanes)


def test_where_two_prompts_part_is_kept_for_a_third() -> None:
    scheduler, _ = scheduler_of()
    shared = text(140, 1)
    cached = []
    for seed in (2, 3, 4):
        number = scheduler.submit(Request(shared + text(200, seed), 1))
        cached.append(by_request(scheduler.run())[1][number].usage.cached_tokens)
    assert cached == [0, 0, 128]


def test_what_is_kept_makes_room_for_whoever_needs_it() -> None:
    scheduler, lanes = scheduler_of(pages=8)
    for seed in range(3):
        scheduler.submit(Request(text(130, seed), 1))
    list(scheduler.run())
    assert lanes.cache.num_free_pages < 6
    scheduler.submit(Request(text(300, 9), 150, ignores_end=True))
    (end,) = by_request(scheduler.run())[1].values()
    assert (end.reason, end.usage.preemptions) == ("length", 0)
    require_empty(scheduler, lanes)


def test_cancelling_frees_everything_at_any_time() -> None:
    scheduler, lanes = scheduler_of(max_batch=2, kept=0, deepest=1, steps_ahead=1)
    numbers = [scheduler.submit(Request(text(n, n), 50, ignores_end=True)) for n in (5, 200, 7)]
    scheduler.step()  # one decodes, one is half taken in, one waits
    assert all(scheduler.cancel(number) for number in numbers)
    assert not any(scheduler.cancel(number) for number in (*numbers, 99))
    _, ends = by_request(scheduler.run())
    assert {finish.reason for finish in ends.values()} == {"cancelled"}
    assert len(ends) == 3
    require_empty(scheduler, lanes)


def test_a_prompt_without_memory_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, lanes = scheduler_of()
    fine, large, later = (scheduler.submit(Request(text(n, n), 3, ignores_end=True)) for n in (5, 60, 6))
    plain = lanes.count

    def count(tokens: int) -> None:
        if tokens > 50:
            raise torch.OutOfMemoryError("out of memory\nand more")
        plain(tokens)

    monkeypatch.setattr(lanes, "count", count)
    _, ends = by_request(scheduler.run())
    assert ends[fine].reason == ends[later].reason == "length"
    assert (ends[large].reason, ends[large].detail) == ("error", "out of memory")
    require_empty(scheduler, lanes)


def test_stop_tokens_end_a_request_and_end_tokens_may_be_ignored() -> None:
    scheduler, _ = scheduler_of()
    whole = alone(Request((5, 6), 40, stop_token_ids=()), 0, LONGEST)
    number = scheduler.submit(Request((5, 6), 40, stop_token_ids=(whole[2],)))
    tokens, ends = by_request(scheduler.run())
    assert tokens[number] == whole[: whole.index(whole[2]) + 1]
    assert ends[number].reason == "stop"


def test_a_stop_string_may_span_tokens_and_ends_the_text_before_it() -> None:
    tokenizer = Tokenizer.from_checkpoint(MINIATURE)
    lanes = FakeLanes(CacheSizes(2, 8, LONGEST), 1, deepest=3)
    scheduler = Scheduler(lanes, 96, tokenizer)
    plain = Request((5, 6, 7), 12, ignores_end=True)
    scheduler.submit(plain)
    events = list(scheduler.run())
    whole = "".join(event.text for event in events)
    assert whole == tokenizer.decode([token for event in events for token in event.tokens], skip_special=True)
    stop = whole[3:7]
    number = scheduler.submit(Request((5, 6, 7), 12, ignores_end=True, stops=("never this", stop)))
    events = list(scheduler.run())
    assert "".join(event.text for event in events) == whole[: whole.index(stop)]
    assert events[-1].finish is not None
    assert (events[-1].finish.reason, events[-1].finish.detail) == ("stop", stop)
    assert {event.request_id for event in events} == {number}


def refused(request: Request, message: str, **sizes: int) -> None:
    scheduler, _ = scheduler_of(**sizes)
    with pytest.raises(ValueError, match=message):
        scheduler.submit(request)
    assert not scheduler.is_busy


def test_what_could_never_run_is_refused_with_what_could() -> None:
    refused(Request((), 1), r"prompt: has 0 tokens; want 1 to 511")
    refused(Request(text(600, 1), 1), r"prompt: has 600 tokens; want 1 to 511")
    refused(Request(text(100, 1), 200), r"want at most 148 new tokens", pages=4)
    refused(Request(text(300, 1), 200), r"want at most a prompt of 247 tokens", pages=4)
    refused(Request((VOCABULARY,), 1), r"token ids: reach 97")
    refused(Request((5,), 1, stops=("x",)), r"there is no tokenizer")
    with pytest.raises(ValueError, match=r"token_budget: is 70; want at least 80: 4 rows of 4 tokens, and 64"):
        scheduler_of(budget=70, deepest=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: is 0; want 1 or more"),
        ({"stops": ("a", "")}, "stops: one is empty"),
        ({"top_logprobs": 21}, "top_logprobs: is 21; want 0 to 20"),
    ],
)
def test_a_value_out_of_range_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Request((5,), **fields)


def test_a_cache_that_others_hold_is_an_error_and_not_an_endless_wait() -> None:
    scheduler, lanes = scheduler_of(pages=4)
    others = lanes.cache.open()
    lanes.cache.reserve(others, 3 * PAGE_SIZE)
    scheduler.submit(Request(text(100, 1), 10))
    with pytest.raises(CacheFullError, match="2 pages are needed and 1 are free"):
        list(scheduler.run())
    lanes.cache.close(others)
    assert len(by_request(scheduler.run())[1]) == 1

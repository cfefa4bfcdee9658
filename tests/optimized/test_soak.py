"""Hundreds of requests on the whole model, through CUDA graphs: each gets what it gets alone, and nothing stays."""

import random
from pathlib import Path

import pytest
import torch
from soak import soak

from conformance.model import tiny
from optimized.kv_cache import PAGE_SIZE, CacheSizes, KVCache
from optimized.lanes import AUTO, Lanes
from optimized.launch import fixed_order
from optimized.model import OptimizedModel
from optimized.request import Request
from optimized.runner import Runner
from optimized.scheduler import Scheduler
from optimized.speculative import Filters
from optimized.weights import PROFILES, load_weights
from reference.checkpoint import Checkpoint
from reference.ops.sampling import sampling

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="interpreted, it would take hours; no GPU is here"),
]
COUNT, MAX_BATCH, LONGEST, PAGES = 60, 8, 256, 8  # contexts outgrow what was free when they were let in
TOLERANCE = 1e-4  # of a logit in float32, after prefill or after steps of decoding


def model_of(folder: Path, device: torch.device) -> OptimizedModel:
    """With fewer pages than a full batch may want, and NaN wherever nothing is."""
    fields = dict(tiny.TINY, max_position_embeddings=LONGEST)
    checkpoint = Checkpoint(tiny.write(folder, fields, tiny.random_weights(fields, 5)))
    weights = load_weights(checkpoint, PROFILES["float32"], device)
    sizes = CacheSizes(MAX_BATCH + 4, PAGES, LONGEST)
    cache = KVCache(weights.config, torch.float32, device, sizes, poisons=True)
    return OptimizedModel(Runner(weights, cache), cache)


def some_request(chance: random.Random) -> Request:
    """One of two beginnings, or none, and something of its own."""
    prompt = [random.Random(seed).choices(range(2, 256), k=70) for seed in (1, 2)] + [[]]
    own = chance.choices(range(2, 256), k=chance.randrange(1, 40))
    filters = chance.choice([Filters(), Filters(0.8, top_k=20), Filters(1.1, top_p=0.9, min_p=0.01)])
    listed = chance.choice([None, None, None, 2])
    prompt_ids = (*chance.choice(prompt), *own)
    return Request(prompt_ids, chance.randrange(1, 180), filters, chance.randrange(1000), top_logprobs=listed)


def alone(model: OptimizedModel, request: Request, mtp: int) -> list[int]:
    filters, longest = request.filters, LONGEST - len(request.prompt_ids)
    return model.generate(
        list(request.prompt_ids),
        min(request.max_new_tokens, longest),
        mtp=mtp,
        temperature=filters.temperature,
        top_k=filters.top_k,
        top_p=filters.top_p,
        min_p=filters.min_p,
        seed=request.seed,
    ).tokens


def near_tie(model: OptimizedModel, request: Request, got: list[int], want: list[int]) -> bool:
    """Whether two greedy texts part at tokens that are equally likely but for rounding."""
    part = next(place for place, pair in enumerate(zip(got, want, strict=False)) if pair[0] != pair[1])
    logits = model.new_session().extend([*request.prompt_ids, *want[:part]])[-1]
    return request.filters.is_greedy and bool((logits[got[part]] - logits[want[part]]).abs() < TOLERANCE)


def is_its_own(model: OptimizedModel, request: Request, got: list[int]) -> bool:
    """Whether every token is among those that the request's filters leave after the ones before it."""
    logits = model.new_session().extend([*request.prompt_ids, *got[:-1]])[-len(got) :]
    one = request.filters
    wider = min(one.top_p + TOLERANCE, 1.0), max(one.min_p - TOLERANCE, 0.0)  # rounding decides what is at the border
    chances = sampling(logits.float().cpu(), one.temperature, one.top_k, *wider)
    return bool((chances.gather(1, torch.tensor(got)[:, None]) > 0).all())


@pytest.mark.parametrize("mtp", [0, 3, AUTO])
def test_hundreds_of_requests_get_what_they_get_alone_and_leave_nothing_behind(tmp_path: Path, mtp: int | str) -> None:
    chance = random.Random(str(mtp))
    with fixed_order():
        model = model_of(tmp_path, torch.device("cuda", 0))
        scheduler = Scheduler(Lanes(model, MAX_BATCH, mtp), 160)
        soaked = soak(scheduler, [some_request(chance) for _ in range(COUNT)], chance, scheduler.step)
        scheduler.prefixes.clear()
        assert (model.cache.num_free_pages, model.cache.num_free_slots) == (PAGES, MAX_BATCH + 4)
        assert all(keys.isnan().all() for keys in model.cache.k.values())

        def expected(request: Request) -> list[int]:
            number = next(number for number, one in soaked.requests.items() if one is request)
            got, want = soaked.tokens[number], alone(model, request, 3 if mtp == AUTO else int(mtp))
            drafts_moved = mtp == AUTO or (mtp != 0 and soaked.ends[number].usage.preemptions > 0)
            if drafts_moved and not request.filters.is_greedy:  # another text then, as likely: see scheduler
                return got if is_its_own(model, request, got) else want
            same = got == want[: len(got)]
            return want if same or not near_tie(model, request, got, want) else got

        soaked.require_right(expected, model.config.eos_token_ids)
    assert len(soaked.cancelled) > COUNT // 50
    assert soaked.total("preemptions") > 0
    assert soaked.total("cached_tokens") > PAGE_SIZE

"""A geometry with random weights, as what is measured: an engine takes part that has ``synthetic_model``.

Tokens are random, as the weights are: no text would make either mean something. So no acceptance is measured here, and
tokens choose experts uniformly, or alike where a correlation is asked for.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Protocol

from hardware.energy import EnergyWindow
from hardware.machine import Fact
from reference.config import ModelConfig

from .live_memory import unused
from .model import ModelResult, NotOfferedError, Scenario
from .model_cost import FORMATS, cached_bytes, held_weight_bytes
from .workload import Wrong

BLOCK_STEPS = 16  # of a sample on a GPU
REPLAYS = 24
DISTINCT_DRAWS = 4
KERNELS_LISTED = 24
CHUNK_TOKENS = 8192  # of a prompt, at a time
STEP_TOKENS = 8  # more positions than a sequence is long, for a step to begin in


class Decoding(Protocol):
    """Contexts that decode; see ``optimized.synthetic``."""

    full_bytes: int
    sliding_bytes: int
    predicted_bytes: int
    allocated_bytes: int

    def rewind(self) -> None: ...
    def next_tokens(self, number: int) -> None: ...
    def step(self) -> Any: ...
    def replay(self) -> None: ...
    def distinct_experts(self, number: int) -> list[int]: ...


class Measured(Protocol):
    """A model with random weights."""

    weight_bytes: int
    description: Any

    def decoding(self, batch: int, context: int, num_drafts: int, captures: bool) -> Decoding: ...
    def chunk(self, start: int, num_tokens: int) -> Any: ...


class SyntheticSubject:
    """An engine's model with random weights.

    Args:
        seed, correlation: as the engine takes them.
        draft_heads: what the engine was asked to hold these in.
    """

    text = "random tokens"

    def __init__(
        self,
        engine: Any,
        config: ModelConfig,
        format: str,
        device: str,
        seed: int = 0,
        correlation: float = 0.0,
        draft_heads: str | None = None,
    ) -> None:
        make = getattr(engine, "synthetic_model", None)
        if make is None:
            raise NotOfferedError(f"{engine.name} has no synthetic_model; want --checkpoint DIR, or an engine with one")
        self.config, self.device, self.format = config, device, format
        self.stored = replace(FORMATS[format], draft_heads=draft_heads)
        started = time.monotonic()
        self.model: Measured = make(config, format, seed, correlation)
        self.clock = _Clock(device)
        self.clock.wait()
        self.made_s = time.monotonic() - started
        self.weight_bytes = self.model.weight_bytes

    def description(self) -> Mapping[str, Any]:
        return asdict(self.model.description) | {"weight_bytes": self.weight_bytes, "made_s": self.made_s}

    def open(self, scenario: Scenario) -> "_Steps | _Prompt":
        self.clock.reset_peak()
        return _Prompt(self, scenario) if scenario.chunk else _Steps(self, scenario)


class _Steps:
    """Steps of decoding from a depth on, each on other tokens; on a GPU from the engine's own graph."""

    def __init__(self, subject: SyntheticSubject, scenario: Scenario) -> None:
        self.subject, self.scenario, self._clock = subject, scenario, subject.clock
        self.clock = subject.clock.name
        positions = subject.config.max_position_embeddings
        self._context = min(scenario.context + scenario.generated + STEP_TOKENS, positions)
        self.decoding = subject.model.decoding(
            scenario.batch, self._context, scenario.num_drafts, subject.clock.is_cuda
        )  # fmt: skip
        self._opened, self._number = subject.clock.allocated(), 0
        draws = [self.decoding.distinct_experts(n) for n in range(DISTINCT_DRAWS if subject.clock.is_cuda else 1)]
        self.distinct: Sequence[float] = [statistics.mean(layer) for layer in zip(*draws, strict=True)]

    @property
    def _block(self) -> int:
        return BLOCK_STEPS if self._clock.is_cuda else 1

    @property
    def tokens_a_call(self) -> int:
        return self._block * self.scenario.batch

    def run_checked(self, index: int = 0) -> Wrong | None:
        """Tokens are of the vocabulary, each row takes its step, and what comes out depends on what goes in."""
        seen = set()
        for number in range(3 if index == 0 else 1):
            self.decoding.rewind()
            self.decoding.next_tokens(index + number)
            outcomes = self.decoding.step().outcomes()
            for outcome in outcomes:
                if outcome is None:
                    return Wrong("a row rested; want a step of every row")
                if not all(0 <= token < self.subject.config.vocab_size for token in outcome.tokens):
                    return Wrong(f"tokens {outcome.tokens} are not of the vocabulary")
            seen.add(tuple(tuple(outcome.tokens) for outcome in outcomes))
            if len(seen) == 2:
                break
        self.decoding.rewind()
        is_constant = index == 0 and len(seen) == 1
        return Wrong("three steps on different tokens chose the same") if is_constant else None

    def weights_changed(self) -> Wrong | None:
        return None

    def step_energy(self, window: Callable[[], EnergyWindow]) -> tuple[Fact, int]:
        raise AssertionError("its calls hold nothing else")

    def next_us(self) -> float:
        """Mean of a block of steps: each chooses its experts anew."""
        steps = self._block
        self.decoding.rewind()
        first = self._number
        self._number += steps
        times = self._clock.times_ms(lambda n: self.decoding.next_tokens(first + n), self.decoding.replay, steps)
        return statistics.fmean(times) * 1000

    def add_details(self, result: ModelResult) -> ModelResult:
        clock, decoding, subject = self._clock, self.decoding, self.subject
        decoding.rewind()
        assert result.ms is not None, "details are of what has a time"
        host_share = _with_host(decoding, clock, REPLAYS) / result.ms - 1 if clock.is_cuda else None
        decoding.rewind()
        is_profiled = self.scenario.profiled and clock.is_cuda
        launches, kernels = kernels_of(decoding.replay) if is_profiled else (None, [])
        sets = subject.model.description.expert_sets
        return replace(
            result,
            host_share=host_share,
            launches=launches,
            kernels=kernels,
            memory={
                "weights": subject.weight_bytes,
                "kv_full": decoding.full_bytes,
                "kv_sliding": decoding.sliding_bytes,
                "cache_predicted": decoding.predicted_bytes,
                "cache_measured": decoding.allocated_bytes,
                "allocated": self._opened,
                "activations_and_workspace": max(clock.peak() - self._opened, 0),
                "device_in_use": clock.in_use(),
                **unused(subject.device),
            },
            memory_predicted={
                "weights": held_weight_bytes(subject.config, subject.stored, sets),
                **cached_bytes(subject.config, self._context, self.scenario.batch),
            },
        )


class _Prompt:
    """A prompt after a depth, in chunks."""

    distinct: Sequence[float] = ()

    def __init__(self, subject: SyntheticSubject, scenario: Scenario) -> None:
        self.subject, self._clock = subject, subject.clock
        self.clock, self._is_profiled = subject.clock.name, scenario.profiled
        self.tokens_a_call = scenario.chunk
        starts = range(scenario.context, scenario.context + scenario.chunk, CHUNK_TOKENS)
        end = scenario.context + scenario.chunk
        self._chunks = [subject.model.chunk(start, min(CHUNK_TOKENS, end - start)) for start in starts]
        self._opened = subject.clock.allocated()

    def _run(self) -> None:
        for chunk in self._chunks:
            chunk.run()

    def run_checked(self, index: int = 0) -> Wrong | None:
        """It runs: what it leaves behind are keys and values, which decoding is judged by."""
        if index == 0:
            self._run()
            self._clock.wait()
        return None

    def weights_changed(self) -> Wrong | None:
        return None

    def step_energy(self, window: Callable[[], EnergyWindow]) -> tuple[Fact, int]:
        raise AssertionError("its calls hold nothing else")

    def next_us(self) -> float:
        return self._clock.times_ms(lambda number: None, self._run, 1)[0] * 1000

    def add_details(self, result: ModelResult) -> ModelResult:
        is_profiled = self._is_profiled and self._clock.is_cuda
        launches, kernels = kernels_of(self._run) if is_profiled else (None, [])
        memory = {"allocated": self._opened, "activations_and_workspace": self._clock.peak() - self._opened}
        return replace(result, launches=launches, kernels=kernels, memory=memory)


def _with_host(decoding: Decoding, clock: "_Clock", replays: int) -> float:
    """Milliseconds of a step that the host starts, and whose result it reads while the next one runs."""
    before: Any = None
    decoding.step()
    clock.wait()
    started = time.perf_counter()
    for _ in range(replays):
        fetched = decoding.step()
        if before is not None:
            before.outcomes()
        before = fetched
    before.outcomes()
    return (time.perf_counter() - started) * 1000 / replays


class _Clock:
    """Time and memory of a device; on a CPU, of this process's own clock."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self.is_cuda = torch.device(device).type == "cuda"
        self.name = "cuda_events" if self.is_cuda else "perf_counter"

    def wait(self) -> None:
        if self.is_cuda:
            self._cuda.synchronize()

    def times_ms(self, before: Callable[[int], None], call: Callable[[], None], count: int) -> list[float]:
        """Each call's time; ``before(number)`` comes first and is not counted."""
        if not self.is_cuda:
            times = []
            for number in range(count):
                before(number)
                started = time.perf_counter()
                call()
                times.append((time.perf_counter() - started) * 1000)
            return times
        pairs = []
        for number in range(count):
            before(number)
            pair = tuple(self._cuda.Event(enable_timing=True) for _ in range(2))
            pair[0].record()
            call()
            pair[1].record()
            pairs.append(pair)
        self._cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]

    def allocated(self) -> int:
        return int(self._cuda.memory_allocated()) if self.is_cuda else 0

    def reset_peak(self) -> None:
        if self.is_cuda:
            self._cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return int(self._cuda.max_memory_allocated()) if self.is_cuda else 0

    def in_use(self) -> int:
        if not self.is_cuda:
            return 0
        free, total = self._cuda.mem_get_info()
        return int(total - free)


def kernels_of(call: Callable[[], None]) -> tuple[int | None, list[dict[str, Any]]]:
    """How many kernels a call launches, and the longest by name; nothing where the device's counters are closed."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            call()
            torch.cuda.synchronize()
    except RuntimeError:
        return None, []
    rows: dict[str, list[float]] = {}
    for event in profiled.events() or []:
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        rows.setdefault(event.name, []).append(float(event.device_time_total))
    if not rows:
        return None, []
    longest = sorted(rows.items(), key=lambda row: -sum(row[1]))[:KERNELS_LISTED]
    listed = [{"kernel": name[:80], "launches": len(times), "us": sum(times)} for name, times in longest]
    return sum(len(times) for times in rows.values()), listed

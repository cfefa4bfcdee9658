"""The whole model of a geometry, timed: steps of decoding, of speculation, of batches, and chunks of prompts.

An engine takes part that has ``synthetic_model(config, format, seed, correlation)``: random weights, made on the
device, so that neither a checkpoint nor a download is needed. The most important measurements come first, and none is
begun once the budget of time is spent.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from reference.config import ModelConfig

from .cost import US_PER_S, Ceilings
from .model_cost import FORMATS, expected_distinct, prefill_cost, step_bytes
from .timing import spread

REPLAYS = 24
DISTINCT_DRAWS = 4
KERNELS_LISTED = 24
ACCEPTANCE_LENGTHS = (1.0, 2.0, 2.5, 3.0, 3.5, 4.0)


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


@dataclass(frozen=True)
class Scenario:
    """One measurement: a step of decoding, or with ``chunk`` tokens a chunk of a prompt after ``context`` tokens."""

    batch: int
    context: int
    num_drafts: int = 0
    chunk: int = 0
    profiled: bool = False

    @property
    def name(self) -> str:
        if self.chunk:
            return f"prefill {self.chunk} after {self.context}"
        drafts = f", MTP-{self.num_drafts}" if self.num_drafts else ""
        return f"decode {self.batch} x {self.context}{drafts}"


GPU_SCENARIOS = (
    Scenario(1, 4096, profiled=True),
    Scenario(1, 4096, num_drafts=3, profiled=True),
    Scenario(1, 262_144),
    Scenario(1, 262_144, num_drafts=3),
    Scenario(1, 32_768),
    Scenario(1, 131_072),
    Scenario(1, 4096, num_drafts=1),
    Scenario(1, 4096, num_drafts=2),
    Scenario(8, 4096, profiled=True),
    Scenario(32, 4096),
    Scenario(128, 2048),
    Scenario(1, 0, chunk=8192, profiled=True),
    Scenario(1, 24_576, chunk=8192),
    Scenario(1, 122_880, chunk=8192),
    Scenario(1, 253_952, chunk=8192),
)
CPU_SCENARIOS = (Scenario(2, 96), Scenario(1, 96, num_drafts=3), Scenario(1, 0, chunk=48))


@dataclass(frozen=True)
class ModelResult:
    """One scenario.

    Attributes:
        ms: median over steps; None where it was not measured, for ``reason``.
        tokens_per_s: of all sequences, without any accepted draft; of a prompt's tokens for a chunk.
        read_bytes: what a step cannot avoid reading, by what it is.
        floor_ms: those bytes, or the arithmetic of a chunk, at the ceilings of the same run.
        ratio: ms / floor_ms.
        distinct: experts touched, mean over layers and draws; expected: of uniform, independent choices.
        host_share: what a step takes longer where the host starts each one and reads its result.
        launches: kernels of one step; kernels: the longest of them, with their number and their time together.
        memory: bytes, predicted and measured.
    """

    name: str
    scenario: Mapping[str, Any]
    ms: float | None = None
    spread: float | None = None
    tokens_per_s: float | None = None
    read_bytes: Mapping[str, float] = field(default_factory=dict)
    flops: float | None = None
    floor_ms: float | None = None
    bound: str = ""
    ratio: float | None = None
    distinct: float | None = None
    expected: float | None = None
    host_share: float | None = None
    launches: int | None = None
    kernels: Sequence[Mapping[str, Any]] = ()
    memory: Mapping[str, float] = field(default_factory=dict)
    prepared_s: float | None = None
    reason: str = ""


def measure_all(
    model: Measured,
    config: ModelConfig,
    format: str,
    scenarios: Sequence[Scenario],
    device: str,
    ceilings: Ceilings | None,
    budget_s: float,
    say: Callable[[ModelResult], None],
) -> list[ModelResult]:
    """Measure in order until the budget is spent; what is left says so."""
    import torch

    started, results = time.monotonic(), []
    for scenario in scenarios:
        fields = dataclasses.asdict(scenario)
        if time.monotonic() - started > budget_s:
            result = ModelResult(scenario.name, fields, reason=f"the budget of {budget_s:g} s was spent")
        else:
            try:
                with torch.inference_mode():
                    measure = _chunk if scenario.chunk else _decoding
                    result = measure(model, config, format, scenario, device, ceilings)
            except Exception as error:  # one that breaks is a result of its own, not the end of the others
                line = (str(error).strip().splitlines() or [""])[0]
                result = ModelResult(scenario.name, fields, reason=f"{type(error).__name__}: {line[:300]}")
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
        say(result)
        results.append(result)
    return results


def _decoding(
    model: Measured, config: ModelConfig, format: str, scenario: Scenario, device: str, ceilings: Ceilings | None
) -> ModelResult:
    clock = _Clock(device)
    clock.reset_peak()
    started = time.monotonic()
    decoding = model.decoding(scenario.batch, scenario.context, scenario.num_drafts, clock.is_cuda)
    opened = clock.allocated()
    decoding.next_tokens(0)
    decoding.step()
    clock.wait()
    prepared_s = time.monotonic() - started
    draws = [decoding.distinct_experts(number) for number in range(DISTINCT_DRAWS if clock.is_cuda else 1)]
    distinct = [statistics.mean(layer) for layer in zip(*draws, strict=True)]
    decoding.rewind()
    replays = REPLAYS if clock.is_cuda else 1
    times_ms = clock.times_ms(decoding.next_tokens, decoding.replay, replays)
    decoding.rewind()
    host_ms = _with_host(decoding, clock, replays) if clock.is_cuda else None
    ms = statistics.median(times_ms)
    launches, kernels = kernels_of(decoding.replay) if scenario.profiled and clock.is_cuda else (None, [])
    read = step_bytes(config, FORMATS[format], scenario.batch, scenario.context, scenario.num_drafts, distinct)
    floor_ms = sum(read.values()) / (ceilings.read_gb_per_s * 1e6) if ceilings else None
    uniform = expected_distinct(config, scenario.batch * (scenario.num_drafts + 1))
    memory = {
        "weights": model.weight_bytes,
        "kv_full": decoding.full_bytes,
        "kv_sliding": decoding.sliding_bytes,
        "cache_predicted": decoding.predicted_bytes,
        "cache_measured": decoding.allocated_bytes,
        "allocated": opened,
        "activations_and_workspace": clock.peak() - opened,
        "device_in_use": clock.in_use(),
    }
    return ModelResult(
        name=scenario.name,
        scenario=dataclasses.asdict(scenario),
        ms=ms,
        spread=spread(times_ms),
        tokens_per_s=scenario.batch / ms * 1000,
        read_bytes=read,
        floor_ms=floor_ms,
        bound="memory",
        ratio=ms / floor_ms if floor_ms else None,
        distinct=statistics.mean(distinct) if distinct else None,
        expected=statistics.mean(uniform.values()) if uniform else None,
        host_share=host_ms / ms - 1 if host_ms is not None else None,
        launches=launches,
        kernels=kernels,
        memory=memory,
        prepared_s=prepared_s,
    )


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


def _chunk(
    model: Measured, config: ModelConfig, format: str, scenario: Scenario, device: str, ceilings: Ceilings | None
) -> ModelResult:
    clock = _Clock(device)
    clock.reset_peak()
    started = time.monotonic()
    chunk = model.chunk(scenario.context, scenario.chunk)
    opened = clock.allocated()
    chunk.run()
    clock.wait()
    prepared_s = time.monotonic() - started
    times_ms = clock.times_ms(lambda number: None, chunk.run, 3 if clock.is_cuda else 1)
    launches, kernels = kernels_of(chunk.run) if scenario.profiled and clock.is_cuda else (None, [])
    ms, cost = statistics.median(times_ms), prefill_cost(config, FORMATS[format], scenario.context, scenario.chunk)
    floor_ms, bound = None, "compute"
    if ceilings:
        compute_ms = cost.flops / (ceilings.tflops["bf16"] * 1e12) * US_PER_S / 1000
        memory_ms = cost.hbm_bytes / (ceilings.read_gb_per_s * 1e6)
        floor_ms, bound = max(compute_ms, memory_ms), "compute" if compute_ms >= memory_ms else "memory"
    return ModelResult(
        name=scenario.name,
        scenario=dataclasses.asdict(scenario),
        ms=ms,
        spread=spread(times_ms),
        tokens_per_s=scenario.chunk / ms * 1000,
        flops=cost.flops,
        floor_ms=floor_ms,
        bound=bound,
        ratio=ms / floor_ms if floor_ms else None,
        launches=launches,
        kernels=kernels,
        memory={"allocated": opened, "activations_and_workspace": clock.peak() - opened},
        prepared_s=prepared_s,
    )


class _Clock:
    """Time and memory of a device; on a CPU, of this process's own clock."""

    def __init__(self, device: str) -> None:
        import torch

        self._cuda: Any = torch.cuda
        self.is_cuda = torch.device(device).type == "cuda"

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


def speculation(results: Sequence[ModelResult]) -> list[dict[str, Any]]:
    """What drafts bring at assumed acceptance lengths, and the length from which on they pay; by context."""
    plain = {r.scenario["context"]: r.ms for r in results if r.ms and _is_single(r) and not r.scenario["num_drafts"]}
    rows = []
    for result in results:
        base = plain.get(result.scenario["context"])
        if not result.ms or not base or not _is_single(result) or not result.scenario["num_drafts"]:
            continue
        most = result.scenario["num_drafts"] + 1
        rates = {str(n): n / result.ms * 1000 for n in ACCEPTANCE_LENGTHS if n <= most}
        rows.append(
            {"name": result.name, "break_even_tokens_per_step": result.ms / base, "tokens_per_s_at_length": rates}
        )
    return rows


def _is_single(result: ModelResult) -> bool:
    return bool(result.scenario["batch"] == 1 and not result.scenario["chunk"])


COLUMNS = ("what", "ms", "spread", "tokens/s", "GB", "floor ms", "ratio", "experts", "uniform", "host", "launches")


def table(results: Sequence[ModelResult]) -> str:
    """One line a scenario, columns aligned."""
    lines = [COLUMNS, *(_cells(result) for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + (f"  not measured: {result.reason}" if result is not None and result.reason else "")
        for line, result in zip(lines, [None, *results], strict=True)
    )


def _cells(result: ModelResult) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    gigabytes = sum(result.read_bytes.values()) / 1e9 if result.read_bytes else None
    return (
        result.name,
        *(number(result.ms, ".3f"), number(result.spread, ".1%"), number(result.tokens_per_s, ".1f")),
        *(number(gigabytes, ".3f"), number(result.floor_ms, ".3f"), number(result.ratio, ".2f")),
        *(number(result.distinct, ".1f"), number(result.expected, ".1f"), number(result.host_share, ".1%")),
        number(result.launches, "d"),
    )

"""The whole model, timed: steps of decoding, of speculation, of batches, and prompts.

`pytest perf/` and `s35 perf model` measure the same scenarios by this code.

Either a checkpoint is measured, through the protocol that the judge uses and on real text (``checkpoint_work``), or a
geometry with random weights, for which an engine has ``synthetic_model`` (``synthetic_work``). The most important
scenarios come first, and none is begun once the budget of time is spent.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hardware.energy import EnergyWindow
from hardware.machine import Fact
from hardware.telemetry import Telemetry
from reference.config import ModelConfig
from reports.records import ACCEPTANCE_LENGTHS

from .carve_out import CarveOut
from .cost import Ceilings
from .measure import MOST_NOISE, Outcome, Work, measure
from .model_cost import Stored, expected_distinct, prefill_cost, step_bytes
from .sampling import StopRule
from .timing import spread
from .workload import Wrong

GENERATED, GENERATED_SMALL = 128, 32
SMALL_CONTEXT = 4096  # positions, at most, of a model that is measured at small depths
SETTLING = 8  # tokens that are generated before those that are timed


@dataclass(frozen=True)
class Scenario:
    """One measurement: steps of decoding after ``context`` tokens, or with ``chunk`` tokens a prompt after those."""

    batch: int
    context: int
    num_drafts: int = 0
    chunk: int = 0
    profiled: bool = False
    generated: int = GENERATED
    extends: bool = False  # steps of sessions, a token each, through ``extend_batch``

    @property
    def name(self) -> str:
        """In the words of llama-bench."""
        if self.chunk:
            return f"pp{self.chunk}" + (f" @ d{self.context}" if self.context else "")
        name = f"tg{self.generated} @ d{self.context}"
        name += f", batch {self.batch}" if self.batch > 1 or self.extends else ""
        name += " by extend_batch" if self.extends else ""
        return name + (f", MTP-{self.num_drafts}" if self.num_drafts else "")


GPU_SCENARIOS = (
    Scenario(1, 4096, profiled=True),
    Scenario(1, 4096, num_drafts=3, profiled=True),
    Scenario(1, 262_144),
    Scenario(1, 262_144, num_drafts=3),
    Scenario(1, 32_768),
    Scenario(1, 131_072),
    Scenario(1, 0),
    Scenario(1, 0, chunk=8192, profiled=True),
    Scenario(1, 0, chunk=512),
    Scenario(1, 0, chunk=2048),
    Scenario(1, 0, chunk=32_768),
    Scenario(8, 4096, profiled=True),
    Scenario(1, 4096, num_drafts=1),
    Scenario(1, 4096, num_drafts=2),
    Scenario(32, 4096),
    Scenario(128, 2048),
    Scenario(1, 24_576, chunk=8192),
    Scenario(1, 122_880, chunk=8192),
    Scenario(1, 253_952, chunk=8192),
)
CPU_SCENARIOS = (Scenario(2, 96), Scenario(1, 96, num_drafts=3), Scenario(1, 0, chunk=48))
PROMPTS = (512, 1024, 2048, 8192, 32_768)
DEPTHS = (0, 4096, 32_768, 131_072)
DEPTHS_SMALL = (0, 512, 1024)
BATCHES = (1, 2, 4, 8)


def scenarios_of(config: ModelConfig) -> tuple[Scenario, ...]:
    """Those of a checkpoint: as far as its positions reach; a small model generates less at smaller depths."""
    positions = config.max_position_embeddings
    small = positions <= SMALL_CONTEXT
    generated = GENERATED_SMALL if small else GENERATED
    deepest = (positions - generated - SETTLING - 1) // 256 * 256
    depths = [depth for depth in (DEPTHS_SMALL if small else DEPTHS) if depth < deepest]
    middle = depths[1] if len(depths) > 1 else 0
    most = config.num_nextn_predict_layers
    found = [Scenario(1, middle), *([Scenario(1, middle, num_drafts=most)] if most else [])]
    found += [Scenario(1, depth) for depth in dict.fromkeys((*depths, deepest)) if depth != middle]
    found += [Scenario(1, 0, chunk=length) for length in PROMPTS if length + SETTLING < positions]
    found += [Scenario(1, deepest, num_drafts=most)] if most and deepest > middle else []
    found += [Scenario(1, middle, num_drafts=drafts) for drafts in range(1, most)]
    found += [Scenario(batch, middle, extends=True) for batch in BATCHES]
    return tuple(replace(one, generated=generated) for one in found)


@dataclass(frozen=True)
class ModelResult:
    """One scenario.

    Attributes:
        ms: median over samples, of a step or a prompt; None where it was not measured, for ``reason``.
        tokens_per_s: of all sequences, without any accepted draft; of a prompt's tokens for a chunk.
        generated_per_s: with the drafts that were accepted; None where weights are random.
        read_bytes: what a step cannot avoid reading, by what it is.
        floor_ms: those bytes, or the arithmetic of a chunk, at the ceilings of the same run.
        ratio: ms / floor_ms.
        distinct: experts touched, mean over layers and draws; expected: of uniform, independent choices.
        host_share: what a step takes longer where the host starts each one and reads its result.
        launches: kernels of one step; kernels: the longest of them, with their number and their time together.
        memory: bytes, by part; ``memory_predicted`` by formula.
        samples_us, warmup, stop, clock, suspicions: as ``measure`` has them.
        wrong: why its output is none; then it has no time.
        offered: False: the engine has no such thing, for ``reason``.
        energy: millijoules or the reason why they were not counted, tokens (of drafts on random weights, steps of each
            sequence), source and scope.
        acceptance: tokens a step, and the share of drafts that were accepted, by position.
        text: what it was measured on.
    """

    name: str
    scenario: Mapping[str, Any]
    ms: float | None = None
    spread: float | None = None
    tokens_per_s: float | None = None
    generated_per_s: float | None = None
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
    memory_predicted: Mapping[str, float] = field(default_factory=dict)
    prepared_s: float | None = None
    samples_us: tuple[float, ...] = ()
    warmup: int | None = None
    stop: str | None = None
    clock: str | None = None
    suspicions: tuple[str, ...] = ()
    wrong: str | None = None
    offered: bool = True
    energy: Mapping[str, Any] = field(default_factory=dict)
    acceptance: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    reason: str = ""


class NotOfferedError(Exception):
    """The engine has no such thing; the message says what."""


class ModelWork(Work, Protocol):
    """One scenario, opened.

    Attributes:
        clock: as ``reports.measurement`` names it.
        distinct: experts that a step touches in each layer that has them; empty where nobody can see.
        tokens_a_call: that ``next_us`` reads or emits, energy's divisor; 0: it does both.
    """

    clock: str
    distinct: Sequence[float]

    @property
    def tokens_a_call(self) -> int: ...

    def next_us(self) -> float:
        """Microseconds of one more step, or prompt."""
        ...

    def step_energy(self, window: Callable[[], EnergyWindow]) -> tuple[Fact, int]:
        """Millijoules and tokens of steps alone, where a call holds more than those."""
        ...

    def add_details(self, result: ModelResult) -> ModelResult:
        """What is known after timing: memory, kernels, acceptance."""
        ...


class Subject(Protocol):
    """A whole model that is measured.

    Attributes:
        stored: formats of its weights; None: not known, so nothing has a floor.
        text: what it is measured on.
    """

    config: ModelConfig

    @property
    def stored(self) -> Stored | None: ...

    text: str
    weight_bytes: int

    def open(self, scenario: Scenario) -> ModelWork:
        """Get ready.

        Raises:
            NotOfferedError: the engine has no such thing.
        """
        ...

    def description(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class How:
    """How scenarios are measured.

    Attributes:
        watch, carve_out: as of ``measure``.
        energy: makes what reads the counters around the samples.
    """

    rule: StopRule
    ceilings: Ceilings | None = None
    watch: Callable[[], Telemetry] | None = None
    carve_out: CarveOut | None = None
    most_noise: float = MOST_NOISE
    energy: Callable[[], EnergyWindow] | None = None


class _WorkTimer:
    """Lets a scenario time itself; weights alone exceed every cache, and each sample reads other tokens."""

    cache = "cold"

    def __init__(self, clock: str) -> None:
        self.clock = clock

    def prepare(self, work: ModelWork) -> Callable[[], float]:
        return work.next_us

    def verify(self, work: ModelWork) -> Wrong | None:
        return work.run_checked(1)


def measure_scenario(subject: Subject, scenario: Scenario, how: How) -> ModelResult:
    """Open, check, time, check again; one that breaks is a result of its own, not the end of the others."""
    import torch

    blank = ModelResult(scenario.name, dataclasses.asdict(scenario), text=subject.text)
    started = time.monotonic()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what is free again counts as used where room for caches is planned
    try:
        with torch.inference_mode():
            work = subject.open(scenario)
            prepared_s = time.monotonic() - started
            energy = how.energy() if how.energy else None
            outcome = measure(work, _WorkTimer(work.clock), how.rule, how.watch, how.carve_out, how.most_noise, energy)
            blank = replace(blank, prepared_s=prepared_s)
            result = _timed(blank, subject, scenario, work, outcome, how.ceilings, how.energy)
            return work.add_details(result) if result.ms is not None else result
    except NotOfferedError as error:
        return replace(blank, offered=False, reason=str(error))
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        return replace(blank, reason=f"{type(error).__name__}: {line[:300]}")


def measure_all(
    subject: Subject, scenarios: Sequence[Scenario], how: How, budget_s: float, say: Callable[[ModelResult], None]
) -> list[ModelResult]:
    """Measure in order until the budget is spent; what is left says so."""
    started, results = time.monotonic(), []
    for scenario in scenarios:
        if time.monotonic() - started > budget_s:
            spent = f"the budget of {budget_s:g} s was spent"
            result = ModelResult(scenario.name, dataclasses.asdict(scenario), reason=spent)
        else:
            result = measure_scenario(subject, scenario, how)
        say(result)
        results.append(result)
    return results


def _timed(
    blank: ModelResult,
    subject: Subject,
    scenario: Scenario,
    work: ModelWork,
    outcome: Outcome,
    ceilings: Ceilings | None,
    energy: Callable[[], EnergyWindow] | None,
) -> ModelResult:
    samples = outcome.samples
    if samples is None:
        return replace(blank, wrong=outcome.wrong, reason=outcome.wrong or "not timed", clock=outcome.clock)
    us = statistics.median(samples.us)
    if us <= 0:
        return replace(blank, reason="the difference of two times is not positive: this machine is too busy to tell")
    tokens = scenario.chunk or scenario.batch
    spent, over = outcome.energy_mj, outcome.energy_calls * work.tokens_a_call
    if not over and energy and outcome.energy_scope:
        spent, over = work.step_energy(energy)
    counted = {
        "millijoules": spent.value,
        "tokens": over,
        "source": spent.source,
        "reason": spent.reason,
        "scope": outcome.energy_scope,
    }
    result = replace(
        blank,
        ms=us / 1000,
        spread=spread(samples.us),
        tokens_per_s=tokens / us * 1e6,
        samples_us=samples.us,
        warmup=samples.warmup,
        stop=samples.stop,
        clock=outcome.clock,
        suspicions=outcome.suspicions,
        energy=counted,
    )
    return _with_floor(result, subject, scenario, work.distinct, ceilings)


def _with_floor(
    result: ModelResult, subject: Subject, scenario: Scenario, distinct: Sequence[float], ceilings: Ceilings | None
) -> ModelResult:
    """The bytes that a step cannot avoid, or the arithmetic of a prompt, at the ceilings of this run."""
    stored, config = subject.stored, subject.config
    if stored is None:
        return result
    if scenario.chunk:
        cost = prefill_cost(config, stored, scenario.context, scenario.chunk)
        result = replace(result, flops=cost.flops)
        if not ceilings or result.ms is None:
            return result
        compute_ms = cost.flops / ceilings.tflops["bf16"] / 1e9
        memory_ms = cost.hbm_bytes / (ceilings.read_gb_per_s * 1e6)
        floor_ms, bound = max(compute_ms, memory_ms), "compute" if compute_ms >= memory_ms else "memory"
        return replace(result, floor_ms=floor_ms, bound=bound, ratio=result.ms / floor_ms)
    uniform = expected_distinct(config, scenario.batch * (scenario.num_drafts + 1)).values()
    context = min(scenario.context + scenario.generated // 2, config.max_position_embeddings)  # on average
    read = step_bytes(config, stored, scenario.batch, context, scenario.num_drafts, distinct or list(uniform))
    result = replace(
        result,
        read_bytes=read,
        distinct=statistics.mean(distinct) if distinct else None,
        expected=statistics.mean(uniform) if uniform else None,
    )
    if not ceilings or result.ms is None:
        return result
    floor_ms = sum(read.values()) / (ceilings.read_gb_per_s * 1e6)
    return replace(result, floor_ms=floor_ms, bound="memory", ratio=result.ms / floor_ms)


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

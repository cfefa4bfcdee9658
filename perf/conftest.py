"""``pytest perf/``: options, what is measured on, what is recorded, and how the session ends."""

from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance.engine import find_engine, move
from hardware.energy import EnergyWindow, counters_of
from hardware.identify import identify
from hardware.machine import Fact
from hardware.telemetry import GpuState, Telemetry, read_gpu
from reports.baseline import key_of, load
from reports.gate import compare_entry, counted
from reports.journal import Journal
from reports.measurement import Comparison, Measurement, Quality
from reports.records import break_even, main_of, of_scenario
from reports.verdict import Verdict
from s35_progress import Progress, bar_of

from .benchmark import replay, set_clock
from .carve_out import DriverCarveOut
from .case import Case
from .measure import MOST_NOISE, DeviceTimer, HostTimer, Outcome, Timer, measure
from .model import How, NotOfferedError, Scenario, Subject, measure_scenario
from .recording import Recording, doubts_about, settings_of
from .sampling import StopRule
from .shapes import PUBLISHED
from .whole import WEIGHTS, Wanted, subject_of
from .workload import Workload, cold_sets

RECORDING: pytest.StashKey[Recording] = pytest.StashKey()
BEFORE: pytest.StashKey[GpuState | Fact] = pytest.StashKey()
HOST_SETS = 4
UNUSED = "ignore:Benchmark fixture was not used"  # by a test that failed or was skipped before it had times
SCENARIO = (
    "only the scenario of the whole model of this name, as in 'tg128 @ d4096', or those with it in their name; may be "
    "repeated; without --op, no operators; with --op and without this, no scenarios"
)
RERUNS = 2  # of a suspected regression, before it counts


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("perf", "how fast an inference engine is; also --engine and --device")
    group.addoption("--op", action="append", default=[], metavar="ROW", help="only this operator; may be repeated")
    group.addoption("--scenario", action="append", default=[], metavar="TEXT", help=SCENARIO)
    group.addoption("--weights", choices=WEIGHTS, help="of the whole model; default: synthetic on a GPU, without "
                    "--checkpoint; else the checkpoint's")  # fmt: skip
    group.addoption("--config", type=Path, default=PUBLISHED, metavar="FILE", help="of synthetic weights")
    group.addoption("--format", choices=("int4", "fp8", "bf16"), default="int4", help="of synthetic experts (int4)")
    group.addoption("--prompts", metavar="FILE", help="text, .jsonl or hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]; default: "
                    "the packaged text")  # fmt: skip
    group.addoption("--budget", type=float, metavar="S", help="begin nothing after S seconds; --resume goes on")
    group.addoption("--only", action="append", default=[], metavar="ID", help="only this measurement; may be repeated")
    group.addoption("--results", type=Path, metavar="FILE.jsonl", help="write each measurement there, as it is made")
    group.addoption("--resume", action="store_true", help="go on with --results where it was interrupted")
    group.addoption("--baseline", type=Path, metavar="FILE.json", help="what `s35 baseline record` wrote")
    group.addoption("--max-regression", type=float, default=0.05, metavar="X", help="that is allowed (default: 0.05)")
    group.addoption("--max-noise", type=float, default=MOST_NOISE, metavar="X", help=f"default: {MOST_NOISE:g}")
    group.addoption("--min-time", type=float, default=0.5, metavar="S", help="of sampling (default: 0.5)")
    group.addoption("--max-time", type=float, default=15.0, metavar="S", help="of sampling (default: 15)")
    group.addoption("--warm", action="store_true", help="time warm caches, too")


def pytest_configure(config: pytest.Config) -> None:
    """Set up the recording before anything is collected: a baseline of another machine ends the session at once."""
    for line in ("default", UNUSED):  # what an engine warns of is shown, and is no wrong output
        config.addinivalue_line("filterwarnings", line)
    if hasattr(config, "workerinput"):
        raise pytest.UsageError("perf: is started with xdist; want one process, as others' work is in every timing")
    device = config.getoption("--device") or "cpu"
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(torch.device(device).type, True):
        pytest.exit(f"INCONCLUSIVE: device {device} is not here; nothing was timed", pytest.ExitCode.NO_TESTS_COLLECTED)
    index = torch.device(device).index or 0
    gpu = device.startswith("cuda")
    config.stash[BEFORE] = read_gpu(index) if gpu else Fact(None, "nvml", f"{device} is no NVIDIA GPU")
    machine = asdict(identify(device))
    engine = config.getoption("--engine")
    settings = settings_of(
        engine,
        device,
        config.getoption("--op"),
        {
            "threads": None if gpu else torch.get_num_threads(),
            "shapes": "nano" if device == "cpu" else "published",
            "warm": config.getoption("--warm"),
            "min_time_s": config.getoption("--min-time"),
            "scenarios": sorted(config.getoption("--scenario")),
            "model": Wanted.of(config).settings(),
        },
    )
    baseline = load(config.getoption("--baseline")) if config.getoption("--baseline") else None
    if baseline:
        differences = baseline.differences(key_of({"machine": machine, "settings": settings}))
        if differences:
            raise pytest.UsageError(f"baseline: is of another machine or engine: {'; '.join(differences)}")
    ceilings = None
    if gpu and not config.option.collectonly:
        from .ceilings import measure_ceilings

        ceilings = measure_ceilings()
    recording = Recording(
        subject=engine,
        hardware=machine["profile"]["value"],
        ceilings=ceilings,
        journal=_journal(config, settings, machine, asdict(ceilings) if ceilings else None),
        baseline=baseline,
        max_regression=config.getoption("--max-regression"),
        chosen=any(config.getoption(name) for name in ("--op", "--scenario", "--only", "keyword")),
        budget_s=config.getoption("--budget"),
    )
    stale = baseline.staleness() if baseline else None
    if stale:
        recording.doubts.append(stale)
    config.stash[RECORDING] = recording


def _journal(config: pytest.Config, settings: Any, machine: Any, ceilings: Any) -> Journal | None:
    path = config.getoption("--results")
    if path is None:
        if config.getoption("--resume"):
            raise pytest.UsageError("resume: has no --results; want the file to go on with")
        return None
    try:
        if config.getoption("--resume") and path.exists():
            return Journal.resume(path, settings)
        command = ["pytest", *config.invocation_params.args]
        return Journal.start(path, [str(word) for word in command], settings, machine, ceilings)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


class _Shown:
    """One bar for a session on a terminal, instead of pytest's letters; drawn between tests, which are captured."""

    def __init__(self, bar: Progress, reporter: Any) -> None:
        self._bar = bar
        if bar.is_shown:
            reporter.showfspath = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._bar.begin(nodeid.partition("[")[2].removesuffix("]"))

    def pytest_runtest_logfinish(self) -> None:
        self._bar.advance()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        is_quiet = self._bar.is_shown and (report.passed or report.skipped)
        return (report.outcome if report.when == "call" or report.skipped else "", "", "") if is_quiet else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._bar.stop()


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if session.items and reporter and config.option.verbose <= 0 and not config.option.collectonly:
        config.pluginmanager.register(_Shown(bar_of("measured", len(session.items)), reporter), "perf-progress")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    set_clock(item)


def pytest_report_header(config: pytest.Config) -> list[str]:
    recording = config.stash[RECORDING]
    shapes = "shapes of the miniature" if _device(config) == "cpu" else "published shapes"
    return [f"perf: {recording.subject} on {_device(config)}, {shapes}"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    empty = [item for item in items if any("empty parameter set" in str(mark) for mark in item.iter_markers("skip"))]
    items[:] = [item for item in items if item not in empty]  # operators, or scenarios, that nobody asked for
    config.stash[RECORDING].expected = sum("recorded" in getattr(item, "fixturenames", ()) for item in items)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, Any, Any]:
    """Give the verdict; an inconclusive session that would have ended well ends with pytest's 5."""
    recording = session.config.stash.get(RECORDING, None)
    if recording and not session.config.option.collectonly:
        failed = session.testsfailed
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            recording.doubts += doubts_about(session.config.stash[BEFORE], _after(session.config))
            verdict, reasons = recording.verdict(failed, recording.expected - failed)
            session.config.stash[VERDICT] = (verdict, reasons)
            if recording.journal and recording.was_cut_short:
                recording.journal.close()  # as below: what the budget left out may follow
            elif recording.journal:
                recording.journal.end(verdict, reasons)
            if verdict is Verdict.INCONCLUSIVE:
                session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        elif recording.journal:
            recording.journal.close()  # without an end: --resume goes on
    return (yield)


VERDICT: pytest.StashKey[tuple[Verdict, list[str]]] = pytest.StashKey()


def _after(config: pytest.Config) -> GpuState | Fact:
    before = config.stash[BEFORE]
    if isinstance(before, Fact):
        return before
    return read_gpu(torch.device(config.getoption("--device")).index or 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(VERDICT, None)
    if found:
        verdict, reasons = found
        for reason in reasons[1:]:
            terminalreporter.write_line(f"  {reason}")
        terminalreporter.write_line(f"{verdict}: {reasons[0]}", bold=True)


@pytest.fixture(scope="session")
def recording(pytestconfig: pytest.Config) -> Recording:
    """What this session collects."""
    return pytestconfig.stash[RECORDING]


@pytest.fixture(scope="session")
def rows(pytestconfig: pytest.Config) -> dict[str, Callable[..., Any]]:
    """The engine's operators on the device."""
    engine = find_engine(pytestconfig.getoption("--engine"))
    move(engine, pytestconfig.getoption("--device") or "cpu")
    return dict(engine.ops())


@pytest.fixture(scope="session")
def reference_rows(pytestconfig: pytest.Config) -> dict[str, Callable[..., Any]]:
    """The reference's, which outputs are compared with."""
    engine = find_engine("reference.engine:engine")
    move(engine, pytestconfig.getoption("--device") or "cpu")
    return dict(engine.ops())


@pytest.fixture
def device_benchmark() -> None:
    """Marks a test whose times are replayed to pytest-benchmark; ``pytest_runtest_setup`` sees its name."""


Measure = Callable[[], list[Measurement]]


@pytest.fixture
def recorded(
    request: pytest.FixtureRequest, benchmark: Any, recording: Recording, device_benchmark: None
) -> Callable[[Measurement, Measure], None]:
    """Measure, record, compare with the baseline, and fail what is wrong or slower.

    Its argument makes new measurements each time: what the test is about first, then what else was seen.
    """
    config = request.config

    def run(blank: Measurement, once: Measure) -> None:
        if config.getoption("--only") and blank.id not in config.getoption("--only"):
            pytest.skip("another measurement is asked for")
        if recording.journal and blank.id in recording.journal.done:
            done = recording.journal.done[blank.id]
            recording.measurements.append(done)
            if done.value is None and done.quality is not Quality.UNSUPPORTED:
                pytest.fail(f"{blank.name}: {done.reason}", pytrace=False)
            pytest.skip("resumed: measured before the interrupt")
        if recording.is_spent():
            pytest.skip(f"the budget of {config.getoption('--budget'):g} s was spent")
        if not benchmark.enabled:  # --benchmark-disable: one sample, which nobody keeps
            benchmark.pedantic(once)
            return
        measurement, *others = _judged(recording, once)
        for one in (*others, measurement):  # what is resumed by, last: a crash between them loses nothing
            recording.add(one)
        for name in ("value", "unit", "stop", "comparison", "smallest_detectable"):
            request.node.user_properties.append((name, getattr(measurement, name)))  # to JUnit, of either family
        if measurement.quality is Quality.UNSUPPORTED:
            pytest.skip(f"not supported: {measurement.reason}")
        if measurement.value is None:
            pytest.fail(f"{measurement.name}: {measurement.reason}", pytrace=False)
        info = {"clock": measurement.clock, "cache": measurement.cache, "stop": measurement.stop}
        replay(request.node, benchmark, _seconds(measurement), id=measurement.id, **info)
        if measurement.comparison is Comparison.SLOWER:
            pytest.fail(_slower(measurement), pytrace=False)

    return run


def _seconds(measurement: Measurement) -> list[float]:
    """Samples as pytest-benchmark wants them: of rates, the time of one token."""
    if measurement.better == "higher":
        return [1 / rate for rate in measurement.samples]
    unit_s = {"us": 1e-6, "ms": 1e-3}[measurement.unit]
    return [sample * unit_s for sample in measurement.samples]


@pytest.fixture
def timed(
    request: pytest.FixtureRequest,
    recorded: Callable[[Measurement, Measure], None],
    recording: Recording,
    rows: dict[str, Callable[..., Any]],
    reference_rows: dict[str, Callable[..., Any]],
) -> Callable[[Case, str], None]:
    """Time one case."""

    def run(case: Case, cache: str) -> None:
        operator, reference = _operator(case, rows, recording.subject), case.reference_of(reference_rows)

        def once() -> list[Measurement]:
            outcome = _once(request.config, case, cache, operator, reference)
            measurement = recording.measurement_of(case, outcome)
            energy = recording.energy_of(measurement, outcome)
            return [measurement, energy] if energy else [measurement]

        recorded(recording.measurement_of(case, Outcome(None, "not timed", "", cache)), once)

    return run


@pytest.fixture(scope="session")
def whole_model(pytestconfig: pytest.Config, recording: Recording) -> Subject | str:
    """The model that is measured, loaded or made once; or why there is none."""
    from .ops.bench_experts import forget_weights

    device = _device(pytestconfig)
    engine = find_engine(pytestconfig.getoption("--engine"))
    move(engine, device)
    forget_weights()  # of operators: a whole model needs the room
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        return subject_of(engine, device, Wanted.of(pytestconfig))
    except NotOfferedError as error:
        return str(error)


@pytest.fixture
def measured(
    request: pytest.FixtureRequest,
    recorded: Callable[[Measurement, Measure], None],
    recording: Recording,
) -> Callable[[Scenario], None]:
    """Time one scenario of the whole model."""
    config, hardware = request.config, recording.hardware
    how = How(_rule(config), recording.ceilings, *_guards(config), config.getoption("--max-noise"), _energy(config))
    name = recording.subject_of(Wanted.of(config).format_name)

    def run(scenario: Scenario) -> None:
        def once() -> list[Measurement]:
            try:
                subject = request.getfixturevalue("whole_model")  # late: what is resumed or not asked for loads nothing
            except ValueError as error:  # a file that is none, or too little memory
                pytest.fail(str(error), pytrace=False)
            if isinstance(subject, str):
                pytest.skip(f"no whole model: {subject}")
            result = asdict(measure_scenario(subject, replace(scenario, profiled=False), how))
            found = [recording.doubted(one) for one in of_scenario(result, name, hardware, "pytest perf/")]
            plain = recording.plain_of(found[0])
            return [*found, break_even(found[0], plain)] if plain and found[0].value else found

        recorded(replace(main_of(asdict(scenario), name, hardware), cache="cold"), once)

    return run


def _rule(config: pytest.Config) -> StopRule:
    if config.getoption("--benchmark-disable"):
        return StopRule(least_samples=1, least_s=0.0, most_s=0.0, most_warmup=0)
    return StopRule(least_s=config.getoption("--min-time"), most_s=config.getoption("--max-time"))


def _guards(config: pytest.Config) -> tuple[Callable[[], Telemetry] | None, DriverCarveOut | None]:
    """What watches a CUDA device meanwhile."""
    device = torch.device(_device(config))
    return (partial(Telemetry, device.index or 0), DriverCarveOut()) if device.type == "cuda" else (None, None)


def _energy(config: pytest.Config) -> Callable[[], EnergyWindow]:
    return lambda: EnergyWindow(counters_of(_device(config)))


def _device(config: pytest.Config) -> str:
    return str(config.getoption("--device") or "cpu")


def _operator(case: Case, rows: dict[str, Callable[..., Any]], subject: str) -> Callable[..., Any]:
    from .ops import fused

    if case.fused and subject.startswith("optimized"):
        return fused.find(case.fused)
    try:
        return case.operator_of(rows)
    except LookupError as error:
        pytest.skip(f"the engine has {error.args[0]}")


def _once(
    config: pytest.Config, case: Case, cache: str, operator: Callable[..., Any], reference: Callable[..., Any]
) -> Outcome:
    """One measurement from new inputs."""
    device = _device(config)
    with torch.inference_mode():
        work = Workload(case, operator, reference, device, _sets(case, device, cache))
        on_gpu = torch.device(device).type == "cuda"
        timer: Timer[Workload] = DeviceTimer(cache, case.waits) if on_gpu else HostTimer(cache, device=device)
        watch, carve_out = _guards(config)
        noise = config.getoption("--max-noise")
        return measure(work, timer, _rule(config), watch, carve_out, noise, _energy(config)())


def _sets(case: Case, device: str, cache: str) -> int:
    if cache == "warm":
        return 1
    if torch.device(device).type != "cuda":
        return HOST_SETS
    from .maker import Maker

    draw = case.build(Maker(device))
    return cold_sets(case, draw(), draw())


def _judged(recording: Recording, once: Measure) -> list[Measurement]:
    """Measure; where the baseline says slower, measure anew before believing it."""
    measurement, *others = once()
    entry = recording.entry_for(measurement)
    if measurement.value is None or recording.baseline is None:
        return [measurement, *others]
    if entry is None:
        return [replace(measurement, comparison=Comparison.NEW), *others]
    values = [measurement.value]
    compared = compare_entry(entry, values, recording.max_regression)
    if compared.word in (Comparison.SLOWER, Comparison.AMBIGUOUS):
        for _ in range(RERUNS):
            again, *_ = once()
            if again.value is None:
                return [again, *others]
            values.append(again.value)
        compared = compare_entry(entry, values, recording.max_regression)
    judged = replace(
        measurement,
        value=sorted(values)[len(values) // 2],
        baseline=entry.median,
        comparison=counted(compared, recording.max_regression),
        smallest_detectable=compared.smallest_detectable,
    )
    return [judged, *others]


def _slower(measurement: Measurement) -> str:
    assert measurement.value is not None, "a comparison has a value"
    assert measurement.baseline is not None, "a comparison has a baseline"
    return (
        f"{measurement.name}: {measurement.value:.4g} {measurement.unit}, in the baseline {measurement.baseline:.4g}: "
        f"{measurement.value / measurement.baseline - 1:+.1%}, measured {1 + RERUNS} times; with these runs a slowdown "
        f"of {measurement.smallest_detectable or 0:.1%} is detectable"
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Key pytest-benchmark's own JSON by the device, which it does not know of."""
    found = identify(_device(config))
    machine_info["s35"] = {
        "device": found.device,
        "profile": found.profile.value,
        "accelerators": [str(gpu.name) for gpu in found.accelerators],
        "torch": found.torch.value,
        "triton": found.triton.value,
        "commit": found.suite_commit.value,
        "recorded": datetime.now(UTC).date().isoformat(),
    }

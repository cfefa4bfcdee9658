"""The judge as a pytest plugin: options, the engine under test, records, verdict and exit code.

Only checks below ``conformance/`` are judged; other tests in the same session are left alone. Exit codes are
pytest's: 1 where a check failed, broke or timed out, 4 for an engine or option that is wrong, 5 where nothing failed
and a check, or the whole session, could not have caught a fault.
"""

import shlex
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from reference.checkpoint import Checkpoint
from reports.digest import checkpoint_sha256
from reports.known_failures import check_known_failures, gate, read_known_failures
from reports.levels import grants_sentence, judge_levels, level_of, read_levels
from reports.schema import (
    Capabilities,
    CheckRecord,
    ConformanceOutcome,
    EngineIdentity,
    KnownFailures,
    Status,
    Waiver,
    dumps,
)
from reports.verdict import WRONG, ExitCode, status_of, stayed_zero
from reports.waivers import check_waivers, read_waivers, waive

from .clauses import CLAUSES
from .counters import Counters
from .engine import EngineError, resolve
from .isolation import CHECK_LIMIT_S, EngineDiedError, EngineHungError, EngineProcess
from .localise import probable_part, smallest_parts
from .repro import write_reproduction
from .tolerance import ConformanceError
from .under_test import NOT_SUPPORTED, UnderTest

HERE = Path(__file__).parent
EMBEDDED_CHECKPOINT = HERE.parent / "reference" / "nano"
EXAMPLES = {"quick": 8, "full": 100}  # drawn by hypothesis, after every family and shape has been shown once
INCONCLUSIVE = pytest.ExitCode.NO_TESTS_COLLECTED  # 5
COUNTERS: pytest.StashKey[Counters] = pytest.StashKey()
LEVELS = read_levels(HERE / "levels.toml")
PROBABLE_PART = "probable part: "  # how the detail of a failure names it


@dataclass
class Session:
    """One session of the judge."""

    engine: UnderTest
    engine_option: str
    seed: int
    tier: str
    checkpoint: Path
    clause_of: Mapping[str, str]  # by id of every check that is to run
    waivers: tuple[Waiver, ...] = ()
    known_failures: KnownFailures | None = None
    records: dict[str, CheckRecord] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)  # that failures point to
    suspected: bool = False  # whether a failure was compared with the faults of the catalogue

    def outcome(self) -> ConformanceOutcome:
        """What the session leaves."""
        engine = self.engine
        return ConformanceOutcome(
            engine=EngineIdentity(engine.name, engine.profile.name, str(engine.device)),
            seed=self.seed,
            checks=tuple(self.records.get(id) or self._absent(id) for id in self.clause_of),
            tier=self.tier,
            checkpoint_sha256=checkpoint_sha256(self.checkpoint),
            capabilities=Capabilities(tuple(engine.rows), engine.not_offered),
            collected=tuple(self.clause_of),
            waivers=self.waivers,
            known_failures=self.known_failures,
        )

    def _absent(self, id: str) -> CheckRecord:
        why, profile = "did not run: the session ended before", self.engine.profile.name
        level = level_of(id, LEVELS)
        return CheckRecord(
            id, self.clause_of[id], level, profile, self.seed, Status.SKIPPED, 0.0, (), {}, {}, why, None
        )

    def reproduce(self, folder: Path, check_id: str, error: ConformanceError) -> Path:
        """Write a failed check as a script."""
        engine = resolve(self.engine_option)
        process = self.engine.process
        device = None if process.device is None else str(self.engine.device)
        return write_reproduction(folder, check_id, engine, device, error, process.calls)

    def rerun_command(self, check_id: str) -> str:
        options = [f"--engine={self.engine_option}", f"--seed={self.seed}", f"--tier={self.tier}"]
        if self.checkpoint != EMBEDDED_CHECKPOINT:
            options.append(f"--checkpoint={self.checkpoint}")
        return shlex.join(["pytest", check_id, *options])


SESSION: pytest.StashKey[Session] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "conformance of an inference engine")
    group.addoption("--engine", default="reference", metavar="NAME", help="registered name or module:attribute")
    group.addoption("--device", default=None, help="cpu, cuda, cuda:N or mps (default: the engine's own)")
    group.addoption("--tier", choices=tuple(EXAMPLES), default="quick", help="how many examples (default: quick)")
    group.addoption("--seed", type=int, default=0, help="of every generated input (default: 0)")
    group.addoption(
        "--checkpoint", type=Path, default=EMBEDDED_CHECKPOINT, metavar="DIR", help="default: reference/nano"
    )
    group.addoption("--checks", type=Path, default=None, metavar="FILE.json", help="write a record of each check")
    group.addoption("--waivers", type=Path, metavar="FILE.toml", help="justified exceptions; see reports/waivers.py")
    group.addoption(
        "--known-failures",
        type=Path,
        metavar="FILE.toml",
        help="ids of checks and why they fail: the exit code is then of all others, the verdict stays FAIL",
    )
    group.addoption("--without-suspect", metavar="FAULT", help="localise without this fault of the catalogue")
    group.addoption("--no-shrink", action="store_true", help="report the first example that fails, not the smallest")
    group.addoption("--repro", type=Path, metavar="DIR", help="write a stand-alone script for each failed check")
    group.addoption(
        "--time-limit",
        type=float,
        default=CHECK_LIMIT_S,
        metavar="SECONDS",
        help=f"of one check; an engine that is later is ended and started again (default: {CHECK_LIMIT_S:g})",
    )


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Import checks under the judge's settings of hypothesis, and other tests under their own."""
    if not (isinstance(collector, pytest.Module) and _is_ours(collector.path)):
        return (yield)
    tier = collector.config.getoption("--tier")
    shrink = [] if collector.config.getoption("--no-shrink") else [hypothesis.Phase.shrink]
    previous = hypothesis.settings.get_current_profile_name()
    name = f"conformance-{tier}"
    hypothesis.settings.register_profile(
        name,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        max_examples=EXAMPLES[tier],
        report_multiple_bugs=False,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, *shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile(name)
    try:
        return (yield)
    finally:
        hypothesis.settings.load_profile(previous)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Load the engine once there is something to judge, and seed every check."""
    ours = [item for item in items if _is_ours(item.path)]
    if not ours:
        return
    if config.getoption("--tier") == "quick":
        kept = [item for item in items if not (_is_ours(item.path) and item.get_closest_marker("full"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
        ours = [item for item in items if _is_ours(item.path)]
    for item in ours:
        cited = [marker.args[0] for marker in item.iter_markers("clause")]
        if len(cited) != 1 or cited[0] not in CLAUSES:
            raise pytest.UsageError(f"{item.nodeid}: cites {cited or 'no clause'}; want one clause of clauses.toml")
        item.stash[COUNTERS] = Counters()
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.function):
            hypothesis.seed(config.getoption("--seed"))(item.function)
    torch.set_num_threads(1)  # the checks' tensors are small: more threads cost more than they bring, on any machine
    if not config.option.collectonly:
        config.stash[SESSION] = _open(config, {item.nodeid: _clause_of(item) for item in ours})


def _open(config: pytest.Config, clause_of: Mapping[str, str]) -> Session:
    """Start the engine, and read what excuses it."""
    option = config.getoption
    try:
        waivers = read_waivers(option("--waivers"), datetime.now(UTC).date()) if option("--waivers") else ()
        check_waivers(waivers, clause_of, LEVELS)
        known = read_known_failures(option("--known-failures")) if option("--known-failures") else None
        if known is not None:
            check_known_failures(known, clause_of)
        Checkpoint(option("--checkpoint"))  # one that is broken is no engine's fault
        process = EngineProcess(option("--engine"), option("--device"), option("--time-limit"))
        config.add_cleanup(process.stop)
        engine = UnderTest(process)
    except (EngineError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
    judged_by = option("--seed"), option("--tier"), option("--checkpoint")
    return Session(engine, option("--engine"), *judged_by, clause_of, waivers, known)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the clock of a check."""
    if COUNTERS in item.stash and SESSION in item.config.stash:
        item.config.stash[SESSION].engine.process.begin_check()


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say what is judged, and how."""
    if SESSION not in config.stash:
        return []
    session = config.stash[SESSION]
    engine = session.engine
    return [
        f"conformance: engine {engine.name}, profile {engine.profile.name}, device {engine.device}, tier "
        f"{session.tier}, seed {session.seed}",
        f"conformance: checkpoint {session.checkpoint} {checkpoint_sha256(session.checkpoint)[:16]}",
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    report: pytest.TestReport = yield
    if COUNTERS not in item.stash:
        return report
    session, counters = item.config.stash[SESSION], item.stash[COUNTERS]
    fact, detail = _stated(call, report, counters)
    before = session.records.get(item.nodeid)
    if report.when != "call" and report.passed and (before is not None or report.when == "teardown"):
        return report
    record = CheckRecord(
        id=item.nodeid,
        clause=_clause_of(item),
        level=level_of(item.nodeid, LEVELS),
        profile=session.engine.profile.name,
        seed=session.seed,
        status=fact,
        duration_s=round(report.duration, 6),
        evidence=tuple(counters.evidence.values()),
        counters=dict(counters.counts),
        digests=session.engine.process.digests() | {"oracle": counters.oracle_digest},
        detail=detail,
        waiver=None,
    )
    record = replace(record, status=status_of(record) if report.when == "call" else fact)
    if record.status is Status.INCONCLUSIVE and report.when == "call":
        zeros = ", ".join(stayed_zero(record))
        why = f"stayed 0, so that no fault could show: {zeros}" if zeros else "a bound was infinite: it forbids nothing"
        record = replace(record, detail=why)
        report.user_properties.append(("conformance", Status.INCONCLUSIVE.value))
        report.sections.append(("conformance", record.detail))
    if record.status in WRONG:
        clause = CLAUSES[_clause_of(item)]
        detail += (
            f"\n{clause.id}: {clause.text}\nengine {session.engine.name}, profile {session.engine.profile.name}; "
            f"run this check again: {session.rerun_command(item.nodeid)}"
        )
        oracle = getattr(item, "funcargs", {}).get("oracle_model")
        without = item.config.getoption("--without-suspect")
        failure = getattr(_error(call), "failure", None)
        calls = session.engine.process.calls if not session.suspected else []  # once: it costs a minute
        part = probable_part(item.nodeid, clause.id, calls, failure, oracle, without)
        if part is not None:
            session.suspected |= oracle is not None
            session.parts.append(part)
            detail += f"\n{PROBABLE_PART}{part}"
        if (folder := item.config.getoption("--repro")) and isinstance(_error(call), ConformanceError):
            detail += f"\nreproduction: {session.reproduce(folder, item.nodeid, _error(call))}"
        record = replace(record, detail=detail)
        if call.excinfo is not None and isinstance(call.excinfo.value, ConformanceError | EngineDiedError):
            report.longrepr = detail  # a verdict needs no traceback through the judge
        else:
            report.sections.append(("conformance", detail))
    session.records[item.nodeid] = waive([record], session.waivers)[0]
    return report


def _error(call: pytest.CallInfo[None]) -> Any:
    return call.excinfo.value if call.excinfo is not None else None


def _stated(call: pytest.CallInfo[None], report: pytest.TestReport, counters: Counters) -> tuple[Status, str]:
    """What a phase of a check states: how it ended, and why; evidence has the last word."""
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if reason.startswith(NOT_SUPPORTED):
            return Status.NOT_SUPPORTED, reason.removeprefix(NOT_SUPPORTED)
        return Status.SKIPPED, reason
    if not report.failed:
        return Status.INCONCLUSIVE, ""  # until the evidence is read
    assert call.excinfo is not None, "a failed phase has its exception"
    error = call.excinfo.value
    text = "\n".join([str(error), *getattr(error, "__notes__", [])])
    if isinstance(error, EngineHungError):
        return Status.TIMEOUT, text
    if isinstance(error, EngineDiedError):
        return Status.ERROR, text
    if isinstance(error, ConformanceError):
        if not counters.beyond:
            counters.broke(str(error).partition("\n")[0])
        return Status.FAILED, text
    return Status.ERROR, f"{type(error).__name__}: {text}"


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    if report.when == "call" and ("conformance", Status.INCONCLUSIVE.value) in report.user_properties:
        return "inconclusive", "I", "INCONCLUSIVE"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the engine and write the records; a session that judged nothing, or not all, is inconclusive."""
    if SESSION not in session.config.stash:
        return
    judged = session.config.stash[SESSION]
    judged.engine.process.stop()  # before anything is written: what it started cannot change it any more
    outcome = judged.outcome()
    code, _ = gate(outcome.checks, outcome.known_failures)
    others_failed = any(
        report.nodeid not in judged.clause_of for report in _reports(session.config, ("failed", "error"))
    )
    if exitstatus == pytest.ExitCode.OK or (exitstatus == pytest.ExitCode.TESTS_FAILED and not others_failed):
        session.exitstatus = INCONCLUSIVE if code is ExitCode.INCONCLUSIVE else pytest.ExitCode(int(code))
    path = session.config.getoption("--checks")
    if path is not None:
        path.write_text(dumps(outcome), encoding="utf-8")


def _reports(config: pytest.Config, outcomes: tuple[str, ...]) -> list[Any]:
    terminal: Any = config.pluginmanager.get_plugin("terminalreporter")
    return [report for outcome in outcomes for report in terminal.stats.get(outcome, [])] if terminal else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if SESSION not in config.stash:
        return
    session = config.stash[SESSION]
    outcome = session.outcome()
    for record in outcome.checks:
        if record.status is Status.INCONCLUSIVE:
            terminalreporter.write_line(f"INCONCLUSIVE {record.id}: {record.detail}")
    if not any(record.status in (Status.PASSED, *WRONG) for record in outcome.checks):
        terminalreporter.write_line("INCONCLUSIVE: no check judged anything")
    for what, reason in outcome.capabilities.not_offered.items():
        terminalreporter.write_line(f"NOT-SUPPORTED {what}: {reason}")
    for line in gate(outcome.checks, outcome.known_failures)[1]:
        terminalreporter.write_line(f"KNOWN {line}")
    if session.parts:
        terminalreporter.write_line(f"probably wrong: {', '.join(smallest_parts(session.parts))}")
    profile = session.engine.profile.name
    levels = judge_levels(LEVELS, outcome.checks, outcome.collected, outcome.capabilities, profile)
    terminalreporter.write_line(f"levels: {grants_sentence(levels)}")
    for level in levels:
        if level.checks and level.blocked_by:
            terminalreporter.write_line(f"{level.label} not granted: {'; '.join(level.blocked_by[:3])}")


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(HERE)


def _clause_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("clause")
    assert marker is not None, "collection refuses checks without a clause"
    return str(marker.args[0])

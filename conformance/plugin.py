"""The judge as a pytest plugin: options, the engine under test, records, verdict and exit code.

Only checks below ``conformance/`` are judged; other tests in the same session are left alone. Exit codes are
pytest's: 1 where a check failed, 4 for an engine or option that is wrong, 5 where nothing failed and a check, or the
whole session, could not have caught a fault.
"""

import shlex
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from reports.digest import checkpoint_sha256
from reports.schema import CheckRecord, ConformanceOutcome, Status, dumps

from .clauses import CLAUSES
from .counters import Counters, margin
from .engine import EngineError, find_engine, move
from .tolerance import ConformanceError
from .under_test import UnderTest

HERE = Path(__file__).parent
EMBEDDED_CHECKPOINT = HERE.parent / "reference" / "nano"
EXAMPLES = {"quick": 8, "full": 100}  # drawn by hypothesis, after every family and shape has been shown once
INCONCLUSIVE = pytest.ExitCode.NO_TESTS_COLLECTED  # 5
COUNTERS: pytest.StashKey[Counters] = pytest.StashKey()


@dataclass(frozen=True)
class Outcome(ConformanceOutcome):
    """What ``--checks`` writes."""

    tier: str
    checkpoint_sha256: str


@dataclass
class Session:
    """One session of the judge."""

    engine: UnderTest
    engine_option: str
    seed: int
    tier: str
    checkpoint: Path
    records: dict[str, CheckRecord] = field(default_factory=dict)

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


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Import checks under the judge's settings of hypothesis, and other tests under their own."""
    if not (isinstance(collector, pytest.Module) and _is_ours(collector.path)):
        return (yield)
    tier = collector.config.getoption("--tier")
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
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
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
    torch.set_num_threads(1)  # the checks' tensors are small: more threads cost more than they bring, on any machine
    try:
        engine = find_engine(config.getoption("--engine"))
        if config.getoption("--device") is not None:
            move(engine, config.getoption("--device"))
        under_test = UnderTest(engine)
    except (EngineError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
    options = (config.getoption(name) for name in ("--engine", "--seed", "--tier", "--checkpoint"))
    session = config.stash[SESSION] = Session(under_test, *options)
    for item in ours:
        cited = [marker.args[0] for marker in item.iter_markers("clause")]
        if len(cited) != 1 or cited[0] not in CLAUSES:
            raise pytest.UsageError(f"{item.nodeid}: cites {cited or 'no clause'}; want one clause of clauses.toml")
        item.stash[COUNTERS] = Counters()
        if isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.function):
            hypothesis.seed(session.seed)(item.function)
    if session.tier == "quick":
        kept = [item for item in items if not (_is_ours(item.path) and item.get_closest_marker("full"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


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
    status, detail = _judge(call, report, counters)
    if status in (Status.FAILED, Status.ERROR):
        clause = CLAUSES[_clause_of(item)]
        detail += (
            f"\n{clause.id}: {clause.text}\nengine {session.engine.name}, profile {session.engine.profile.name}; "
            f"run this check again: {session.rerun_command(item.nodeid)}"
        )
        if call.excinfo is not None and isinstance(call.excinfo.value, ConformanceError):
            report.longrepr = detail  # a verdict needs no traceback through the judge
        else:
            report.sections.append(("conformance", detail))
    before = session.records.get(item.nodeid)
    if report.when != "call" and report.passed and before is not None:
        return report
    if report.when == "teardown" and report.passed:
        return report
    session.records[item.nodeid] = CheckRecord(
        id=item.nodeid,
        clause=_clause_of(item),
        status=status,
        duration_s=round(report.duration, 6),
        counters=dict(counters.counts),
        detail=detail,
        statistic=counters.statistic,
        bound=counters.bound,
        margin=None
        if counters.statistic is None or counters.bound is None
        else margin(counters.statistic, counters.bound),
    )
    if status is Status.INCONCLUSIVE and report.when == "call":
        report.user_properties.append(("conformance", status.value))
        report.sections.append(("conformance", detail))
    return report


def _judge(call: pytest.CallInfo[None], report: pytest.TestReport, counters: Counters) -> tuple[Status, str]:
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return Status.SKIPPED, reason.removeprefix("Skipped: ")
    if report.failed:
        assert call.excinfo is not None, "a failed phase has its exception"
        error = call.excinfo.value
        notes = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
        judged = report.when == "call" and isinstance(error, AssertionError)
        text = notes.removeprefix(f"{ConformanceError.__name__}: ")
        return (Status.FAILED if judged else Status.ERROR), text
    if report.when == "call" and counters.empty:
        return Status.INCONCLUSIVE, f"stayed 0, so that no fault could show: {', '.join(counters.empty)}"
    return (Status.PASSED if report.when == "call" else Status.INCONCLUSIVE), ""


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    if report.when == "call" and ("conformance", Status.INCONCLUSIVE.value) in report.user_properties:
        return "inconclusive", "I", "INCONCLUSIVE"
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the records; a session that judged nothing, or not all, is inconclusive unless it failed."""
    if SESSION not in session.config.stash:
        return
    judged = session.config.stash[SESSION]
    statuses = [record.status for record in judged.records.values()]
    unsure = Status.INCONCLUSIVE in statuses or Status.PASSED not in statuses
    if exitstatus == pytest.ExitCode.OK and unsure:
        session.exitstatus = INCONCLUSIVE
    path = session.config.getoption("--checks")
    if path is not None:
        engine = {
            "name": judged.engine.name,
            "profile": judged.engine.profile.name,
            "device": str(judged.engine.device),
        }
        checks = tuple(judged.records.values())
        digest = checkpoint_sha256(judged.checkpoint)
        path.write_text(dumps(Outcome(engine, judged.seed, checks, judged.tier, digest)), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if SESSION not in config.stash:
        return
    records = config.stash[SESSION].records.values()
    unsure = [record for record in records if record.status is Status.INCONCLUSIVE]
    for record in unsure:
        terminalreporter.write_line(f"INCONCLUSIVE {record.id}: {record.detail}")
    if not any(record.status in (Status.PASSED, Status.FAILED) for record in records):
        terminalreporter.write_line("INCONCLUSIVE: no check judged anything")


def _is_ours(path: Path) -> bool:
    return path.is_relative_to(HERE)


def _clause_of(item: pytest.Item) -> str:
    marker = item.get_closest_marker("clause")
    assert marker is not None, "collection refuses checks without a clause"
    return str(marker.args[0])

"""Run conformance checks in a process of their own, and read what it leaves behind.

A process of its own, because an engine under test may crash it: then what was judged is kept, and the crash
is an error of its own.
"""

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .schema import CheckRecord, ConformanceOutcome, ResultError, load
from .verdict import ExitCode, Status, Verdict, judge

ENTRY_POINT_GROUP = "step35_suite.engines"
# -P: a folder named reports or conformance where the command runs must not hide the package of that name
PYTEST = (sys.executable, "-P", "-m", "pytest")
CRASH_LINES = 20  # the end of the log, where the crash is


def conformance_folder() -> Path:
    """Find the conformance tests of this checkout, from whatever folder the command runs in.

    Raises:
        ValueError: a folder named conformance on Python's path hides them.
    """
    spec = importlib.util.find_spec("conformance")
    assert spec is not None, "the conformance package is part of the distribution"
    if spec.origin is None:
        hiding = ", ".join(spec.submodule_search_locations or [])
        raise ValueError(f"conformance: {hiding} hides the suite's tests; want that folder off PYTHONPATH")
    return Path(spec.origin).parent


def check_engine_name(name: str) -> None:
    """Refuse a name that no package registers, before anything slow starts.

    Raises:
        ValueError: neither a registered name nor of the form module:attribute; the message lists the former.
    """
    registered = sorted(metadata.entry_points(group=ENTRY_POINT_GROUP).names)
    if name not in registered and ":" not in name:
        raise ValueError(
            f"engine: {name!r} is not registered; known: {', '.join(registered)}; register yours under the "
            f"entry point group {ENTRY_POINT_GROUP!r}, or name it as module:attribute"
        )


def pytest_arguments(
    targets: Sequence[str], engine: str, tier: str, device: str | None, checkpoint: Path | None = None
) -> list[str]:
    """Arguments of pytest that do not depend on the working folder; without a device the engine keeps its own.

    An option and its value are one word: pytest takes the value of ``--engine reference`` for a folder, too.
    """
    root = conformance_folder().parent
    configuration = ["-c", str(root / "pyproject.toml"), "--rootdir", str(root)]
    options = [f"--engine={engine}", f"--tier={tier}"]
    options += [f"--device={device}"] if device else []
    options += [f"--checkpoint={checkpoint.resolve()}"] if checkpoint else []
    return [*configuration, *options, *targets]


@dataclass(frozen=True)
class Session:
    """What one conformance session left: its records and, last, what went wrong with the session itself."""

    engine_profile: str | None
    seed: int | None
    checks: tuple[CheckRecord, ...]
    interrupted: bool


def run_session(arguments: Sequence[str], out: Path) -> Session:
    """Run pytest; its output goes to stderr and to ``conformance.log`` as it comes.

    Args:
        arguments: of pytest, from ``pytest_arguments``.
        out: existing folder for checks.json, junit.xml and conformance.log.

    Raises:
        ValueError: pytest refuses its arguments (an engine that cannot be loaded, for one).
    """
    checks, log = out / "checks.json", out / "conformance.log"
    files = [f"--checks={checks}", f"--junitxml={out / 'junit.xml'}"]
    returncode, interrupted = _stream([*PYTEST, "-q", *arguments, *files], log)
    if returncode == ExitCode.USAGE and (complaint := _usage_error(log)):
        raise ValueError(complaint)
    return read_session(checks, log, returncode, interrupted)


def read_session(checks: Path, log: Path, returncode: int, interrupted: bool) -> Session:
    """Read the records of a session that ended; add one where they cannot be the whole truth."""
    try:
        outcome = load(ConformanceOutcome, checks)
    except FileNotFoundError:
        outcome = None
        problem = _record(Status.INCONCLUSIVE, f"pytest {_ended(returncode)} and wrote no {checks.name}")
    except ResultError as error:
        outcome = None
        problem = _record(Status.ERROR, str(error))
    records = list(outcome.checks) if outcome else [problem]
    verdict = judge(records)[0]
    if interrupted:
        records.append(_record(Status.INCONCLUSIVE, "interrupted: the checks after this one did not run"))
    elif returncode not in (ExitCode.PASS, ExitCode.FAIL, ExitCode.INCONCLUSIVE):
        records.append(_record(Status.ERROR, f"pytest {_ended(returncode)}\n{_tail(log)}"))
    elif returncode == ExitCode.FAIL and verdict is not Verdict.FAIL:
        records.append(_record(Status.ERROR, f"pytest failed, but no record says why\n{_tail(log)}"))
    elif returncode == ExitCode.INCONCLUSIVE and verdict is Verdict.PASS:
        records.append(_record(Status.INCONCLUSIVE, f"pytest calls the session inconclusive\n{_tail(log)}"))
    profile = outcome.engine.get("profile") if outcome else None
    return Session(profile and str(profile), outcome.seed if outcome else None, tuple(records), interrupted)


def _stream(command: Sequence[str], log: Path) -> tuple[int, bool]:
    """Run a command, copy its output to stderr and the log; interrupt it once, then let it finish."""
    interrupted = False
    # a process group of its own, or Ctrl-C would reach pytest twice: the second one ends it without its files
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as process,
        log.open("wb") as file,
    ):
        assert process.stdout is not None
        output = process.stdout
        while True:
            try:
                chunk = output.read1()  # type: ignore[attr-defined]  # a BufferedReader, typed as IO[bytes]
                if not chunk:
                    break
                file.write(chunk)
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
            except KeyboardInterrupt:
                if interrupted:  # asked twice: do not wait
                    process.kill()
                else:
                    process.send_signal(signal.SIGINT)
                interrupted = True
    return process.returncode, interrupted


def _usage_error(log: Path) -> str | None:
    """What pytest says about its arguments; None if it ended for another reason (a conftest that breaks)."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), None)


def _record(status: Status, detail: str) -> CheckRecord:
    return CheckRecord("conformance session", "", status, 0.0, {}, detail)


def _ended(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-CRASH_LINES:])

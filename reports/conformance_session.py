"""Run conformance checks in a process of their own, and read what it leaves behind.

A process of its own, because an engine under test may crash it: then what was judged is kept, and the crash
is an error of its own.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .known_failures import gate
from .schema import CheckRecord, ConformanceOutcome, ResultError, load, suite_record
from .suite import conformance_folder
from .verdict import ExitCode, Status

ENTRY_POINT_GROUP = "step35_suite.engines"
# -P: a folder named reports or conformance where the command runs must not hide the package of that name
PYTEST = (sys.executable, "-P", "-m", "pytest")
CRASH_LINES = 20  # the end of the log, where the crash is


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
    targets: Sequence[str],
    engine: str,
    tier: str,
    device: str | None,
    checkpoint: Path | None = None,
    waivers: Path | None = None,
    known_failures: Path | None = None,
) -> list[str]:
    """Arguments of pytest that do not depend on the working folder; without a device the engine keeps its own.

    An option and its value are one word: pytest takes the value of ``--engine reference`` for a folder, too.
    """
    root = conformance_folder().parent
    configuration = ["-c", str(root / "pyproject.toml"), "--rootdir", str(root)]
    options = [f"--engine={engine}", f"--tier={tier}"]
    options += [f"--device={device}"] if device else []
    files = {"checkpoint": checkpoint, "waivers": waivers, "known-failures": known_failures}
    options += [f"--{name}={path.resolve()}" for name, path in files.items() if path]
    return [*configuration, *options, *targets]


@dataclass(frozen=True)
class Session:
    """What one conformance session left: its outcome, if it came to one, and the records of all that happened."""

    outcome: ConformanceOutcome | None
    checks: tuple[CheckRecord, ...]  # of the outcome, and last what went wrong with the session itself
    interrupted: bool


def run_session(arguments: Sequence[str], out: Path) -> Session:
    """Run pytest; its output goes to stderr and to ``conformance.log`` as it comes.

    Args:
        arguments: of pytest, from ``pytest_arguments``.
        out: existing folder for checks.json, junit.xml and conformance.log.

    Raises:
        ValueError: pytest refuses its arguments (an engine that cannot be loaded, for one).
    """
    checks, log, junit = out / "checks.json", out / "conformance.log", out / "junit.xml"
    returncode, interrupted = _stream([*PYTEST, "-q", *arguments, f"--checks={checks}", f"--junitxml={junit}"], log)
    if junit.exists():  # pytest notes the name of the host, which is nobody's business
        junit.write_text(re.sub(r' hostname="[^"]*"', "", junit.read_text(encoding="utf-8")), encoding="utf-8")
    if returncode == ExitCode.USAGE and (complaint := _usage_error(log)):
        raise ValueError(complaint)
    return read_session(checks, log, returncode, interrupted)


def read_session(checks: Path, log: Path, returncode: int, interrupted: bool) -> Session:
    """Read the records of a session that ended; add one where they cannot be the whole truth."""
    outcome, own = None, []
    try:
        outcome = load(ConformanceOutcome, checks)
    except FileNotFoundError:
        own.append(_record(Status.INCONCLUSIVE, f"pytest {_ended(returncode)} and wrote no {checks.name}"))
    except ResultError as error:
        own.append(_record(Status.ERROR, str(error)))
    records = outcome.checks if outcome else tuple(own)
    expected = gate(records, outcome.known_failures if outcome else None)[0]
    if interrupted:
        own.append(_record(Status.INCONCLUSIVE, "interrupted: the checks after this one did not run"))
    elif returncode not in (ExitCode.PASS, ExitCode.FAIL, ExitCode.INCONCLUSIVE):
        own.append(_record(Status.ERROR, f"pytest {_ended(returncode)}\n{_tail(log)}"))
    elif returncode == ExitCode.FAIL and expected is not ExitCode.FAIL:
        own.append(_record(Status.ERROR, f"pytest failed, but no record says why\n{_tail(log)}"))
    elif returncode == ExitCode.INCONCLUSIVE and expected is ExitCode.PASS:
        own.append(_record(Status.INCONCLUSIVE, f"pytest calls the session inconclusive\n{_tail(log)}"))
    return Session(outcome, (*(outcome.checks if outcome else ()), *own), interrupted)


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
    return suite_record("conformance session", status, detail)


def _ended(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-CRASH_LINES:])

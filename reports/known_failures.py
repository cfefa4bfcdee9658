"""Known failures: so that the gate of a CI tells a new failure from an old one. They excuse nothing in the record.

A known-failures file is TOML with one line a check, its id and why it is known to fail:

    "conformance/ops/test_rms_norm.py::test_any_input_and_width" = "subnormal rows, PROJ-7"

The verdict stays FAIL and no level is granted for it; only the exit code changes. The list is strict: a known failure
that passes must be removed from it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .schema import CheckRecord, KnownFailures
from .verdict import WRONG, ExitCode, Status, exit_code, judge
from .waivers import known_check, read_toml


def read_known_failures(path: Path) -> KnownFailures:
    """Read a file of known failures.

    Raises:
        ValueError: no such file, no TOML, or a check without a reason.
    """
    table = read_toml(path, "known failures")
    for id, reason in table.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"{path.name}: {id} is {reason!r}; want the reason, as text")
    return KnownFailures(path.name, table)


def check_known_failures(known: KnownFailures, collected: Mapping[str, Any] | Sequence[str]) -> None:
    """Refuse a list that names a check which the run does not have.

    Raises:
        ValueError: names the nearest id.
    """
    for id in known.reasons:
        known_check(id, collected, known.file)


def gate(checks: Sequence[CheckRecord], known: KnownFailures | None) -> tuple[ExitCode, tuple[str, ...]]:
    """Give the exit code of a session, and what to say beside its verdict.

    Without known failures it is that of the verdict after waivers. With them: 1 if one of them passed; else that of
    the verdict on all other checks, 0 if there are none.

    Returns:
        the exit code, and lines that each name a check and what to do.
    """
    if known is None:
        return exit_code(judge(checks, heed_waivers=True)[0]), ()
    stale = [check.id for check in checks if check.id in known.reasons and check.status is Status.PASSED]
    if stale:
        return ExitCode.FAIL, tuple(f"{id}: is a known failure and passed; remove it from {known.file}" for id in stale)
    old = [check for check in checks if check.id in known.reasons and check.status in WRONG]
    if not old:
        return gate(checks, None)
    new = [check for check in checks if not (check.id in known.reasons and check.status in WRONG)]
    code = exit_code(judge(new, heed_waivers=True)[0]) if new else ExitCode.PASS
    lines = [f"{check.id}: known failure ({known.reasons[check.id]})" for check in old]
    return code, tuple(lines)

"""Check the folder of a run against itself: does every conclusion follow from the evidence that lies beside it?

Statuses, levels, verdicts and the page are computed again with the functions that the run used. Digests and the hash
chain show edits. They are no signature: whoever writes a whole folder anew, evidence and all, is not found out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import verify_evidence, verify_hashes
from .bundle import REPORT, RESULT, Bundle, Complaint, machine_value
from .levels import Level
from .schema import Result, ResultError, Suite, loads, parse


@dataclass(frozen=True)
class Verification:
    """What was found; accepted if nothing was."""

    complaints: tuple[Complaint, ...]
    notes: tuple[str, ...]  # what was not compared, and why
    result: Result | None  # None: result.json cannot be read

    @property
    def accepted(self) -> bool:
        return not self.complaints


def verify(path: Path, suite: Suite, levels: Sequence[Level], other_suite: bool = False) -> Verification:
    """Verify a results folder.

    Args:
        path: the folder, or its result.json.
        suite: this version; levels: its levels.
        other_suite: accept what another version judged; its page, and levels by other rules, are then not compared.

    Raises:
        ValueError: there is no result.json.
    """
    file = path / RESULT if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"result: {path} has no {RESULT}; want the results folder of a run, or its {RESULT}")
    try:
        text = file.read_text(encoding="utf-8")
        result = loads(Result, text, file.name)
    except (ResultError, UnicodeDecodeError) as error:
        return Verification((Complaint(file.name, "content", str(error)),), (), None)
    bundle = Bundle(file.parent, parse(text, file.name), result, suite, levels)
    found = [complaint for look in (*verify_hashes.LOOKS, *verify_evidence.LOOKS) for complaint in look(bundle)]
    notes = []
    for field, text in _suite_differences(bundle):
        if other_suite:
            notes.append(f"{field}: {text}")
        else:
            wanted = "want that version, or --other-suite to accept it as judged by another version"
            found.append(Complaint(file.name, field, f"{text}; {wanted}"))
    if other_suite and not bundle.same_suite:
        notes.append(f"judged by another version: {REPORT} was not written anew and compared")
    if other_suite and not bundle.same_levels:
        notes.append("judged by another version: levels were not computed again")
    if machine_value(result, "suite_dirty"):
        notes.append("the suite that judged had local changes: its commit does not tell them")
    return Verification(tuple(found), tuple(notes), result)


def _suite_differences(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Fields by which another version of the suite judged, and how."""
    got, want = bundle.result.suite, bundle.suite
    if got.commit != want.commit:
        yield "suite.commit", f"judged by version {got.commit or 'not known'}; this is {want.commit or 'not known'}"
    for name in sorted({*got.files, *want.files}):
        if got.files.get(name) != want.files.get(name):
            yield f"suite.files.{name}", "judged by another version of this file"

"""A file of measurements while it grows: one line each, on the disk before the next begins, so that a crash loses one.

The first line is the run, the last its end. A file without an end was interrupted; ``resume`` goes on with it.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .decode import ResultError
from .measurement import SCHEMA, Comparison, Kind, Measurement, Quality, as_json
from .redaction import redact
from .verdict import Verdict

MAJOR = SCHEMA  # "s35.result/1.4" is read by this reader, "s35.result/2" is not


@dataclass(frozen=True)
class Recorded:
    """A file of measurements as read.

    Attributes:
        run: the first line.
        verdict: None: the run did not end.
        reasons: for the verdict.
    """

    run: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    verdict: Verdict | None
    reasons: tuple[str, ...]

    @property
    def settings_sha256(self) -> str:
        return str(self.run["settings_sha256"])


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """What must be equal for a run to be resumed: a digest of the settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class Journal:
    """Appends to a file of measurements; each line is on the disk when ``add`` returns."""

    def __init__(self, file: IO[str], done: Mapping[str, Measurement]) -> None:
        self._file = file
        self.done = dict(done)  # by id

    @classmethod
    def start(
        cls,
        path: Path,
        command: Sequence[str],
        settings: Mapping[str, Any],
        machine: Mapping[str, Any],
        ceilings: Mapping[str, Any] | None = None,
    ) -> "Journal":
        """Begin a new file.

        Raises:
            ValueError: the file is there already.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            raise ValueError(f"{path}: is there already; want another name, or --resume to go on with it") from None
        journal = cls(file, {})
        journal._write(
            {
                "record": "run",
                "schema": SCHEMA,
                "started": _now(),
                "command": list(redact(command)),
                "settings": dict(settings),
                "settings_sha256": settings_sha256(settings),
                "machine": dict(machine),
                "ceilings": dict(ceilings) if ceilings else None,
            }
        )
        return journal

    @classmethod
    def resume(cls, path: Path, settings: Mapping[str, Any]) -> "Journal":
        """Go on with an interrupted file: what it holds is not measured again, half a line at its end is dropped.

        Raises:
            ValueError: other settings, or the run ended.
        """
        recorded = read(path)
        if recorded.settings_sha256 != settings_sha256(settings):
            raise ValueError(f"{path}: was made with other settings; want the same, or another name without --resume")
        if recorded.verdict is not None:
            raise ValueError(f"{path}: has ended; want an interrupted run, or another name without --resume")
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            with path.open("r+", encoding="utf-8") as file:
                file.truncate(len(whole.encode()))
        return cls(path.open("a", encoding="utf-8"), {done.id: done for done in recorded.measurements})

    def add(self, measurement: Measurement) -> None:
        """Append one measurement."""
        self.done[measurement.id] = measurement
        self._write(as_json(measurement))

    def end(self, verdict: Verdict, reasons: Sequence[str]) -> None:
        """Append the last line."""
        self._write({"record": "end", "ended": _now(), "verdict": verdict, "reasons": list(reasons)})
        self._file.close()

    def close(self) -> None:
        """Leave the file without an end, as an interrupt does."""
        self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def is_measurements(path: Path) -> bool:
    """Whether the file begins as one of measurements."""
    with path.open(encoding="utf-8") as file:
        return file.readline().startswith('{"record": "run"')


def read(path: Path) -> Recorded:
    """Read a file of measurements, ended or not; a last line without its end is what a crash leaves, and is dropped.

    Raises:
        ResultError: not such a file, of another major version, or damaged before its last line.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    records = [_parsed(line, f"{path.name}, line {number}") for number, line in enumerate(lines, 1)]
    if not records or records[0].get("record") != "run":
        raise ResultError(f"{path.name}: has no record of a run in its first line; want a file that the suite wrote")
    version = str(records[0].get("schema"))
    if version != MAJOR and not version.startswith(f"{MAJOR}."):
        raise ResultError(f"{path.name}: schema is {version!r}; want {MAJOR}: use the suite that wrote it")
    found = [_measurement(record, path.name) for record in records if record.get("record") == "measurement"]
    ends = [record for record in records if record.get("record") == "end"]
    verdict = Verdict(ends[-1]["verdict"]) if ends else None
    reasons = tuple(ends[-1]["reasons"]) if ends else ("the run did not end: interrupted",)
    return Recorded(records[0], tuple(found), verdict, reasons)


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ResultError(f"{where}: not JSON ({error}); want the file as the suite wrote it") from error
    if not isinstance(value, dict):
        raise ResultError(f"{where}: is no object; want the file as the suite wrote it")
    return value


def _measurement(record: Mapping[str, Any], where: str) -> Measurement:
    known = {field.name for field in fields(Measurement)}
    values = {name: value for name, value in record.items() if name in known}
    try:
        values["kind"] = Kind(values["kind"])
        values["quality"] = Quality(values.get("quality", Quality.OK))
        if "comparison" in values:
            values["comparison"] = Comparison(values["comparison"])
        for name in ("samples", "quality_reasons"):
            values[name] = tuple(values.get(name, ()))
        return Measurement(**values)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise ResultError(f"{where}: {record.get('name')}: {error}; want the file as the suite wrote it") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

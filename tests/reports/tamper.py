"""What someone might do to a results folder: edits as data, and the forger who computes every hash again."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import small_suite

from reports.chain import seal
from reports.digest import file_sha256
from reports.markdown import render
from reports.schema import Result, dumps, loads


class Bundle:
    """A results folder as parsed, to be edited and written back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.result: dict[str, Any] = json.loads((folder / "result.json").read_text())

    def check(self, id: str) -> dict[str, Any]:
        return next(check for check in self.result["checks"] if check["id"] == id)

    def level(self, id: str) -> dict[str, Any]:
        return next(level for level in self.result["levels"] if level["level"] == id)

    def drop(self, id: str) -> None:
        self.result["checks"].remove(self.check(id))

    def edit_file(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text, f"{name} has no {old!r}"
        (self.folder / name).write_text(text.replace(old, new))

    def write(self) -> None:
        (self.folder / "result.json").write_text(json.dumps(self.result, indent=2, ensure_ascii=False) + "\n")

    def forge(self) -> None:
        """Write the edit into checks.json as well, the page anew, and every hash anew."""
        result = loads(Result, json.dumps(self.result), "result.json")
        outcome = json.loads((self.folder / "checks.json").read_text())
        outcome["engine"] = self.result["engine_identity"]
        for name in set(outcome) - {"engine"}:
            outcome[name] = self.result[name]
        (self.folder / "checks.json").write_text(json.dumps(outcome, indent=2, ensure_ascii=False) + "\n")
        (self.folder / "report.md").write_text(render(result))
        files = {name: file_sha256(self.folder / name) for name in result.files if (self.folder / name).exists()}
        (self.folder / "result.json").write_text(dumps(seal(replace(result, files=files))))


Edit = Callable[[Bundle], object]


@dataclass(frozen=True)
class Tampering:
    """One edit, and the words by which its refusal must name record and field."""

    name: str
    edit: Edit
    refusal: str


GOOD = "conformance/ops/test_all.py::test_all[EMB-1]"
OTHER = "conformance/ops/test_all.py::test_all[LIN-1]"
FAILED, ABSENT, UNSURE = small_suite.NORM, small_suite.DRAFT, small_suite.ROLLBACK


def _swap(bundle: Bundle, field: str) -> None:
    one, other = bundle.check(GOOD), bundle.check(OTHER)
    one[field], other[field] = other[field], one[field]


def _splice(bundle: Bundle) -> None:
    """The failing record of this run, replaced by the passing one of another run with another seed."""
    good = bundle.check("conformance/ops/test_all.py::test_all[NORM-1]")
    bundle.check(FAILED).update({**copy.deepcopy(good), "id": FAILED, "seed": 8})


def _rename(bundle: Bundle, old: str, new: str) -> None:
    bundle.check(old)["id"] = new


def _shorten(bundle: Bundle, id: str) -> None:
    bundle.drop(id)
    bundle.result["collected"].remove(id)


def _truncate(bundle: Bundle) -> None:
    text = json.dumps(bundle.result)
    (bundle.folder / "result.json").write_text(text[: len(text) // 2])


def _name_twice(bundle: Bundle) -> None:
    text = json.dumps(bundle.result)
    (bundle.folder / "result.json").write_text('{"verdict_after_waivers": "PASS", ' + text[1:])


def _another_waiver(bundle: Bundle) -> None:
    waiver = {**bundle.result["waivers"][0], "id": "W-2", "check": UNSURE, "clause": "ROLLBACK-1"}
    bundle.result["waivers"].append(waiver)
    bundle.check(UNSURE)["waiver"] = "W-2"


def _evidence(id: str, **changes: Any) -> Edit:
    return lambda bundle: bundle.check(id)["evidence"][0].update(changes)


def _set(**changes: Any) -> Edit:
    return lambda bundle: bundle.result.update(changes)


def _waiver(**changes: Any) -> Edit:
    return lambda bundle: bundle.result["waivers"][0].update(changes)


def _in_file(name: str, old: str, new: str) -> Edit:
    return lambda bundle: bundle.edit_file(name, old, new)


# Only result.json or one file is edited; the hashes stay as they were.
EDITS = [
    Tampering("status", lambda b: b.check(FAILED).update(status="passed"), f"{FAILED}: status: is passed"),
    Tampering("statistic", _evidence(GOOD, statistic=0.125), f"{GOOD}: record: was edited"),
    Tampering("bound", _evidence(GOOD, bound=4.0), f"{GOOD}: record: was edited"),
    Tampering("margin", _evidence(GOOD, margin=0.01), f"{GOOD}: evidence[0].margin: is 0.01"),
    Tampering("detects", _evidence(GOOD, detects=1e-9), f"{GOOD}: record: was edited"),
    Tampering("counter", lambda b: b.check(UNSURE)["counters"].update(tokens_taken_back=5), f"{UNSURE}: record"),
    Tampering("digest", lambda b: b.check(GOOD)["digests"].update(inputs="f" * 64), f"{GOOD}: record: was edited"),
    Tampering("detail", lambda b: b.check(FAILED).update(detail="harmless"), f"{FAILED}: record: was edited"),
    Tampering("dropped record", lambda b: b.drop(FAILED), f"{FAILED}: record: was collected and has no record"),
    Tampering("duplicated record", lambda b: b.result["checks"].append(b.check(GOOD)), f"{GOOD}: id: has 2 records"),
    Tampering("reordered records", lambda b: b.result["checks"].reverse(), "checks: stand in another order"),
    Tampering("swapped evidence", lambda b: _swap(b, "evidence"), f"{OTHER}: record: was edited"),
    Tampering("swapped ids", lambda b: _swap(b, "id"), "chain: stands in another order"),
    Tampering("engine", _set(engine="mine"), "result.json: engine: was edited"),
    Tampering("engine name", lambda b: b.result["engine_identity"].update(name="mine"), "engine_identity.name"),
    Tampering("seed", _set(seed=8), "result.json: seed: was edited"),
    Tampering("profile", lambda b: b.result["engine_identity"].update(profile="fp8"), "engine_identity.profile"),
    Tampering("tier", _set(tier="full"), "result.json: tier: was edited"),
    Tampering("checkpoint", _set(checkpoint_sha256="0" * 64), "checkpoint_sha256: was edited"),
    Tampering("machine", lambda b: b.result["machine"]["cpu"].update(value="B300"), "machine: was edited"),
    Tampering("untyped machine", _set(machine={"device": 3}), "machine: was edited"),
    Tampering("command", _set(command=["s35"]), "command: was edited"),
    Tampering("date", _set(started="2026-01-01T00:00:00Z"), "started: was edited"),
    Tampering("verdict after", _set(verdict_after_waivers="PASS"), "verdict_after_waivers: is PASS"),
    Tampering("verdict before", _set(verdict_before_waivers="PASS"), "verdict_before_waivers"),
    Tampering("reason", _set(reason="all is well"), "reason: is all is well"),
    Tampering("granted level", lambda b: b.level("L2").update(grant="granted"), "levels.L2.grant: is"),
    Tampering("dropped level", lambda b: b.result["levels"].pop(), "levels.L4: is nothing"),
    Tampering("added level", lambda b: b.result["levels"].append({**b.level("L0"), "level": "L9"}), "levels.L9"),
    Tampering("waiver added", _another_waiver, "result.json: waivers: was edited"),
    Tampering("expiry", _waiver(expires="2020-01-01"), "waivers: result.json: waiver W-1"),
    Tampering("waiver dropped", lambda b: b.result["waivers"].clear(), f"{FAILED}: waiver: is W-1"),
    Tampering("capabilities", lambda b: b.result["capabilities"]["not_offered"].clear(), "capabilities: was edited"),
    Tampering("suite digest", lambda b: b.result["suite"]["files"].update({"conformance/clauses.toml": "0" * 64}),
              "suite.files.conformance/clauses.toml: judged by another version"),
    Tampering("suite commit", lambda b: b.result["suite"].update(commit="feed"), "judged by version feed"),
    Tampering("other run", _splice, f"{FAILED}: seed: is 8"),
    Tampering("NaN", _evidence(GOOD, statistic="nan"), f"{GOOD}: status: is passed; evidence gives failed"),
    Tampering("no comparisons", _evidence(GOOD, comparisons=0), f"{GOOD}: evidence[0].comparisons"),
    Tampering("renamed check", lambda b: _rename(b, FAILED, FAILED + "x"), f"{FAILED}x: id: has a record"),
    Tampering("shortened", lambda b: _shorten(b, FAILED), f"{FAILED}: record"),
    Tampering("unknown field", _set(grade="A"), "result.json: grade: has no link"),
    Tampering("head", _set(head="0" * 64), "head: is not the last link"),
    Tampering("no chain", _set(chain=[], head=""), "verdict_after_waivers: has no link"),
    Tampering("manifest", lambda b: b.result["files"].pop("junit.xml"), "files.junit.xml: is missing"),
    Tampering("path in manifest", lambda b: b.result["files"].update({"../x": "0" * 64}), "../x: content: is not"),
    Tampering("other major", _set(schema_version="1.0"), "schema_version is '1.0'; want 2.x"),
]  # fmt: skip

FILE_EDITS = [
    Tampering("junit", _in_file("junit.xml", 'failures="1"', 'failures="0"'), "junit.xml: sha256"),
    Tampering("no junit", lambda b: (b.folder / "junit.xml").unlink(), "junit.xml: content: is not there"),
    Tampering("half a junit", lambda b: (b.folder / "junit.xml").write_text("<testsuites>"), "junit.xml: content"),
    Tampering("report", _in_file("report.md", "INCONCLUSIVE", "PASS"), "report.md: content: is not what"),
    Tampering("log", _in_file("conformance.log", "failed", "passed"), "conformance.log: sha256"),
    Tampering("checks", _in_file("checks.json", '"seed": 7', '"seed": 8'), "seed: is 7; checks.json has 8"),
    Tampering("no checks", lambda b: (b.folder / "checks.json").unlink(), "checks.json: content: is not there"),
    Tampering("truncated", _truncate, "result.json: content: result.json: not JSON"),
    Tampering("two verdicts", _name_twice, "verdict_after_waivers stands twice in one object"),
    Tampering("no text", lambda b: (b.folder / "result.json").write_bytes(b"\xff\xfe"), "result.json: content"),
    Tampering("empty", lambda b: (b.folder / "result.json").write_text("{}"), "schema_version is None; want 2.x"),
]  # fmt: skip

# The forger writes checks.json and the page along with the edit, and computes every hash again.
FORGERIES = [
    Tampering("status", lambda b: b.check(FAILED).update(status="passed"), f"{FAILED}: status: is passed; evidence"),
    Tampering("status as skipped", lambda b: b.check(FAILED).update(status="skipped"), "evidence gives failed"),
    Tampering("unsure", lambda b: b.check(UNSURE).update(status="passed"), "evidence gives inconclusive"),
    Tampering("statistic", _evidence(FAILED, statistic=0.5), f"{FAILED}: evidence[0].margin: is 4"),
    Tampering("bound", _evidence(FAILED, bound=80.0), f"{FAILED}: evidence[0].margin: is 4"),
    Tampering("statistic and margin", _evidence(FAILED, statistic=0.5, margin=0.25), "evidence gives passed"),
    Tampering("endless bound", _evidence(GOOD, bound="inf", margin=0.0), "evidence gives inconclusive"),
    Tampering("margin", _evidence(GOOD, margin=0.01), "evidence[0].margin: is 0.01; statistic and bound"),
    Tampering("NaN", _evidence(GOOD, statistic="nan", margin="inf"), "evidence gives failed"),
    Tampering("no comparisons", _evidence(GOOD, comparisons=0), "comparisons: is 0; want at least 1"),
    Tampering("comparisons", _evidence(GOOD, comparisons=900), f"{GOOD}: counters.comparisons: is 6"),
    Tampering("counter", lambda b: b.check(UNSURE)["counters"].update(tokens_taken_back=5), "evidence gives passed"),
    Tampering("no evidence", lambda b: b.check(GOOD).update(evidence=[]), f"{GOOD}: status: is passed; evidence gives"),
    Tampering("verdict", _set(verdict_after_waivers="PASS"), "the statuses give INCONCLUSIVE"),
    Tampering("verdict before", _set(verdict_before_waivers="PASS"), "the statuses give FAIL"),
    Tampering("reason", _set(reason="all is well"), "result.json: reason: is all is well"),
    Tampering("level", lambda b: b.level("L2").update(grant="granted", blocked_by=[]), "levels.L2.grant"),
    Tampering("waiverless level", lambda b: b.level("L1").update(grant="granted", waived=[]), "levels.L1.grant"),
    Tampering("level profile", lambda b: b.level("L1").update(profile="fp8"), "levels.L1.profile"),
    Tampering("profile", lambda b: b.result["engine_identity"].update(profile="fp8"), "profile: is 'bf16'; this run's"),
    Tampering("seed", _set(seed=8), "seed: is 7; this run's is 8"),
    Tampering("other run", _splice, f"{FAILED}: seed: is 8; this run's is 7"),
    Tampering("other level", lambda b: b.check(FAILED).update(level="L0"), f"{FAILED}: level: is 'L0'"),
    Tampering("no clause", lambda b: b.check(FAILED).update(clause=""), f"{FAILED}: record: was collected"),
    Tampering("dropped", lambda b: b.drop(FAILED), f"{FAILED}: record: was collected and has no record"),
    Tampering("duplicated", lambda b: b.result["checks"].append(b.check(GOOD)), f"{GOOD}: id: has 2 records"),
    Tampering("reordered", lambda b: b.result["checks"].reverse(), "checks: stand in another order"),
    Tampering("renamed", lambda b: _rename(b, GOOD, GOOD + "x"), f"{GOOD}: record: was collected and has no record"),
    Tampering("shortened", lambda b: _shorten(b, FAILED), "was not collected"),
    Tampering("shortened level", lambda b: _shorten(b, GOOD), "levels.L1.blocked_by"),
    Tampering("waiver", _another_waiver, "verdict_after_waivers: is"),
    Tampering("expired", _waiver(expires="2020-01-01"), "waiver W-1: expired on 2020-01-01"),
    Tampering("endless waiver", _waiver(expires="2099-01-01"), "would last until"),
    Tampering("no reason", _waiver(reason=" "), "waiver W-1: reason is empty"),
    Tampering("other clause", _waiver(clause="LIN-1"), "waiver W-1: clause is LIN-1"),
    Tampering("capabilities", lambda b: b.result["capabilities"]["not_offered"].clear(), "levels.L1.blocked_by"),
    Tampering("suite digest", lambda b: b.result["suite"]["files"].update({"conformance/levels.toml": "0" * 64}),
              "suite.files.conformance/levels.toml: judged by another version"),
    Tampering("suite commit", lambda b: b.result["suite"].update(commit="feed"), "machine.suite_commit is"),
]  # fmt: skip

"""The verdict: exit codes, records, and what a failure says."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from processes import ROOT, SAMPLE, judge

from conformance.clauses import CLAUSES, clause
from conformance.faults.attacks import ATTACKS
from conformance.faults.catalogue import BENIGN, EQUIVALENTS, FAULTS
from conformance.prove import Outcome, gate_names
from reports.schema import ConformanceOutcome, Status, loads

NANO = ROOT / "reference" / "nano"
LINEAR = "conformance/ops/test_linear.py"


@pytest.mark.parametrize("name", [name for name in SAMPLE if name in FAULTS])
def test_a_fault_is_caught_by_a_check_of_its_clause(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert (outcome.verdict, outcome.exit_code) == ("caught", 1)
    assert FAULTS[name].clause in {check["clause"] for check in outcome.checks if check["id"] in outcome.caught_by}


@pytest.mark.parametrize("name", ["reference", *(name for name in SAMPLE if name in {**BENIGN, **EQUIVALENTS})])
def test_a_right_engine_passes_every_check(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert (outcome.verdict, outcome.exit_code) == ("accepted", 0), outcome.caught_by


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_not_pass(outcomes: dict[str, Outcome], name: str) -> None:
    assert (outcomes[name].verdict, outcomes[name].exit_code) == ("caught", 1)


def test_the_merge_gate_holds_most_faults() -> None:
    assert len([name for name in gate_names() if name in FAULTS]) >= 0.85 * len(FAULTS)


def test_every_clause_has_a_fault_that_it_catches() -> None:
    of_the_judge = {"CONF-1", "AWAKE-1"}  # published numbers, and controls that are faults themselves
    assert {fault.clause for fault in FAULTS.values()} == set(CLAUSES) - of_the_judge


def test_every_clause_has_a_check(outcomes: dict[str, Outcome]) -> None:
    assert {check["clause"] for check in outcomes["reference"].checks} == set(CLAUSES)


def test_each_check_compares_and_shows_its_margin(outcomes: dict[str, Outcome]) -> None:
    checks = outcomes["reference"].checks
    assert all(check["counters"]["comparisons"] > 0 for check in checks)
    evidence = [entry for check in checks for entry in check["evidence"]]
    assert any(0 < entry["margin"] < 1 and entry["detects"] for entry in evidence)


def test_a_check_cannot_cite_an_unknown_clause() -> None:
    with pytest.raises(ValueError, match=r"clause: 'NORM-99' is not in clauses.toml; want one of .*, EMB-1, NORM-1"):
        clause("NORM-99")


def test_the_record_is_what_reports_read(tmp_path: Path) -> None:
    record = judge(tmp_path / "checks.json", LINEAR).record
    assert record["engine"] == {"name": "reference", "profile": "float32", "device": "cpu"}
    assert (record["seed"], record["tier"], len(record["checkpoint_sha256"])) == (0, "quick", 64)
    outcome = loads(ConformanceOutcome, json.dumps(record), "checks.json")
    assert {check.status for check in outcome.checks} == {Status.PASSED}


def test_the_header_says_what_is_judged(tmp_path: Path) -> None:
    engine = "--engine=conformance.faults.catalogue:reordered_bf16"
    output = judge(tmp_path / "checks.json", LINEAR, engine).output
    assert "engine reordered-bf16, profile bf16, device cpu, tier quick, seed 0" in output


def test_a_failure_says_where_how_far_and_how_to_see_it_again(tmp_path: Path) -> None:
    engine = "--engine=conformance.faults.catalogue:norm_without_one"
    wrong = judge(tmp_path / "checks.json", "conformance/ops/test_rms_norm.py", engine)
    failed = next(check for check in wrong.record["checks"] if check["status"] == "failed")
    assert "got " in failed["detail"]
    assert "times the bound" in failed["detail"]
    assert f"NORM-1: {CLAUSES['NORM-1'].text}" in failed["detail"]
    assert "engine norm-without-one, profile float32" in failed["detail"]
    assert any(entry["statistic"] > entry["bound"] for entry in failed["evidence"])
    command = failed["detail"].split("run this check again: ")[1].splitlines()[0]
    again = judge(tmp_path / "again.json", *shlex.split(command)[1:])
    assert again.exit_code == 1
    assert [check["id"] for check in again.record["checks"]] == [failed["id"]]


def test_an_engine_that_offers_nothing_is_inconclusive(tmp_path: Path) -> None:
    judgement = judge(tmp_path / "checks.json", "conformance/", "--engine=partial_engines:nothing")
    assert judgement.exit_code == 5
    of_the_engine = [check for check in judgement.record["checks"] if check["level"] != "L0"]
    assert {check["status"] for check in of_the_engine} == {"not-supported"}
    not_offered = judgement.record["capabilities"]["not_offered"]
    assert all(check["detail"].partition(":")[0] in not_offered for check in of_the_engine)


def test_rows_that_are_not_offered_are_shown_and_the_others_judged(tmp_path: Path) -> None:
    judgement = judge(tmp_path / "checks.json", "conformance/ops", "--engine=partial_engines:ops_only")
    assert judgement.exit_code == 0
    assert judgement.clauses("passed") == {"NORM-1", "ROPE-1", "ROPE-2", "ROPE-3"}
    assert "ATT-1" in judgement.clauses("not-supported")


def test_an_unknown_engine_is_a_usage_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    judgement = judge(tmp_path / "checks.json", "conformance/", "--engine=no-such-engine")
    assert judgement.exit_code == 4
    assert "engine: 'no-such-engine' is not registered; known: optimized, " in judgement.output
    assert "step35_suite.engines" in judgement.output


def test_an_unknown_profile_is_a_usage_error(tmp_path: Path) -> None:
    judgement = judge(tmp_path / "checks.json", "conformance/", "--engine=partial_engines:unknown_profile")
    assert judgement.exit_code == 4
    assert "profile: is 'float7'; want one of float32, bf16" in judgement.output


def test_a_checkpoint_that_cannot_be_read_is_a_usage_error_and_no_engines_fault(tmp_path: Path) -> None:
    shutil.copytree(NANO, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    for folder, message in (("absent", "no such folder; want one with config.json"), ("cut", "truncated or not a saf")):
        judgement = judge(tmp_path / "checks.json", "conformance/", f"--checkpoint={tmp_path / folder}")
        assert judgement.exit_code == 4, judgement.output
        assert message in judgement.output
        assert judgement.record == {}


def test_a_check_whose_counter_stays_zero_is_inconclusive(tmp_path: Path) -> None:
    """An engine that takes ``mtp`` and never drafts emits the right tokens, and shows nothing about drafts."""
    check = "conformance/model/test_generation.py::test_drafts_do_not_change_greedy_tokens[1]"
    judgement = judge(tmp_path / "checks.json", check, "--engine=partial_engines:never_drafts")
    assert judgement.exit_code == 5, judgement.output
    assert [check["status"] for check in judgement.record["checks"]] == ["inconclusive"]
    assert "stayed 0, so that no fault could show: drafts_verified, drafts_rejected" in judgement.output


def test_other_tests_in_the_session_are_left_alone(tmp_path: Path) -> None:
    others = tmp_path / "test_other.py"
    others.write_text("def test_other():\n    assert True\n", encoding="utf-8")
    alone = judge(tmp_path / "alone.json", str(others), f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"),
                  "-p", "conformance.plugin", "--engine=no-such-engine", cwd=tmp_path)  # fmt: skip
    assert alone.exit_code == 0, alone.output
    assert alone.record == {}
    both = judge(tmp_path / "both.json", "conformance/ops/test_draw.py", "tests/conformance/test_tolerance.py")
    assert both.exit_code == 0, both.output
    assert both.clauses("passed") == {"DRAW-1"}


def test_it_runs_from_another_folder_and_a_seed_repeats_itself(tmp_path: Path) -> None:
    folder = str(ROOT / "conformance" / "ops" / "test_linear.py")
    runs = [judge(tmp_path / f"{i}.json", folder, "--seed=7", cwd=tmp_path) for i in range(2)]
    assert [run.exit_code for run in runs] == [0, 0], runs[0].output
    first, second = ([{**check, "duration_s": 0} for check in run.record["checks"]] for run in runs)
    assert first == second

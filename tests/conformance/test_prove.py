"""Proving the judge: what counts as caught, and what counts against it."""

import json
from pathlib import Path
from typing import Any

import pytest

import s35
from conformance.prove import KINDS, known_names, outcome_of, score


def check(clause: str, status: str) -> dict[str, Any]:
    return {"id": f"checks.py::{clause}", "clause": clause, "status": status, "detail": ""}


@pytest.mark.parametrize(
    ("name", "exit_code", "checks", "verdict"),
    [
        ("norm_without_one", 1, [check("NORM-1", "failed"), check("ATT-1", "passed")], "caught"),
        ("norm_without_one", 1, [check("ATT-1", "failed"), check("NORM-1", "passed")], "missed"),  # by luck
        ("norm_without_one", 0, [check("NORM-1", "passed")], "missed"),
        ("norm_without_one", 5, [check("NORM-1", "inconclusive")], "missed"),
        ("norm_without_one", 1, [check("NORM-1", "failed"), check("ATT-1", "error")], "error"),
        ("norm_without_one", -6, [], "error"),  # crashed
        ("norm_without_one", None, [], "timeout"),
        ("reference", 0, [], "error"),  # ended as if all were well, and judged nothing
        ("reference", 0, [check("NORM-1", "passed")], "accepted"),
        ("reference", 1, [check("NORM-1", "failed")], "rejected"),
        ("reference", 5, [check("NORM-1", "inconclusive")], "rejected"),
        ("reference", 1, [check("NORM-1", "timeout")], "error"),
        ("crashes", 1, [check("NORM-1", "error")], "caught"),  # the engine broke, and the judge says so
        ("hangs", 1, [check("NORM-1", "timeout")], "caught"),
        ("hangs", None, [], "timeout"),  # the judge hung with it
        ("hangs", 3, [check("NORM-1", "failed")], "error"),
        ("patches_the_judge", 0, [check("NORM-1", "passed")], "missed"),
    ],
)
def test_only_its_own_clause_catches_a_fault(
    name: str, exit_code: int | None, checks: list[dict[str, Any]], verdict: str
) -> None:
    outcome = outcome_of(name, exit_code, 1.0, checks)
    assert outcome.verdict == verdict
    assert outcome.as_wanted == (verdict in ("caught", "accepted"))


def test_what_is_neither_caught_nor_accepted_stays_in_the_score() -> None:
    passed, failed = [check("NORM-1", "passed")], [check("NORM-1", "failed")]
    outcomes = [
        outcome_of("norm_without_one", 1, 1.0, failed),
        outcome_of("norm_in_place", 0, 1.0, passed),
        outcome_of("norm_aliasing", None, 1.0, []),
        outcome_of("reference", 1, 1.0, failed),
        outcome_of("crashes", 0, 1.0, passed),
        outcome_of("hangs", 1, 1.0, failed),
    ]
    assert score(outcomes) == {
        "faults": 3,
        "caught": 1,
        "equivalent": 0,
        "survivors": 2,
        "localised": 0,
        "benign": 1,
        "false_alarms": 1,
        "attacks": 2,
        "attacks_caught": 1,
    }


def test_the_command_counts_reports_and_lists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names, report = ["embedding_shifted", "gate_skipped", "crashes"], tmp_path / "proof.md"
    assert s35.main(["prove", *names, "--json", f"--report={report}"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["faults"], record["caught"], record["survivors"], record["benign"]) == (2, 2, 0, 0)
    assert (record["attacks"], record["attacks_caught"]) == (1, 1)
    assert [outcome["name"] for outcome in record["outcomes"]] == ["embedding_shifted", "gate_skipped", "crashes"]
    text = report.read_text(encoding="utf-8")
    assert f"Made by `s35 prove {' '.join(names)}` at commit" in text
    assert "- 2 of 2 faults caught" in text
    assert "| EMB-1    |        1 |        1 |" in text
    assert s35.main(["prove", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(known_names()) == sum(map(len, KINDS.values()))


def test_an_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert s35.main(["prove", "nothing_wrong"]) == 4
    assert (
        "prove: nothing_wrong is not in the catalogue; want names that `s35 prove --list` gives"
        in capsys.readouterr().err
    )

"""Proving the judge: what counts as caught, and what counts against it."""

import json
from typing import Any

import pytest

import s35
from conformance.prove import _outcome


def check(clause: str, status: str) -> dict[str, Any]:
    return {"id": f"checks.py::{clause}", "clause": clause, "status": status}


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
    ],
)
def test_only_its_own_clause_catches_a_fault(
    name: str, exit_code: int | None, checks: list[dict[str, Any]], verdict: str
) -> None:
    outcome = _outcome(name, exit_code, 1.0, checks)
    assert outcome.verdict == verdict
    assert outcome.as_wanted == (verdict in ("caught", "accepted"))


def test_the_command_counts_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert s35.main(["prove", "embedding_shifted", "gate_skipped", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["faults"], record["caught"], record["right_engines"]) == (2, 2, 0)
    assert [outcome["name"] for outcome in record["outcomes"]] == ["embedding_shifted", "gate_skipped"]
    assert all(outcome["caught_by"] for outcome in record["outcomes"])


def test_an_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert s35.main(["prove", "nothing_wrong"]) == 4
    assert "fault: nothing_wrong is not in the catalogue" in capsys.readouterr().err

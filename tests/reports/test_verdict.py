import math
from dataclasses import replace

import pytest

from reports.verdict import ExitCode, Status, Verdict, exit_code, is_beyond, judge, margin, status_of, stayed_zero


@pytest.mark.parametrize(
    ("statuses", "verdict", "reason"),
    [
        (["passed"], Verdict.PASS, "1 check passed"),
        (["passed", "skipped", "passed"], Verdict.PASS, "2 checks passed, 1 skipped"),
        (["passed", "not-supported", "skipped"], Verdict.PASS, "1 check passed, 1 not supported, 1 skipped"),
        (["timeout", "error", "failed"], Verdict.FAIL, "of 3 checks 1 failed, 1 broke and 1 timed out, first "),
        (["not-supported", "failed"], Verdict.FAIL, "of 2 checks 1 failed, 1 not supported, first "),
        (["passed", "failed"], Verdict.FAIL, "of 2 checks 1 failed, first "),
        (["error", "passed"], Verdict.FAIL, "of 2 checks 1 broke, first "),
        (["error", "failed", "failed"], Verdict.FAIL, "of 3 checks 2 failed and 1 broke, first "),
        (["inconclusive", "failed"], Verdict.FAIL, "of 2 checks 1 failed, first "),
        (["passed", "inconclusive"], Verdict.INCONCLUSIVE, "of 2 checks 1 could not judge, first "),
        (["skipped", "inconclusive"], Verdict.INCONCLUSIVE, "of 2 checks 1 could not judge, 1 skipped, first "),
        (["skipped", "skipped"], Verdict.INCONCLUSIVE, "no check passed, 2 skipped"),
        ([], Verdict.INCONCLUSIVE, "no check ran"),
    ],
)
def test_one_wrong_check_fails_and_only_a_check_that_judged_passes(make_check, statuses, verdict, reason):
    got, why = judge([make_check(f"test_{index}", status) for index, status in enumerate(statuses)])
    assert got is verdict
    assert why.startswith(reason)


def test_the_reason_names_the_first_wrong_check_and_its_first_line(make_check):
    checks = [make_check("test_a"), make_check("test_b", "failed", detail="\nrow 3 differs\nmore")]
    assert judge(checks)[1].endswith("first conformance/ops/test_rms_norm.py::test_b: row 3 differs")


def test_a_long_detail_is_cut_in_the_reason(make_check):
    assert judge([make_check("test_b", "failed", detail="x" * 500)])[1].endswith("::test_b: " + "x" * 120 + "...")


def test_every_status_and_verdict_has_its_consequence(make_check):
    assert {status: judge([make_check(status=status)])[0] for status in Status} == {
        Status.PASSED: Verdict.PASS,
        Status.FAILED: Verdict.FAIL,
        Status.ERROR: Verdict.FAIL,
        Status.TIMEOUT: Verdict.FAIL,
        Status.SKIPPED: Verdict.INCONCLUSIVE,
        Status.INCONCLUSIVE: Verdict.INCONCLUSIVE,
        Status.NOT_SUPPORTED: Verdict.INCONCLUSIVE,
    }
    assert {verdict: int(exit_code(verdict)) for verdict in Verdict} == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 5}


def test_exit_codes_are_those_of_pytest():
    assert ExitCode.FAIL == pytest.ExitCode.TESTS_FAILED
    assert ExitCode.INTERRUPTED == pytest.ExitCode.INTERRUPTED
    assert ExitCode.INTERNAL_ERROR == pytest.ExitCode.INTERNAL_ERROR
    assert ExitCode.USAGE == pytest.ExitCode.USAGE_ERROR
    assert ExitCode.INCONCLUSIVE == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize(
    ("statistic", "bound", "share"),
    [
        (0.5, 2.0, 0.25),
        (8.0, 2.0, 4.0),
        (0, 0, 0.0),
        (1, 0, math.inf),
        (math.nan, 1.0, math.inf),
        (1.0, math.nan, math.inf),
        (math.inf, 1.0, math.inf),
        (1.0, math.inf, 0.0),
        (math.inf, math.inf, 0.0),
    ],
)
def test_the_margin_is_the_share_of_the_bound_that_was_used(make_evidence, statistic, bound, share):
    assert margin(statistic, bound) == share
    assert is_beyond(make_evidence(statistic, bound)) == (share > 1)


@pytest.mark.parametrize(
    ("evidence", "counters", "status"),
    [
        ([(0.5, 2.0, 3)], {}, Status.PASSED),
        ([(0.5, 2.0, 3), (0, 0, 1)], {"rows": 2}, Status.PASSED),
        ([(0.5, 2.0, 3), (1, 0, 1)], {}, Status.FAILED),
        ([(math.nan, 2.0, 1)], {}, Status.FAILED),
        ([(math.nextafter(2.0, 3), 2.0, 1)], {}, Status.FAILED),  # a margin would round it away
        ([], {}, Status.INCONCLUSIVE),
        ([(0.5, 2.0, 0)], {}, Status.INCONCLUSIVE),
        ([(0.5, 2.0, 1)], {"rows": 0}, Status.INCONCLUSIVE),
        ([(0.5, 2.0, 1)], {"rows": math.nan}, Status.INCONCLUSIVE),
        ([(0.5, math.inf, 1)], {}, Status.INCONCLUSIVE),
        ([(8.0, 2.0, 1)], {"rows": 0}, Status.FAILED),
    ],
)
def test_a_status_follows_from_evidence_and_counters_alone(make_check, make_evidence, evidence, counters, status):
    entries = tuple(make_evidence(*entry) for entry in evidence)
    for stated in (Status.PASSED, Status.FAILED, Status.INCONCLUSIVE):
        assert status_of(make_check(status=stated, evidence=entries, counters=counters)) is status


@pytest.mark.parametrize("fact", [Status.ERROR, Status.TIMEOUT, Status.SKIPPED, Status.NOT_SUPPORTED])
def test_a_fact_stands_unless_evidence_went_beyond_its_bound(make_check, make_evidence, fact):
    record = make_check(status=fact)
    assert status_of(record) is fact
    assert status_of(replace(record, evidence=(make_evidence(1.0),))) is fact
    assert status_of(replace(record, evidence=(make_evidence(8.0),))) is Status.FAILED


def test_counters_that_stayed_zero_are_named(make_check):
    assert stayed_zero(make_check(counters={"rows": 3, "ties": 0, "odd": math.nan})) == ["ties", "odd"]


def test_waived_checks_count_before_and_not_after_waivers(make_check):
    checks = [make_check("test_a"), make_check("test_b", "failed", waiver="W-1")]
    assert judge(checks)[0] is Verdict.FAIL
    assert judge(checks, heed_waivers=True) == (Verdict.PASS, "1 check passed, 1 waived")
    assert judge(checks[1:], heed_waivers=True) == (Verdict.INCONCLUSIVE, "no check passed, 1 waived")

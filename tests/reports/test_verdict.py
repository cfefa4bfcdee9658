import pytest

from reports.verdict import ExitCode, Status, Verdict, exit_code, judge


@pytest.mark.parametrize(
    ("statuses", "verdict", "reason"),
    [
        (["passed"], Verdict.PASS, "1 check passed"),
        (["passed", "skipped", "passed"], Verdict.PASS, "2 checks passed, 1 skipped"),
        (["passed", "failed"], Verdict.FAIL, "of 2 checks 1 failed, first "),
        (["error", "passed"], Verdict.FAIL, "of 2 checks 1 broke, first "),
        (["error", "failed", "failed"], Verdict.FAIL, "of 3 checks 2 failed and 1 broke, first "),
        (["inconclusive", "failed"], Verdict.FAIL, "of 2 checks 1 failed, first "),
        (["passed", "inconclusive"], Verdict.INCONCLUSIVE, "of 2 checks 1 could not judge, first "),
        (["skipped", "inconclusive"], Verdict.INCONCLUSIVE, "of 2 checks 1 could not judge, first "),
        (["skipped", "skipped"], Verdict.INCONCLUSIVE, "2 checks skipped, none ran"),
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


def test_every_status_and_verdict_has_its_consequence(make_check):
    assert {status: judge([make_check(status=status)])[0] for status in Status} == {
        Status.PASSED: Verdict.PASS,
        Status.FAILED: Verdict.FAIL,
        Status.ERROR: Verdict.FAIL,
        Status.SKIPPED: Verdict.INCONCLUSIVE,
        Status.INCONCLUSIVE: Verdict.INCONCLUSIVE,
    }
    assert {verdict: int(exit_code(verdict)) for verdict in Verdict} == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 5}


def test_exit_codes_are_those_of_pytest():
    assert ExitCode.FAIL == pytest.ExitCode.TESTS_FAILED
    assert ExitCode.INTERRUPTED == pytest.ExitCode.INTERRUPTED
    assert ExitCode.INTERNAL_ERROR == pytest.ExitCode.INTERNAL_ERROR
    assert ExitCode.USAGE == pytest.ExitCode.USAGE_ERROR
    assert ExitCode.INCONCLUSIVE == pytest.ExitCode.NO_TESTS_COLLECTED

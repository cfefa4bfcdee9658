import pytest

from reports.known_failures import check_known_failures, gate, read_known_failures
from reports.schema import KnownFailures
from reports.verdict import ExitCode


def known(*names):
    return KnownFailures("known.toml", {f"conformance/ops/test_rms_norm.py::{name}": "PROJ-7" for name in names})


@pytest.mark.parametrize(
    ("statuses", "names", "code"),
    [
        ({"test_a": "passed", "test_b": "failed"}, None, ExitCode.FAIL),
        ({"test_a": "passed", "test_b": "failed"}, [], ExitCode.FAIL),
        ({"test_a": "passed", "test_b": "failed"}, ["test_b"], ExitCode.PASS),
        ({"test_a": "error", "test_b": "timeout"}, ["test_a", "test_b"], ExitCode.PASS),
        ({"test_a": "failed", "test_b": "failed"}, ["test_b"], ExitCode.FAIL),
        ({"test_a": "inconclusive", "test_b": "failed"}, ["test_b"], ExitCode.INCONCLUSIVE),
        ({"test_a": "inconclusive", "test_b": "passed"}, ["test_a"], ExitCode.INCONCLUSIVE),
        ({"test_a": "passed", "test_b": "failed"}, ["test_a", "test_b"], ExitCode.FAIL),
        ({"test_a": "passed", "test_b": "skipped"}, ["test_b"], ExitCode.PASS),
        ({}, [], ExitCode.INCONCLUSIVE),
    ],
)
def test_the_gate_tells_new_failures_from_old(make_check, statuses, names, code):
    checks = [make_check(name, status) for name, status in statuses.items()]
    assert gate(checks, None if names is None else known(*names))[0] is code


def test_the_gate_says_what_is_known_and_what_must_go(make_check):
    checks = [make_check("test_a"), make_check("test_b", "failed")]
    assert gate(checks, known("test_b"))[1] == (f"{checks[1].id}: known failure (PROJ-7)",)
    assert gate(checks, known("test_a", "test_b"))[1] == (
        f"{checks[0].id}: is a known failure and passed; remove it from known.toml",
    )


def test_waived_failures_open_the_gate_without_being_known(make_check):
    checks = [make_check("test_a"), make_check("test_b", "failed", waiver="W-1")]
    assert gate(checks, None)[0] is ExitCode.PASS
    assert gate(checks, known())[0] is ExitCode.PASS


def test_a_file_of_known_failures_gives_ids_and_reasons(tmp_path):
    file = tmp_path / "known.toml"
    file.write_text('"a.py::test_a[1.5]" = "PROJ-7"\n')
    assert read_known_failures(file) == KnownFailures("known.toml", {"a.py::test_a[1.5]": "PROJ-7"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"a" = ""', "known.toml: a is ''; want the reason, as text"),
        ('a.b = "x"', "known.toml: a is {'b': 'x'}; want the reason, as text"),
        ("a.py::test_a", "known failures: known.toml is not TOML"),
    ],
)
def test_a_file_without_reasons_is_refused(tmp_path, text, message):
    file = tmp_path / "known.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_known_failures(file)


def test_an_unknown_check_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"known.toml: \S+::test_b is no check of this run; .* nearest is \S+::test_bb"
    ):
        check_known_failures(known("test_b"), ["conformance/ops/test_rms_norm.py::test_bb", "far"])
    with pytest.raises(ValueError, match="this run has none"):
        check_known_failures(known("test_b"), [])

"""``s35 run`` with a small conformance folder in place of the real one: what it writes, says and returns."""

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import small_suite

from reports import run
from reports.conformance_session import pytest_arguments
from reports.digest import checkpoint_sha256
from reports.run import Request, new_results_folder, run_suite
from reports.schema import Result, load
from reports.suite import conformance_folder
from reports.verdict import ExitCode

ROOT = conformance_folder().parent

CONFTEST = """
import json, os, signal
from pathlib import Path

def pytest_addoption(parser):
    for option in ("--engine", "--tier", "--device", "--checkpoint", "--checks", "--waivers", "--known-failures"):
        parser.addoption(option)

def pytest_configure(config):
    if config.getoption("--engine") == "broken:engine":
        import pytest
        raise pytest.UsageError("engine: broken cannot be imported; want an importable module")

def pytest_sessionfinish(session):
    statuses = json.loads((Path(__file__).parent / "statuses.json").read_text())
    if statuses is None:
        return
    checks = [
        {"id": f"test_fake.py::test_{index}", "clause": "X-1", "level": None, "profile": "bf16", "seed": 11,
         "status": status, "duration_s": 0.1, "evidence": [], "counters": {}, "digests": {},
         "detail": "why" if status != "passed" else "", "waiver": None}
        for index, status in enumerate(statuses)
    ]
    outcome = {
        "engine": {"name": "fake", "profile": "bf16", "device": "cpu"}, "seed": 11, "checks": checks, "tier": "quick",
        "checkpoint_sha256": "0" * 64, "capabilities": {"offered": [], "not_offered": {}},
        "collected": [check["id"] for check in checks], "waivers": [], "known_failures": None,
    }
    Path(session.config.getoption("--checks")).write_text(json.dumps(outcome))
"""

PASSES = "def test_it(): pass\n"
FAILS = "def test_it(): assert 1 == 2\n"
ABORTS = "import os\ndef test_it(): os.abort()\n"
WAITS = """
import time, pathlib
def test_it():
    pathlib.Path(__file__).with_name("waiting").touch()
    time.sleep(60)
"""


def write_conformance(folder, statuses, test):
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\n")  # the suite's own settings load the suite's own judge
    (folder / "statuses.json").write_text(json.dumps(statuses))
    (folder / "test_fake.py").write_text(test)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def generate(checkpoint, prompt, max_new_tokens, mtp, device):
    return {"text": " and so on", "tokens": [1, 2], "tokens_per_s": 12.5, "acceptance_per_position": [0.5, None, None]}


def identify(device, missing=None):
    commit = {"value": "x", "source": "a test", "reason": None}
    dirty = {"value": False, "source": "a test", "reason": None}
    facts = {"suite_commit": commit, "suite_dirty": dirty, "accelerators": []}
    return {"device": device, "device_missing": missing, **facts}


@pytest.fixture
def make_request(tmp_path, checkpoint):
    def make(statuses=("passed",), test=PASSES, **changes):
        folder = write_conformance(tmp_path / "conformance", statuses, test)
        engine = changes.pop("engine", "reference")
        arguments = [*pytest_arguments([str(folder)], engine, "quick", "cpu"), "-c", str(folder / "pytest.ini")]
        values = {
            "engine": engine,
            "tier": "quick",
            "device": "cpu",
            "checkpoint": checkpoint,
            "out": tmp_path / "out",
            "pytest_arguments": tuple(arguments),
            "command": ("s35", "run"),
        }
        return Request(**{**values, **changes})

    return make


@pytest.mark.parametrize(
    ("statuses", "test", "code", "reason"),
    [
        (["passed", "passed"], PASSES, ExitCode.PASS, "2 checks passed"),
        (["passed", "failed"], FAILS, ExitCode.FAIL, "of 2 checks 1 failed, first test_fake.py::test_1: why"),
        (["passed", "inconclusive"], PASSES, ExitCode.INCONCLUSIVE, "of 2 checks 1 could not judge"),
        (["skipped"], PASSES, ExitCode.INCONCLUSIVE, "no check passed, 1 skipped"),
        ([], PASSES, ExitCode.INCONCLUSIVE, "no check ran"),
        (None, PASSES, ExitCode.INCONCLUSIVE, "pytest ended with exit code 0 and wrote no checks.json"),
        (["not-supported"], PASSES, ExitCode.INCONCLUSIVE, "no check passed, 1 not supported"),
        (["passed", "timeout"], FAILS, ExitCode.FAIL, "of 2 checks 1 timed out, first test_fake.py::test_1: why"),
        (["passed"], FAILS, ExitCode.FAIL, "pytest failed, but no record says why"),
        (["passed"], "", ExitCode.INCONCLUSIVE, "pytest calls the session inconclusive"),
        (["passed"], ABORTS, ExitCode.FAIL, "pytest was killed by SIGABRT"),
        (["passed"], "import no_such_module\n", ExitCode.FAIL, "pytest ended with exit code 2"),
    ],
)
def test_each_outcome_of_the_checks_has_its_verdict(make_request, capsys, statuses, test, code, reason):
    request = make_request(statuses, test)
    assert run_suite(request, identify, generate) is code
    last = capsys.readouterr().out.splitlines()[-1]
    result = load(Result, request.out / "result.json")
    assert reason in last
    said = " ".join(f"{result.verdict_after_waivers}: {result.reason}; no level granted".split())
    assert last == f"{said} — {request.out / 'report.md'}"
    assert (request.out / "report.md").read_text().startswith(f"# {said}\n")


def test_a_run_leaves_one_folder_that_says_it_all(make_request, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    request = make_request()
    run_suite(request, identify, generate)
    names = {path.name for path in request.out.iterdir()}
    assert names == {"result.json", "report.md", "junit.xml", "checks.json", "conformance.log"}
    result = load(Result, request.out / "result.json")
    assert (result.engine, result.engine_profile, result.seed) == ("reference", "bf16", 11)
    assert result.generation
    assert result.generation.acceptance_per_position == (0.5, None, None)
    assert result.checkpoint_sha256 == checkpoint_sha256(request.checkpoint)
    assert result.duration_s > 0
    assert summary.read_text() == "before\n" + (request.out / "report.md").read_text()


def test_an_absent_device_is_inconclusive_and_nothing_runs(make_request):
    request = make_request(device="cuda")
    code = run_suite(request, lambda device: identify(device, missing="no GPU here"), generate)
    result = load(Result, request.out / "result.json")
    assert code is ExitCode.INCONCLUSIVE
    assert "no GPU here" in result.reason
    assert result.generation is None
    assert not (request.out / "junit.xml").exists()


def test_what_pytest_refuses_is_the_callers_mistake(make_request):
    with pytest.raises(ValueError, match="engine: broken cannot be imported"):
        run_suite(make_request(engine="broken:engine"), identify, generate)


def test_a_folder_that_is_no_checkpoint_is_refused(make_request, tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json; want a folder in the published format"):
        run_suite(make_request(checkpoint=tmp_path / "nowhere"), identify, generate)


def test_an_earlier_result_is_never_overwritten(make_request):
    request = make_request()
    run_suite(request, identify, generate)
    before = (request.out / "result.json").read_text()
    with pytest.raises(ValueError, match="holds files already"):
        run_suite(request, identify, generate)
    assert (request.out / "result.json").read_text() == before


def test_an_interrupt_while_generating_keeps_what_is_there(make_request):
    def interrupt(**_):
        raise KeyboardInterrupt

    request = make_request()
    assert run_suite(request, identify, interrupt) is ExitCode.INTERRUPTED
    result = load(Result, request.out / "result.json")
    assert (result.verdict_after_waivers, result.generation) == ("INCONCLUSIVE", None)
    assert result.checkpoint_sha256


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_judging_keeps_what_was_judged(tmp_path, checkpoint, signal_):
    folder = write_conformance(tmp_path / "conformance", ["passed", "passed"], WAITS)
    target = [str(folder), "-c", str(folder / "pytest.ini")]
    script = f"""
import sys
from pathlib import Path
from reports import conformance_session
import types
fake = types.ModuleType("reference.commands")
fake.generate_text = lambda **_: {{"text": "", "tokens_per_s": None, "acceptance_per_position": []}}
sys.modules["reference.commands"] = fake
arguments = conformance_session.pytest_arguments
conformance_session.pytest_arguments = lambda targets, *rest: arguments({target!r}, *rest)
import s35
sys.exit(s35.main(["run", "--quick", "--checkpoint", {str(checkpoint)!r}, "--out", {str(tmp_path / "out")!r}]))
"""
    with subprocess.Popen([sys.executable, "-P", "-c", script], stderr=subprocess.PIPE, cwd=tmp_path) as process:
        deadline = time.monotonic() + 60
        while not (folder / "waiting").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            time.sleep(0.05)
        process.send_signal(signal_)
        process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    result = load(Result, tmp_path / "out" / "result.json")
    assert result.command[:3] == ("s35", "run", "--quick")
    assert [check.status for check in result.checks] == ["passed", "passed", "inconclusive"]
    assert "interrupted" in result.reason


def test_records_of_another_run_are_never_read(make_request):
    request = make_request(test=ABORTS)
    request.out.mkdir()
    (request.out / "checks.json").write_text("[]")
    with pytest.raises(ValueError, match="holds files already"):
        run_suite(request, identify, generate)


def test_two_runs_in_one_second_get_two_folders(tmp_path):
    now = datetime(2026, 8, 24, 10, 0, 0, tzinfo=UTC)
    first = new_results_folder(tmp_path, now)
    first.mkdir()
    assert (first.name, new_results_folder(tmp_path, now).name) == ("2026-08-24T100000Z", "2026-08-24T100000Z-1")


def test_a_checkpoint_digest_sees_names_and_contents(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"abc")
    first = checkpoint_sha256(tmp_path)
    (tmp_path / "notes.txt").write_text("not part of it")
    assert checkpoint_sha256(tmp_path) == first
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    renamed = checkpoint_sha256(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"abd")
    assert len({first, renamed, checkpoint_sha256(tmp_path)}) == 3


def test_the_settings_of_the_checkout_apply_from_any_folder():
    arguments = pytest_arguments(["x"], "reference", "quick", "cpu")
    assert arguments[:4] == ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    assert Path(run.__file__).is_relative_to(ROOT)


def test_folders_named_like_our_packages_hide_nothing(make_request, tmp_path, monkeypatch):
    for name in ("reports", "reference", "hardware"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    request = make_request(test="import reports.schema, hardware.machine\ndef test_it(): pass\n")
    assert run_suite(request, identify, generate) is ExitCode.PASS


def run_small(tmp_path, checkpoint, cases=None, **files):
    """Run the small suite with files of waivers or known failures; returns exit code and result."""
    paths = {}
    for name, text in files.items():
        paths[name] = tmp_path / f"{name}.toml"
        paths[name].write_text(text)
    request = small_suite.request_for(tmp_path / "suite", checkpoint, cases or small_suite.cases(), **paths)
    code = run_suite(request, identify, generate)
    return code, load(Result, request.out / "result.json")


def one_failure():
    """The small suite without what is inconclusive."""
    return {id: case for id, case in small_suite.cases().items() if id != small_suite.ROLLBACK}


WAIVER = f"""
[W-1]
check = "{small_suite.NORM}"
clause = "NORM-1"
versions = "small 1"
reason = "flushes subnormal rows to zero"
issue = "PROJ-7"
owner = "kernels"
expires = {datetime.now(UTC).date() + timedelta(days=30)}
"""


def test_a_waiver_changes_the_verdict_after_waivers_and_says_so_at_the_level(tmp_path, checkpoint, capsys):
    code, result = run_small(tmp_path, checkpoint, one_failure(), waivers=WAIVER)
    said = capsys.readouterr().out.splitlines()
    assert code is ExitCode.PASS
    assert (result.verdict_before_waivers, result.verdict_after_waivers) == ("FAIL", "PASS")
    assert said[0].startswith("before waivers FAIL: of 33 checks 1 failed, 1 not supported, first ")
    assert said[-1].startswith(
        "PASS: 31 checks passed, 1 not supported, 1 waived; L0 L1(bf16) with waivers L2(bf16) with waivers granted — "
    )


def test_levels_that_are_not_granted_say_why(tmp_path, checkpoint, capsys):
    code, _ = run_small(tmp_path, checkpoint, one_failure())
    said = capsys.readouterr().out.splitlines()
    assert code is ExitCode.FAIL
    assert said[:2] == [
        f"L1(bf16) not granted: NORM-1: 1 failed, first {small_suite.NORM}",
        "L2(bf16) not granted: needs L1",
    ]
    assert "; L0 granted — " in said[-1]


def test_a_gate_that_knows_the_failure_stays_green_and_the_record_red(tmp_path, checkpoint, capsys):
    code, result = run_small(tmp_path, checkpoint, one_failure(), known_failures=f'"{small_suite.NORM}" = "PROJ-7"')
    said = capsys.readouterr().out.splitlines()
    assert code is ExitCode.PASS
    assert said[0] == f"{small_suite.NORM}: known failure (PROJ-7)"
    assert said[1] == "exit code 0: the list of known failures decides it; verdict and levels stay"
    assert said[-1].startswith("FAIL: ")
    assert [level.grant for level in result.levels[:2]] == ["granted", "not granted"]


def test_a_known_failure_that_passes_must_leave_the_list(tmp_path, checkpoint, capsys):
    good = "conformance/ops/test_all.py::test_all[LIN-1]"
    cases = {id: case for id, case in one_failure().items() if id != small_suite.NORM}
    code, result = run_small(tmp_path, checkpoint, cases, known_failures=f'"{good}" = "PROJ-8"')
    assert code is ExitCode.FAIL
    assert f"{good}: is a known failure and passed; remove it from known_failures.toml" in capsys.readouterr().out
    assert result.verdict_after_waivers == "PASS"
    assert all(check.clause for check in result.checks)  # pytest's exit code is as it should be


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("waivers", WAIVER.replace("PROJ-7", "soon"), "waiver W-1: issue is 'soon'; want a URL or an id"),
        (
            "waivers",
            WAIVER.replace("test_norm[", "test_nrm["),
            r"waiver W-1: .* is no check of this run; .* nearest is",
        ),
        ("known_failures", '"test_x" = ""', "known_failures.toml: test_x is ''; want the reason"),
        ("known_failures", '"test_x" = "PROJ-7"', "known_failures.toml: test_x is no check of this run"),
    ],
)
def test_excuses_that_do_not_hold_are_the_callers_mistake(tmp_path, checkpoint, name, text, message):
    with pytest.raises(ValueError, match=message):
        run_small(tmp_path, checkpoint, one_failure(), **{name: text})

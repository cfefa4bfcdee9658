"""The command line as its users meet it: what it prints, where, and which exit code it gives."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import s35
from reports.verdict import ExitCode


def call(*words, cwd):
    return subprocess.run(
        [sys.executable, "-P", "-m", "s35", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


def one_line(text):
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_help_lists_each_command_and_the_exit_codes(tmp_path):
    done = call("--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (ExitCode.PASS, "")
    assert all(f"    {name} " in done.stdout for name in s35.COMMANDS)
    assert "5 INCONCLUSIVE" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "s35: the following arguments are required: COMMAND"),
        (["judge"], "s35: argument COMMAND: invalid choice: 'judge'"),
        (["hardware", "--jsn"], "s35 hardware: unrecognized arguments: --jsn"),
        (["run", "--eng", "reference"], "s35 run: unrecognized arguments: --eng reference"),
        (["hardware", "--device", "gpu"], "s35 hardware: device: 'gpu' is not a device; want cpu, cuda"),
        (["run", "--engine", "nobody"], "s35 run: engine: 'nobody' is not registered; known: optimized"),
        (["conform", "--engine", "nobody"], "s35 conform: engine: 'nobody' is not registered; known: optimized"),
        (["conform", "--tier", "huge"], "s35 conform: argument --tier: invalid choice: 'huge'"),
        (["run", "--checkpoint", "nowhere"], "s35 run: checkpoint: nowhere has no config.json; want a folder"),
        (["run", "--waivers", "nowhere"], "s35 run: waivers: nowhere cannot be read"),
        (["run", "--known-failures", "nowhere"], "s35 run: known failures: nowhere cannot be read"),
        (["verify"], "s35 verify: the following arguments are required: RESULT"),
        (["verify", "nowhere"], "s35 verify: result: nowhere has no result.json; want the results folder"),
    ],
)
def test_a_mistake_of_the_caller_is_one_line_and_exit_code_4(tmp_path, words, message):
    done = call(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert one_line(done.stderr).startswith(message)
    assert not list(tmp_path.iterdir())


def test_hardware_prints_a_table_or_json(tmp_path):
    table, record = call("hardware", cwd=tmp_path), call("hardware", "--json", cwd=tmp_path)
    assert (table.returncode, record.returncode) == (ExitCode.PASS, ExitCode.PASS)
    machine = json.loads(record.stdout)
    assert machine["profile"] == {"value": "generic_cpu", "source": "hardware/profiles", "reason": None}
    for name in machine:
        if name not in ("device_missing", "accelerators"):
            assert f"\n{name} " in f"\n{table.stdout}"


@pytest.fixture
def mount(monkeypatch):
    """Mount a command whose work is this function."""
    monkeypatch.setattr(s35.signal, "signal", lambda *_: None)  # the handler of this test process stays

    def mount_(work):
        module = SimpleNamespace(add_arguments=lambda parser: None, run=lambda args: work())
        monkeypatch.setitem(s35.COMMANDS, "work", ("a_module_of_this_test", "does this work"))
        monkeypatch.setitem(sys.modules, "a_module_of_this_test", module)

    return mount_


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        (lambda: ExitCode.PASS, 0, ""),
        (lambda: ExitCode.FAIL, 1, ""),
        (lambda: ExitCode.INCONCLUSIVE, 5, ""),
        (raising(KeyboardInterrupt()), 2, "s35 work: interrupted\n"),
        (raising(ValueError("x: is 1;\n want 2")), 4, "s35 work: x: is 1; want 2\n"),
        (raising(UnicodeError("x")), 4, "s35 work: x\n"),
    ],
)
def test_how_a_command_ends_decides_the_exit_code(mount, capsys, work, code, said):
    mount(work)
    assert s35.main(["work"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("error", [KeyError("inner"), RuntimeError("inner"), AssertionError("inner")])
def test_an_internal_error_shows_its_traceback_and_what_to_report(mount, capsys, error):
    mount(raising(error))
    assert s35.main(["work"]) == ExitCode.INTERNAL_ERROR
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "inner" in said
    assert said.splitlines()[-1].endswith("report the lines above with the output of `s35 hardware --json`")


def test_the_traceback_of_a_mistake_is_there_when_asked_for(mount, capsys, monkeypatch):
    monkeypatch.setenv("S35_TRACEBACK", "1")
    mount(raising(ValueError("x: is 1; want 2")))
    assert s35.main(["work"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    words = f"{sys.executable} -P -m s35 fit --hardware dgx_spark --context 262144 --json | head -c 10"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{")
    assert done.stderr == ""

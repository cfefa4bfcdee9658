"""``s35 perf ops`` as its users meet it, without a GPU."""

import json
import subprocess
import sys

from reports.verdict import ExitCode


def call(*words, cwd):
    done = subprocess.run([sys.executable, "-m", "s35", *words], cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_without_a_gpu_it_prints_costs_and_no_times(tmp_path):
    out = tmp_path / "ops.json"
    code, said, _ = call("perf", "ops", "--device", "cpu", "--op", "rms_norm", "--out", str(out), cwd=tmp_path)
    assert code == ExitCode.INCONCLUSIVE
    assert said.splitlines()[-1] == "not measured: no CUDA device"
    record = json.loads(out.read_text())
    assert record["ceilings"] is None
    assert {result["op"] for result in record["results"]} == {"rms_norm"}
    for result in record["results"]:
        assert (result["us"], result["share"], result["outcome"]) == (None, None, "not measured")
        assert result["hbm_bytes"] > 0


def test_an_unknown_operator_names_the_known_ones(tmp_path):
    code, said, error = call("perf", "ops", "--device", "cpu", "--op", "norm", cwd=tmp_path)
    assert (code, said) == (ExitCode.USAGE, "")
    assert error.startswith("s35 perf: op: 'norm' is not measured; known: accept_draft, attention, ")
    assert "rms_norm" in error


def test_a_fixed_order_is_refused_for_other_engines(tmp_path):
    words = ("perf", "ops", "--device", "cpu", "--engine", "reference", "--fixed-order", "--op", "rms_norm")
    code, _, error = call(*words, cwd=tmp_path)
    assert code == ExitCode.USAGE
    assert "is reference" in error

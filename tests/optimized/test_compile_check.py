"""``s35 compile-check`` compiles what the engine launches, and can fail."""

import json
import subprocess
import sys

import pytest

from perf.compile_check import Target, check, read_targets
from reports.verdict import ExitCode

pytest.importorskip("triton", reason="Triton is for Linux only")

PROGRAM = """
import sys
from perf import compile_check
from perf.catalogue import select
limits = compile_check.read_targets()["sm_90"]
small = compile_check.Target(**(limits.__dict__ | {"shared_memory_per_block_bytes": 16, "max_spill_bytes": -1}))
kernels = compile_check.check_target(small, "default", select(["attention"])[:1])
print(compile_check.table(kernels))
sys.exit(sum(not kernel.ok for kernel in kernels))
"""


def call(*words, environment=None):
    import os

    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *words], env=clean | (environment or {}), capture_output=True, text=True, check=False
    )


def test_kernels_compile_and_fit_on_hopper_and_on_dgx_spark():
    words = ["--target", "sm_90", "--target", "sm_121", "--op", "rms_norm", "--op", "attention", "--json"]
    done = call("-m", "s35", "compile-check", *words)
    assert done.returncode == ExitCode.PASS, done.stdout + done.stderr
    kernels = json.loads(done.stdout)["kernels"]
    assert {(kernel["op"], kernel["target"]) for kernel in kernels} == {
        (op, target) for op in ("rms_norm", "attention") for target in ("sm_90", "sm_121")
    }
    for kernel in kernels:
        assert kernel["problem"] == ""
        assert 0 < kernel["registers"] <= 255
    matrix = {
        target: {k["matrix"] for k in kernels if (k["kernel"], k["target"]) == ("_attention_kernel", target)}
        for target in ("sm_90", "sm_121")
    }
    assert "wgmma" in matrix["sm_90"]
    assert matrix["sm_121"] == {"mma.sync"}


def test_a_kernel_that_is_too_large_is_found():
    done = call("-c", PROGRAM)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "bytes of shared memory, limit 16; 0 bytes spilled, bound -1 [attention T=1" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 kernels, 2 do not fit or do not compile"


def test_mistakes_are_named(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="'sm_9' has no limits; known: sm_90, sm_100, sm_120, sm_121, gfx942"):
        check(["sm_9"], [])
    with pytest.raises(ValueError, match="op: 'nothing' is not measured"):
        check(["sm_90"], ["nothing"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="want a process that compiles"):
        check(["sm_90"], ["rms_norm"])


def test_each_target_has_its_limits():
    targets = read_targets()
    assert all(isinstance(target, Target) and target.files for target in targets.values())
    limits = {name: target.shared_memory_per_block_bytes for name, target in targets.items()}
    assert limits == {"sm_90": 232_448, "sm_100": 232_448, "sm_120": 101_376, "sm_121": 101_376, "gfx942": 65_536}

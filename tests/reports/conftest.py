"""One result with every kind of check, for the tests of this folder."""

import pytest

from reports.schema import SCHEMA_VERSION, CheckRecord, GenerationSample, Result
from reports.verdict import Status, judge


def fact(value, reason=None):
    return {"value": value, "source": "a test", "reason": reason}


MACHINE = {
    "device": "cpu",
    "device_missing": None,
    "profile": fact("generic_cpu"),
    "os": fact("Linux"),
    "cpu": fact(None, "no line 'model name'"),
    "cpu_cores": fact(2),
    "cpu_threads": fact(4),
    "memory_bytes": fact(24_000_000_000),
    "python": fact("3.11.7"),
    "torch": fact("2.13.0"),
    "triton": fact(None, "not installed"),
    "suite_commit": fact("0123abc"),
    "suite_dirty": fact(True),
    "accelerator_count": fact(1),
    "accelerators": [
        {"kind": "cuda", "name": fact("A | B"), "memory_bytes": fact(None, "Not Supported"), "driver": fact("580.1")}
    ],
}


def check(name="test_x", status="passed", **fields):
    values = {"clause": "NORM-1", "duration_s": 0.5, "counters": {}, "detail": "", **fields}
    return CheckRecord(id=f"conformance/ops/test_rms_norm.py::{name}", status=Status(status), **values)


CHECKS = (
    check("test_one", margin=0.25, statistic=0.5, bound=2.0, counters={"rows": 3}),
    check(
        "test_two[4096]", "failed", clause="ROUT-2", detail="row 3: 1.0, want 2.0", statistic=8.0, bound=2.0, margin=4.0
    ),
    check("test_three", "error", detail="RuntimeError: boom"),
    check("test_four", "skipped", detail="needs CUDA"),
    check("test_five", "inconclusive", counters={"near_ties": 0, "rows": 9}, statistic=float("nan")),
)


def result(checks=CHECKS, **changes):
    verdict, reason = judge(checks)
    values = {
        "schema_version": SCHEMA_VERSION,
        "verdict": verdict,
        "reason": reason,
        "machine": MACHINE,
        "engine": "reference",
        "engine_profile": "bf16",
        "tier": "quick",
        "checkpoint_sha256": "0" * 64,
        "suite_commit": "0123abc",
        "seed": 0,
        "command": ("s35", "run", "--quick"),
        "started": "2026-08-24T10:00:00Z",
        "duration_s": 12.5,
        "generation": GenerationSample("Once", " upon a time", 31.5, (0.75, 0.5, None)),
        "checks": tuple(checks),
        **changes,
    }
    return Result(**values)


@pytest.fixture
def make_check():
    return check


@pytest.fixture
def make_result():
    return result

"""One result with every kind of check, and one real results folder, for the tests of this folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this one

import small_suite

from reports.levels import judge_levels, read_levels
from reports.run import run_suite
from reports.schema import (
    SCHEMA_VERSION,
    Capabilities,
    CheckRecord,
    EngineIdentity,
    Evidence,
    GenerationSample,
    Result,
    Suite,
)
from reports.suite import levels_file
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


def measured(statistic=0.5, bound=2.0, comparisons=1, rule="2 ulp", detects=1e-6, where="row 3"):
    return Evidence.measured(rule, comparisons, statistic, bound, detects, where)


def check(name="test_x", status="passed", **fields):
    evidence = (measured(),) if status in ("passed", "inconclusive") else ()
    values = {
        "id": f"conformance/ops/test_rms_norm.py::{name}",
        "clause": "NORM-1",
        "level": "L1",
        "profile": "bf16",
        "seed": 0,
        "duration_s": 0.5,
        "evidence": (measured(8.0),) if status == "failed" else evidence,
        "counters": {"near_ties": 0} if status == "inconclusive" else {},
        "digests": {},
        "detail": "",
        "waiver": None,
    }
    return CheckRecord(**{**values, **fields, "status": Status(status)})


CHECKS = (
    check("test_one", counters={"rows": 3}),
    check("test_two[4096]", "failed", clause="ROUT-2", detail="row 3: 1.0, want 2.0"),
    check("test_three", "error", detail="RuntimeError: boom"),
    check("test_four", "skipped", detail="needs CUDA"),
    check("test_five", "inconclusive", counters={"near_ties": 0, "rows": 9}, evidence=(measured(float("nan")),)),
    check("test_six", "timeout", detail="did not answer within 60 s"),
    check("test_seven", "not-supported", clause="ATT-4", detail="attention: reference offers no attention"),
)


def result(checks=CHECKS, **changes):
    capabilities = Capabilities(("rms_norm",), {"attention": "reference offers no attention"})
    collected = tuple(check.id for check in checks)
    values = {
        "schema_version": SCHEMA_VERSION,
        "verdict_before_waivers": judge(checks)[0],
        "verdict_after_waivers": judge(checks, heed_waivers=True)[0],
        "reason": judge(checks, heed_waivers=True)[1],
        "levels": judge_levels(read_levels(levels_file()), checks, collected, capabilities, "bf16"),
        "machine": MACHINE,
        "engine": "reference",
        "engine_identity": EngineIdentity("reference", "bf16", "cpu"),
        "capabilities": capabilities,
        "tier": "quick",
        "checkpoint_sha256": "0" * 64,
        "suite": Suite("0123abc", {"conformance/levels.toml": "1" * 64}),
        "seed": 0,
        "command": ("s35", "run", "--quick"),
        "started": "2026-08-24T10:00:00Z",
        "duration_s": 12.5,
        "generation": GenerationSample("Once", " upon a time", 31.5, (0.75, 0.5, None)),
        "waivers": (),
        "known_failures": None,
        "collected": collected,
        "checks": tuple(checks),
        "files": {},
        "chain": (),
        "head": "2" * 64,
        **changes,
    }
    return Result(**values)


@pytest.fixture
def make_check():
    return check


@pytest.fixture
def make_evidence():
    return measured


@pytest.fixture
def make_result():
    return result


def machine(device):
    return {**MACHINE, "device": device}


def sample(**_):
    return {"text": " and so on", "tokens_per_s": 12.5, "acceptance_per_position": [0.5, None, None]}


def a_waiver(today):
    return f'''
[W-1]
check = "{small_suite.NORM}"
clause = "NORM-1"
versions = "small 1"
reason = "flushes subnormal rows to zero"
issue = "https://example.org/issues/7"
owner = "kernels"
expires = {today}
'''


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """The results folder of a run: L0 granted, L1 with a waiver, L2 blocked; FAIL before waivers."""
    from datetime import UTC, datetime, timedelta

    root = tmp_path_factory.mktemp("bundle")
    checkpoint = root / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    waivers = root / "waivers.toml"
    waivers.write_text(a_waiver((datetime.now(UTC) + timedelta(days=30)).date()))
    request = small_suite.request_for(root, checkpoint, small_suite.cases(), waivers=waivers)
    run_suite(request, machine, sample)
    return request.out

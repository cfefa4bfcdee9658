"""A judge in miniature, copied beside a small suite as its conftest.py: records and exit code as the real plugin's.

Each check takes its case from ``cases.json``: what it claims to have measured, and how pytest sees it end.
"""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from reports.known_failures import check_known_failures, gate, read_known_failures
from reports.levels import level_of, read_levels
from reports.schema import Capabilities, CheckRecord, ConformanceOutcome, EngineIdentity, Evidence, dumps
from reports.verdict import Status, status_of
from reports.waivers import check_waivers, read_waivers, waive

HERE = Path(__file__).parent
CASES = json.loads((HERE / "cases.json").read_text())
SETTINGS = json.loads((HERE / "settings.json").read_text())
LEVELS = read_levels(Path(SETTINGS["levels"]))
PROFILE = "bf16"


def pytest_addoption(parser):
    for option in ("--engine", "--tier", "--device", "--checkpoint", "--checks", "--waivers", "--known-failures"):
        parser.addoption(option, type=Path if option in ("--waivers", "--known-failures") else str)


def pytest_collection_modifyitems(config, items):
    clauses = {item.nodeid: CASES[item.nodeid]["clause"] for item in items}
    waivers, known = config.getoption("--waivers"), config.getoption("--known-failures")
    try:
        config.read_waivers = read_waivers(waivers, datetime.now(UTC).date()) if waivers else ()
        check_waivers(config.read_waivers, clauses, LEVELS)
        config.read_known = read_known_failures(known) if known else None
        if known:
            check_known_failures(config.read_known, clauses)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    config.collected = list(clauses)


@pytest.fixture
def case(request):
    return CASES[request.node.nodeid]


def record_of(id):
    case = CASES[id]
    evidence = tuple(Evidence.measured(**entry) for entry in case["evidence"])
    counters = {"comparisons": sum(entry.comparisons for entry in evidence), **case["counters"]}
    digest = f"{len(id):064x}"
    record = CheckRecord(
        id, case["clause"], level_of(id, LEVELS), PROFILE, 7, Status(case["fact"]), 0.01,
        evidence, counters, {"inputs": digest, "oracle": digest}, case["detail"], None,
    )  # fmt: skip
    return replace(record, status=status_of(record))


def pytest_sessionfinish(session):
    config = session.config
    if not hasattr(config, "collected"):
        return  # refused
    checks = waive([record_of(id) for id in config.collected], config.read_waivers)
    outcome = ConformanceOutcome(
        engine=EngineIdentity("small", PROFILE, "cpu"),
        seed=7,
        checks=checks,
        tier=config.getoption("--tier"),
        checkpoint_sha256=SETTINGS["checkpoint_sha256"],
        capabilities=Capabilities(("rms_norm",), {"drafts": "small has no drafts"}),
        collected=tuple(config.collected),
        waivers=config.read_waivers,
        known_failures=config.read_known,
    )
    Path(config.getoption("--checks")).write_text(dumps(outcome))
    session.exitstatus = int(gate(checks, config.read_known)[0])

"""Which levels a run is granted: the rules on handmade levels, and the shipped file against the shipped clauses."""

import re
from dataclasses import replace

import pytest

from conformance.clauses import CLAUSES
from reports.levels import Level, grants_sentence, judge_levels, level_of, read_levels
from reports.schema import Capabilities, Grant
from reports.suite import conformance_folder, levels_file
from reports.verdict import Status

SPEC = Level("L0", "specification", "spec", "", per_profile=False, must_pass=None)
OPS = Level("L1", "operators", "ops", "", per_profile=True, must_pass=("NORM-1", "ATT-4"), needs="L0")
DISTRIBUTED = Level("L3", "distributed", "far", "", True, None, needs="L1", withheld="no checks in this version")
LEVELS = (SPEC, OPS, DISTRIBUTED)
CAPABILITIES = Capabilities((), {"drafts": "none", "attention": "none"})


@pytest.fixture
def checks(make_check):
    """Every must-pass clause judged, and a clause that is not must-pass."""
    ids = {"spec/a::t": "NORM-1", "ops/a::t": "NORM-1", "ops/b::t": "ATT-4", "ops/c::t": "MTP-1"}
    return {id: make_check(id=id, clause=clause) for id, clause in ids.items()}


def judged(checks, collected=None, capabilities=CAPABILITIES):
    records = list(checks.values())
    outcomes = judge_levels(LEVELS, records, collected or list(checks), capabilities, "bf16")
    return {outcome.level: outcome for outcome in outcomes}


def test_a_level_is_granted_for_a_profile_once_every_check_passed(checks):
    levels = judged(checks)
    assert [level.grant for level in levels.values()] == [Grant.GRANTED, Grant.GRANTED, Grant.NOT_GRANTED]
    assert grants_sentence(list(levels.values())) == "L0 L1(bf16) granted"
    assert (levels["L1"].checks, levels["L1"].passed, levels["L1"].blocked_by) == (3, 3, ())
    assert levels["L3"].blocked_by == ("no checks in this version",)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("failed", "failed"),
        ("error", "broke"),
        ("timeout", "timed out"),
        ("skipped", "skipped"),
        ("inconclusive", "could not judge"),
    ],
)
@pytest.mark.parametrize("id", ["ops/a::t", "ops/c::t"])
def test_whatever_did_not_pass_blocks_a_level_must_pass_or_not(checks, id, status, words):
    checks[id] = replace(checks[id], status=Status(status))
    levels = judged(checks)
    assert levels["L0"].grant is Grant.GRANTED
    assert levels["L1"].blocked_by == (f"{checks[id].clause}: 1 {words}, first {id}",)


def test_a_level_needs_the_one_below(checks):
    checks["spec/a::t"] = replace(checks["spec/a::t"], status=Status.FAILED)
    levels = judged(checks)
    assert levels["L1"].blocked_by == ("needs L0",)
    assert grants_sentence(list(levels.values())) == "no level granted"


def test_what_is_not_supported_blocks_only_where_it_must_pass(checks):
    absent = {"status": Status.NOT_SUPPORTED, "detail": "drafts: the engine has none"}
    checks["ops/c::t"] = replace(checks["ops/c::t"], **absent)
    assert judged(checks)["L1"].grant is Grant.GRANTED
    checks["ops/b::t"] = replace(checks["ops/b::t"], **{**absent, "detail": "attention: the engine has none"})
    assert judged(checks)["L1"].blocked_by == ("ATT-4: attention not supported",)


def test_what_is_not_supported_must_be_named_among_the_capabilities(checks):
    checks["ops/c::t"] = replace(checks["ops/c::t"], status=Status.NOT_SUPPORTED, detail="drafts: none")
    want = ("MTP-1: drafts not supported, and not named among the capabilities",)
    assert judged(checks, capabilities=Capabilities((), {}))["L1"].blocked_by == want
    assert judged(checks, capabilities=None)["L1"].blocked_by == want


def test_missing_evidence_blocks(checks):
    everything = list(checks)
    dropped = {id: check for id, check in checks.items() if id != "ops/c::t"}
    assert judged(dropped, everything)["L1"].blocked_by == ("ops/c::t: was to run and has no record",)
    unjudged = {id: check for id, check in checks.items() if id != "ops/b::t"}
    assert judged(unjudged)["L1"].blocked_by == ("ATT-4: no evidence",)
    nothing = {id: check for id, check in checks.items() if not id.startswith("spec/")}
    assert judged(nothing)["L0"].blocked_by == ("no check ran",)


def test_a_session_that_broke_blocks_every_level(checks, make_check):
    crash = make_check("x", "error", id="conformance session", clause="", level=None)
    levels = judged({**checks, crash.id: crash}, list(checks))
    assert levels["L0"].blocked_by == ("conformance session: error",)


def test_a_waived_check_blocks_nothing_and_the_grant_says_so_on_every_level_above(checks):
    checks["spec/a::t"] = replace(checks["spec/a::t"], status=Status.FAILED, waiver="W-1")
    levels = judged(checks)
    assert [level.grant for level in levels.values()][:2] == [Grant.WITH_WAIVERS, Grant.WITH_WAIVERS]
    assert grants_sentence(list(levels.values())) == "L0 with waivers L1(bf16) with waivers granted"


def test_a_check_belongs_to_the_level_of_its_folder():
    assert level_of("ops/a::t", LEVELS) == "L1"
    assert level_of("opsx/a::t", LEVELS) is None
    assert level_of("conformance session", LEVELS) is None


def test_the_shipped_levels_name_clauses_and_folders_that_are_there():
    levels = {level.id: level for level in read_levels(levels_file())}
    assert list(levels) == ["L0", "L1", "L2", "L3", "L4"]
    for level in levels.values():
        assert set(level.must_pass or ()) <= set(CLAUSES), level.id
    for id in ("L1", "L2"):
        folder = conformance_folder().parent / levels[id].folder
        cited = {
            clause
            for path in folder.glob("test_*.py")
            for clause in re.findall(r'@clause\("([^"]+)"\)', path.read_text(encoding="utf-8"))
        }
        assert set(levels[id].must_pass or ()) <= cited, f"{id} can never be granted"
    assert all(levels[id].withheld for id in ("L3", "L4"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[L1]\nmust_pass = []', "L1: must_pass is"),
        ('[L1]\nmust_pass = "all"', "missing 4 required positional arguments"),
        ('[L1]\nmust_pass = "all"\ntitle = ""\nfolder = "a"\nmeans = ""\nper_profile = true\nneeds = "L0"',
         "L1 needs L0; want a level that stands before it"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_of_levels_is_refused(tmp_path, text, message):
    (tmp_path / "levels.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_levels(tmp_path / "levels.toml")

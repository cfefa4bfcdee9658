import tomllib
from datetime import date, timedelta

import pytest

from reports.levels import Level
from reports.schema import Waiver
from reports.verdict import Status
from reports.waivers import WAIVABLE, budget, check_waivers, read_waivers, waive

TODAY = date(2026, 11, 23)
OPS = Level("L1", "operators", "ops", "", per_profile=True, must_pass=None)
FIELDS = {
    "check": '"ops/a.py::test_a"',
    "clause": '"NORM-1"',
    "versions": '"2.3"',
    "reason": '"subnormals"',
    "issue": '"https://example.org/7"',
    "owner": '"kernels"',
    "expires": "2026-12-31",
}


def text_of(id="W-1", **changes):
    lines = [f"{name} = {value}" for name, value in {**FIELDS, **changes}.items() if value is not None]
    return "\n".join([f"[{id}]", *lines, ""])


def read(tmp_path, text):
    (tmp_path / "waivers.toml").write_text(text)
    return read_waivers(tmp_path / "waivers.toml", TODAY)


def test_a_waiver_is_read_with_all_its_terms(tmp_path):
    fields = {name: str(value) for name, value in tomllib.loads(text_of())["W-1"].items()}
    assert read(tmp_path, text_of()) == (Waiver("W-1", **fields),)
    assert read(tmp_path, "") == ()


@pytest.mark.parametrize("issue", ["https://example.org/7", "PROJ-7", "#7", "owner/project#7"])
@pytest.mark.parametrize("days", [0, 90])
def test_issues_and_dates_that_hold(tmp_path, issue, days):
    assert read(tmp_path, text_of(issue=f'"{issue}"', expires=TODAY + timedelta(days=days)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            text_of(expires="2026-11-22"),
            "waivers.toml: waiver W-1: expired on 2026-11-22; want a date from 2026-11-23 to",
        ),
        (text_of(expires="2027-02-22"), "would last until 2027-02-22; want .* at most 90 days ahead"),
        (text_of(expires='"2026-12-31"'), "expires is '2026-12-31'; want a date, as 2026-12-31 without quotes"),
        (text_of(expires="2026-12-31T00:00:00Z"), "expires is datetime"),
        (text_of(expires=None), "expires is missing; want exactly check, clause"),
        (text_of(reason=None), "reason is missing; want exactly check, clause"),
        (text_of(reason='" "'), "reason is empty; want text"),
        (text_of(owner="7"), "owner is 7; want text"),
        (text_of(issue='"soon"'), "issue is 'soon'; want a URL or an id in a tracker"),
        (text_of(mood='"good"'), "mood is not known; want exactly check"),
        (text_of() + text_of("W-2"), r"ops/a.py::test_a is waived 2 times; want one waiver a check"),
        ("W-1 = 3", "waiver W-1: is 3; want a table with check"),
        ("[W-1", "waivers: waivers.toml is not TOML"),
    ],
)
def test_a_waiver_that_does_not_hold_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"waivers: .*absent.toml cannot be read .*; want a TOML file"):
        read_waivers(tmp_path / "absent.toml", TODAY)


def many(count, level="ops"):
    fields = {name: str(value).strip('"') for name, value in FIELDS.items()}
    return [Waiver(f"W-{i}", **{**fields, "check": f"{level}/a.py::test_{i}"}) for i in range(count)]


@pytest.mark.parametrize(("checks", "waivers"), [(0, 0), (1, 1), (33, 1), (34, 2), (100, 3), (101, 4)])
def test_a_level_bears_three_percent_rounded_up(checks, waivers):
    assert budget(checks) == waivers
    clauses = {f"ops/a.py::test_{i}": "NORM-1" for i in range(checks)}
    check_waivers(many(waivers), clauses, [OPS])
    if 0 < waivers < checks:
        with pytest.raises(ValueError, match=rf"waivers: L1 has {waivers + 1} .*; want at most {waivers}, 3 % of its"):
            check_waivers(many(waivers + 1), clauses, [OPS])


def test_a_waiver_for_no_check_or_for_another_clause_is_refused():
    with pytest.raises(
        ValueError, match=r"waiver W-0: ops/a.py::test_0 is no check .*: the nearest is ops/a.py::test_00"
    ):
        check_waivers(many(1), {"ops/a.py::test_00": "NORM-1", "far": "NORM-1"}, [OPS])
    with pytest.raises(ValueError, match=r"waiver W-0: clause is NORM-1; want LIN-1, the check's"):
        check_waivers(many(1), {"ops/a.py::test_0": "LIN-1"}, [OPS])


def test_only_what_went_wrong_is_waived(make_check):
    waivers = many(1)
    for status in Status:
        (record,) = waive([make_check(id=waivers[0].check, status=status)], waivers)
        assert record.waiver == ("W-0" if status in WAIVABLE else None)
    assert {Status.PASSED, Status.SKIPPED, Status.NOT_SUPPORTED} & WAIVABLE == set()

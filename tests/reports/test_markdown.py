import shlex

from reports.markdown import render, rerun_command
from reports.schema import Capabilities, GenerationSample, KnownFailures, Waiver

UNWELL = ("failed", "error", "timeout", "inconclusive")


def rows_of(page):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]


def test_the_verdict_comes_first_with_the_levels(make_result, make_check):
    assert render(make_result()).startswith("# FAIL: of 7 checks 1 failed, 1 broke and 1 timed out, 1 not supported")
    assert render(make_result(checks=[make_check()])).startswith("# PASS: 1 check passed; no level granted\n")
    assert render(make_result(checks=[])).startswith("# INCONCLUSIVE: no check ran; no level granted\n")


def test_each_unwell_check_is_explained_with_the_command_that_runs_it_again(make_result):
    result = make_result()
    page = render(result)
    for check in result.checks:
        assert (rerun_command(result, check) in page) == (check.status in UNWELL)
    assert "row 3: 1.0, want 2.0" in page
    assert "2 ulp: statistic 8, bound 2, margin 4 at row 3" in page
    assert "never happened: near_ties" in page
    assert page.index("RuntimeError: boom") < page.index("never happened")


def test_each_level_says_what_stands_in_its_way(make_result):
    rows = rows_of(render(make_result()))
    assert ["L0", "specification", "not granted", "0 of 0", "no check ran"] in rows
    (l1,) = (row for row in rows if row[0] == "L1(bf16)")
    assert l1[2:4] == ["not granted", "1 of 7"]
    assert l1[4].startswith("needs L0; EMB-1: no evidence; ")
    assert l1[4].endswith(" more")


def test_what_is_not_supported_is_named_with_its_clauses(make_result, make_check):
    row = ["attention", "reference offers no attention", "ATT-4"]
    assert row in rows_of(render(make_result()))
    silent = render(make_result(capabilities=Capabilities((), {})))
    assert ["attention", "not named among the engine's capabilities", "ATT-4"] in rows_of(silent)
    everything = make_result(checks=[make_check()], capabilities=Capabilities(("attention",), {}))
    assert "Not supported" not in render(everything)


def test_both_verdicts_and_each_waiver_are_shown(make_result, make_check):
    checks = (make_check("test_a"), make_check("test_b", "failed", waiver="W-1"))
    waiver = Waiver("W-1", checks[1].id, "NORM-1", "1.2", "subnormals", "PROJ-7", "kernels", "2026-09-01")
    unused = Waiver("W-2", checks[0].id, "NORM-1", "1.2", "old", "PROJ-8", "kernels", "2026-09-01")
    page = render(make_result(checks=checks, waivers=(waiver, unused)))
    assert page.startswith("# PASS: 1 check passed, 1 waived; ")
    rows = rows_of(page)
    assert ["verdict before waivers", "FAIL"] in rows
    assert ["verdict after waivers", "PASS"] in rows
    assert [row[0:1] + row[-1:] for row in rows if row[0].startswith("W-")] == [
        ["W-1", "yes"],
        ["W-2", "no: remove it"],
    ]
    assert f"### failed: {checks[1].id}, clause NORM-1, waived by W-1" in page


def test_known_failures_are_listed_with_what_became_of_them(make_result):
    result = make_result()
    reasons = {result.checks[1].id: "PROJ-7", result.checks[0].id: "PROJ-8"}
    page = render(make_result(known_failures=KnownFailures("known.toml", reasons)))
    assert [result.checks[1].id, "failed", "PROJ-7"] in rows_of(page)
    assert [result.checks[0].id, "passed: remove it", "PROJ-8"] in rows_of(page)
    assert "Listed in known.toml; they change the exit code, and neither verdict nor level." in page


def test_the_command_survives_a_shell(make_result):
    result = make_result()
    assert shlex.split(rerun_command(result, result.checks[1])) == [
        "s35",
        "conform",
        "--engine=reference",
        "--tier=quick",
        "--device=cpu",
        "--seed=0",
        "--check=conformance/ops/test_rms_norm.py::test_two[4096]",
    ]


def test_clauses_are_counted_by_outcome_with_margin_and_what_they_catch(make_result, make_check, make_evidence):
    rows = rows_of(render(make_result()))
    statuses = ["passed", "failed", "error", "timeout", "skipped", "inconclusive", "not-supported"]
    assert ["level", "clause", *statuses, "margin used", "catches from", "seconds"] in rows
    assert ["L1", "NORM-1", "1", "", "1", "1", "1", "1", "", "inf", "1.0e-06", "2.5"] in rows
    assert ["L1", "ROUT-2", "", "1", "", "", "", "", "", "4", "1.0e-06", "0.5"] in rows
    exact = make_check(evidence=(make_evidence(0, 0, detects=None),))
    rows = rows_of(render(make_result(checks=[exact])))
    assert ["level", "clause", "passed", "margin used", "catches from", "seconds"] in rows  # no empty columns
    assert ["L1", "NORM-1", "1", "exact", "", "0.5"] in rows


def test_the_machine_table_says_what_is_not_known_and_why(make_result):
    page = render(make_result())
    assert "not known: no line 'model name'" in page
    assert "24.0 GB" in page
    assert "A \\| B" in page  # a name cannot break the table
    assert "0123abc, with local changes" in page


def test_the_page_says_what_it_does_not_show(make_result):
    limits = render(make_result()).partition("## What this does not show")[2]
    assert "only the quick tier ran" in limits
    assert "test_four: needs CUDA" in limits
    assert "one unrepeated sample" in limits
    assert "tier ran" not in render(make_result(tier="full")).partition("## What this does not show")[2]


def test_a_run_that_ended_early_still_has_its_page(make_result):
    page = render(make_result(checks=(), generation=None, checkpoint_sha256=None, engine_identity=None, seed=None))
    assert page.count("the run ended before") == 2
    assert "No check ran." in page


def test_generated_text_cannot_leave_its_block(make_result):
    page = render(make_result(generation=GenerationSample("", "```\n# PASS", None, ())))
    assert "````text\n```\n# PASS\n````" in page
    assert "speed not known." in page


def test_the_page_fits_a_pull_request_comment(make_result, make_check):
    checks = [make_check(f"test_{index}", "failed", detail="x" * 9_000) for index in range(1_000)]
    page = render(make_result(checks=checks))
    assert len(page) < 65_536
    assert "980 more are in result.json." in page

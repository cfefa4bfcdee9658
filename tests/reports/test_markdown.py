import shlex

from reports.markdown import render, rerun_command


def test_the_verdict_comes_first(make_result, make_check):
    assert render(make_result()).startswith("# FAIL: of 5 checks 1 failed and 1 broke, first conformance/ops/")
    assert render(make_result(checks=[make_check()])).startswith("# PASS: 1 check passed\n")
    assert render(make_result(checks=[])).startswith("# INCONCLUSIVE: no check ran\n")


def test_each_unwell_check_is_explained_with_the_command_that_runs_it_again(make_result):
    result = make_result()
    page = render(result)
    for check in result.checks:
        assert (rerun_command(result, check) in page) == (check.status in ("failed", "error", "inconclusive"))
    assert "row 3: 1.0, want 2.0" in page
    assert "statistic 8, bound 2, margin 4" in page
    assert "never happened: near_ties" in page
    assert page.index("RuntimeError: boom") < page.index("never happened")


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


def test_clauses_are_counted_by_outcome(make_result):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in render(make_result()).splitlines()]
    assert ["NORM-1", "1", "", "1", "1", "1", "0.25", "2.0"] in rows
    assert ["ROUT-2", "", "1", "", "", "", "4", "0.5"] in rows


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
    page = render(make_result(checks=(), generation=None, checkpoint_sha256=None, engine_profile=None, seed=None))
    assert page.count("the run ended before") == 2
    assert "No check ran." in page


def test_generated_text_cannot_leave_its_block(make_result):
    from reports.schema import GenerationSample

    page = render(make_result(generation=GenerationSample("", "```\n# PASS", None, ())))
    assert "````text\n```\n# PASS\n````" in page
    assert "speed not known." in page


def test_the_page_fits_a_pull_request_comment(make_result, make_check):
    checks = [make_check(f"test_{index}", "failed", detail="x" * 9_000) for index in range(1_000)]
    page = render(make_result(checks=checks))
    assert len(page) < 65_536
    assert "980 more are in result.json." in page

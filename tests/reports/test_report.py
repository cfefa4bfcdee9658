"""The report: one file that needs nothing, the same bytes each time, verdict first, and nothing left out."""

import html.parser
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_measurement import MACHINE, PLAIN

from reports.charts import Bar, Series, bars, by_depth, roofline
from reports.decode import ResultError
from reports.journal import Journal
from reports.measurement import Comparison, Kind, Quality
from reports.page import gather
from reports.render import MOST_HTML_BYTES, MOST_MARKDOWN_BYTES, markdown
from reports.render import html as as_html
from reports.third_party import published_measurements
from reports.verdict import ExitCode, Verdict

OPERATORS = Path(__file__).parents[2] / "reports/published/nvidia_h200_ops.json"


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and headings; complains of what is not closed."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.headings, self._open = [], [], [], []
        self.feed(text)
        assert self._open == [], self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "style") and value]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture
def journal(tmp_path):
    """A session with every kind of measurement, one of them hostile."""
    path = tmp_path / "run.jsonl"
    file = Journal.start(path, ["pytest", "perf", "--op=rms_norm"], {"seed": 0}, MACHINE)
    decode = replace(PLAIN, group="decode", metric="tokens_per_s", unit="tokens/s", better="higher", hardware="here")
    for depth, rate in ((0, 50.0), (4096, 45.0), (262_144, 20.0)):
        file.add(replace(decode, name=f"tg128 @ d{depth}", value=rate, params={"depth": depth, "batch": 1}, samples=()))
    file.add(replace(PLAIN, baseline=1.8, comparison=Comparison.SLOWER, smallest_detectable=0.03))
    file.add(replace(PLAIN, name="absent", value=None, reason="no device", samples=()))
    file.add(replace(PLAIN, name="<script>alert(1)</script>", quality=Quality.SUSPECT, quality_reasons=("noise: 9%",)))
    mtp = replace(PLAIN, group="mtp", metric="draft_acceptance_rate", unit="1", better="higher", samples=())
    for position, rate in ((1, 0.8), (2, 0.6), (3, 0.4)):
        file.add(replace(mtp, name=f"draft {position}", value=rate, params={"position": position}))
    for part, size in (("weights", 110e9), ("KV full", 12e9)):
        file.add(replace(PLAIN, name=part, group="memory", metric="bytes", unit="bytes", value=size,
                         params={"part": part}, samples=()))  # fmt: skip
    file.end(Verdict.INCONCLUSIVE, ["rms_norm: noise: samples spread over 9%"])
    return path


def page_of(*paths):
    return gather(paths, published_measurements())


def test_the_page_loads_nothing_and_runs_nothing(journal):
    text = as_html(page_of(journal, OPERATORS))
    reader = Reader(text)
    assert "script" not in reader.tags
    assert not {"link", "img", "iframe", "object", "form"} & set(reader.tags)
    assert all(address.startswith("width:") for address in reader.addresses)
    assert not re.search(r"url\(|@import|\son\w+=", text.partition("<pre>")[0])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1] == "default-src 'none'; style-src 'unsafe-inline'"
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_the_bytes_are_the_same_each_time_and_few(journal):
    first, second = (as_html(page_of(journal, OPERATORS)) for _ in range(2))
    assert first == second
    assert len(first.encode()) <= MOST_HTML_BYTES
    assert markdown(page_of(journal, OPERATORS)) == markdown(page_of(journal, OPERATORS))


def test_it_is_made_for_light_and_dark_paper_and_phones(journal):
    text = as_html(page_of(journal))
    for wanted in ("prefers-color-scheme: dark", "@media print", "max-width: 600px", "width=device-width"):
        assert wanted in text


def test_what_a_result_says_is_shown_and_not_run(journal):
    text = as_html(page_of(journal))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_verdict_comes_first_then_why_with_its_command(journal, tmp_path):
    text = as_html(page_of(journal))
    assert "<h1><b>INCONCLUSIVE</b>" in text
    headings = Reader(text).headings
    assert headings[0] == "Why"
    order = ["Why", "Hardware side by side", "Decode", "Prefill", "Memory", "MTP", "Operators", "Versus baseline"]
    order += ["Every other number", "Environment", "Raw data"]
    assert [heading for heading in headings if heading in order] == order
    assert "pytest perf --op=rms_norm" in text
    lines = markdown(page_of(journal)).splitlines()
    assert lines[0].startswith("# INCONCLUSIVE: ")


@pytest.fixture
def wrong_operators(tmp_path):
    """The published record, with eight outputs that were wrong."""
    record = json.loads(OPERATORS.read_text())
    for result in record["results"][:8]:
        result |= {"outcome": "FAIL", "us": None, "share": None, "reason": "rows 0 of 1: 2.5 times the tolerance"}
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(record))
    return path


def test_a_command_is_shown_once_below_the_reasons_that_it_shows_again(wrong_operators):
    page = gather([wrong_operators])
    assert [bool(reason.command) for reason in page.reasons] == [False, False, False, False, True]


def test_a_page_without_reasons_has_no_why(tmp_path):
    path = tmp_path / "run.jsonl"
    file = Journal.start(path, ["pytest", "perf"], {"seed": 0}, MACHINE)
    file.add(PLAIN)
    file.end(Verdict.PASS, ["1 timed"])
    text = as_html(gather([path]))
    assert "<h1><b>PASS</b>" in text
    assert "Why" not in Reader(text).headings


def test_a_page_of_what_others_say_is_inconclusive_and_says_why():
    page = page_of()
    assert page.verdict is Verdict.INCONCLUSIVE
    assert page.reasons[0].text.startswith("nothing was measured here")
    assert "nothing was measured here" in as_html(page)


def test_the_worst_verdict_is_that_of_the_page(journal, wrong_operators):
    page = page_of(journal, wrong_operators)
    assert [verdict for _, verdict, _ in page.verdicts] == [Verdict.INCONCLUSIVE, Verdict.FAIL]
    assert page.verdict is Verdict.FAIL


def test_measured_published_and_projected_numbers_are_marked_apart(journal):
    text = as_html(page_of(journal))
    row = re.search(r"<tr><td>tg @ d0, tokens/s</td>.*?</tr>", text, re.DOTALL)
    assert row
    assert row[0].index('50 <span class="kind measured">') > 0
    assert '48.18 <span class="kind published">' in row[0]


def test_every_measurement_is_on_the_page(journal):
    page = page_of(journal, OPERATORS)
    text = as_html(page)
    for one in page.measurements:
        assert one.name.replace("<", "&lt;").replace(">", "&gt;") in text, one.name
        if one.kind is Kind.PUBLISHED:
            assert one.source.replace("&", "&amp;") in text


def test_a_run_of_the_judge_is_shown_by_clause(bundle):
    page = gather([bundle])
    text = as_html(page)
    assert page.clauses
    assert "By clause" in text
    for level, _, _ in page.grants:
        assert level in text
    assert gather([bundle / "result.json"]).verdict is page.verdict


def scenario(**changes):
    values = {"batch": 1, "context": 4096, "num_drafts": 0, "chunk": 0, "profiled": False}
    return {**values, **changes}


def step(name, ms, **changes):
    values = {"ms": ms, "tokens_per_s": ms and 1000 / ms, "floor_ms": 2.0, "bound": "memory", "flops": 1e9}
    return {"name": name, "memory": {}, "reason": "", "scenario": scenario(**changes), **values}


def test_a_record_of_the_whole_model_is_shown_by_depth_with_its_memory(tmp_path):
    machine = json.loads(OPERATORS.read_text())["machine"]
    parts = {"weights": 100e9, "kv_full": 12e9, "kv_sliding": 1e8, "activations_and_workspace": 1e9, "allocated": 113e9}
    results = [
        step("decode 1 x 4096", 4.0) | {"memory": parts},
        step("decode 1 x 4096, MTP-3", 8.0, num_drafts=3),
        step("prefill 8192 after 0", 400.0, chunk=8192, context=0) | {"tokens_per_s": 20_480.0},
        step("decode 8 x 4096", None, batch=8) | {"reason": "the budget of 200 s was spent"},
    ]
    command = ["s35", "perf", "model", "--engine", "mine", "--only", "@ d4096"]
    record = {"kind": "perf model", "command": command, "date": "2026-11-24",
              "machine": machine, "ceilings": None, "results": results, "model": {"format": "int4"},
              "speculation": []}  # fmt: skip
    path = tmp_path / "model.json"
    path.write_text(json.dumps(record))
    page = gather([path])
    found = {(one.name, one.metric): one for one in page.measurements if one.value is not None}
    assert found["tg @ d4096", "tokens_per_s"].value == 250.0
    assert found["tg @ d4096", "tokens_per_s"].share_of_roofline == pytest.approx(0.5)
    assert found["MTP-3 step @ d4096", "step_ms"].share_of_roofline == pytest.approx(0.25)
    assert found["pp8192", "tokens_per_s"].params["n_prompt"] == 8192
    assert page.verdict is Verdict.INCONCLUSIVE
    assert page.reasons[-1].command == "s35 perf model --engine mine --only '@ d4096'", "a shell takes it as it stands"
    record["results"] = [results[0] | {"suspicions": ["noise: samples spread over 9%"]}]
    (tmp_path / "noisy.json").write_text(json.dumps(record))
    assert gather([tmp_path / "noisy.json"]).verdict is Verdict.INCONCLUSIVE
    text = as_html(page)
    assert "decode 8 x 4096: the budget of 200 s was spent" in text
    assert "Memory by part, as counted and as the formulas have it" in text
    assert "nvidia_h200_sxm, mine int4 (measured)" in text
    assert "mine int4: bytes and operations at the run&#x27;s ceilings (projection)" in text  # the theory of the curve


def test_batches_drafts_and_what_no_counter_counts_are_shown(tmp_path):
    path = tmp_path / "run.jsonl"
    file = Journal.start(path, ["pytest", "perf"], {}, MACHINE)
    rate = replace(PLAIN, group="decode", metric="tokens_per_s", unit="tokens/s", better="higher", hardware="here")
    for batch, value in ((1, 50.0), (8, 210.0)):
        params = {"depth": 512, "batch": batch}
        file.add(replace(rate, name=f"tg32 @ d512, batch {batch}", value=value, params=params, samples=()))
    stated = {"depth": 512, "batch": 1, "num_drafts": 3}
    drafts = replace(rate, group="mtp", kind=Kind.PROJECTION, samples=())
    for length, value in ((1.0, 30.0), (4.0, 120.0)):
        params = {**stated, "acceptance_length": length}
        file.add(replace(drafts, name=f"MTP-3 at {length:g} tokens a step", value=value, params=params))
    for name in ("tg32 @ d0", "tg32 @ d512"):
        file.add(replace(rate, name=f"{name}: energy", group="energy", metric="j_per_output_token", value=None,
                         reason="not counted: no counter", samples=()))  # fmt: skip
    size = replace(PLAIN, group="memory", metric="bytes", unit="bytes", params={"part": "weights"}, samples=())
    file.add(replace(size, subject="x, tg32 @ d512", value=2e6))
    file.add(replace(size, subject="x, tg32 @ d512", value=3e6, kind=Kind.PROJECTION))
    file.end(Verdict.PASS, ["done"])
    text = as_html(gather([path]))
    assert "Tokens a second of all sequences together, by their number" in text
    assert "Tokens a second at a stated acceptance, of the steps as measured" in text
    assert "tg32 @ d0: energy, and 1 more" in text
    assert text.partition("<pre>")[0].count("not counted: no counter") == 1
    assert "tg32 @ d512, by formula: weights 3 MB" in text


def test_markdown_fits_a_comment(journal):
    page = page_of(journal, OPERATORS)
    page.facts += [(f"fact {n}", "x" * 200, "test") for n in range(1000)]
    text = markdown(page)
    assert len(text.encode()) <= MOST_MARKDOWN_BYTES
    assert "Cut here" in text


def test_what_is_no_result_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "b.json").write_text("no")
    for name, said in (("a.json", "is no result"), ("b.json", "not JSON"), ("c.json", "is not there")):
        with pytest.raises(ResultError, match=said):
            gather([tmp_path / name])


def test_the_command_writes_both_forms_and_the_summary_of_a_ci(tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    words = ["report", str(OPERATORS), "--beside", "dgx_spark,m4_max", "--format", "both", "-o", "page.html"]
    done = subprocess.run(
        [sys.executable, "-m", "s35", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (ExitCode.PASS, ["page.html", "page.md"])
    text = (tmp_path / "page.html").read_text()
    assert 'class="kind projection"' in text
    assert "Memory of each device against what it has (projection)" in text
    assert summary.read_text() == (tmp_path / "page.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "s35", "report"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == ExitCode.USAGE


def test_raw_data_is_the_record(journal):
    text = as_html(page_of(journal))
    raw = html.unescape(text.partition("<pre>")[2].partition("</pre>")[0])
    assert json.loads(raw)[0]["run"]["command"] == ["pytest", "perf", "--op=rms_norm"]


def test_charts_say_in_words_what_each_point_is():
    series = [Series("a", "measured", 0, [(0, 10.0, "zero"), (262_144, 5.0, "far")])]
    chart = by_depth("Rates", series, "tokens/s")
    assert 'aria-label="Rates"' in chart
    assert "<title>far</title>" in chart
    assert " id=" not in chart
    assert by_depth("Rates", [], "tokens/s") == ""
    assert "dashed" in by_depth("Rates", [replace(series[0], mark="projection")], "tokens/s")
    assert "<circle" not in by_depth("x", [replace(series[0], mark="published")], "y").partition("<ul")[0]


def test_a_point_on_the_roof_lies_on_its_line():
    drawn = roofline(
        "R", [Series("a", "measured", 0, [(10.0, 10.0, "on"), (1000.0, 100.0, "top")])], 1000.0, [("bf16", 100.0)]
    )
    points = [
        tuple(map(float, found)) for found in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn.partition("<ul")[0])
    ]
    path = re.search(r'class="roof" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)L', drawn)
    assert path
    x0, y0, x1, y1 = map(float, path.groups())
    x, y = points[0]
    assert y == pytest.approx(y0 + (y1 - y0) * (x - x0) / (x1 - x0), abs=0.3)
    assert points[1][1] == pytest.approx(y1, abs=0.1)


def test_bars_are_as_long_as_what_they_show():
    drawn = bars("M", [Bar("one", [("a", 30.0), ("b", 10.0)], 80.0)], "GB")
    widths = [float(found) for found in re.findall(r'class="fill c\d" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', drawn)]
    assert widths[0] == pytest.approx(3 * widths[1], abs=0.3)

"""The whole model in ``pytest perf/``: on a CPU the miniature, through the protocol; what is wrong has no time."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.engine import find_engine
from hardware.energy import Counter, EnergyWindow
from hardware.machine import Fact
from perf import checkpoint_work
from perf.checkpoint_work import CheckpointSubject
from perf.live_memory import held_bytes
from perf.model import How, ModelResult, NotOfferedError, Scenario, measure_scenario, scenarios_of
from perf.model_cost import FORMATS, held_weight_bytes
from perf.prompts import Prompts, load_prompts
from perf.sampling import StopRule
from perf.shapes import published
from perf.whole import MINIATURE, Wanted, chosen, subject_of
from reference.accounting import inspect
from reference.config import ModelConfig
from reports.baseline import combine
from reports.journal import read
from reports.measurement import Kind, Quality
from reports.page import gather
from reports.records import break_even, of_scenario
from reports.render import html
from reports.verdict import ExitCode

ROOT = Path(__file__).parents[2]
QUICK = ("--min-time=0.1", "--max-time=0.2", "--max-noise=1000", "-p", "no:cacheprovider")
HOW = How(StopRule(least_samples=3, least_s=0.0, most_s=0.3, most_warmup=1), most_noise=1e9)
DRAFTS = "tg32 @ d512, MTP-3"


def perf(*words):
    command = [sys.executable, "-m", "pytest", "perf", "-q", "--engine=reference.engine:engine", *QUICK, *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A session with one scenario with drafts and one without."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    code, said = perf(f"--results={path}", f"--scenario={DRAFTS}", "--scenario=tg32 @ d0")
    assert code == ExitCode.PASS, said
    return path


def test_each_number_of_a_scenario_is_a_measurement(run):
    recorded = read(run)
    found = {one.name: one for one in recorded.measurements}
    step, plain = found["MTP-3 step @ d512"], found["tg32 @ d0"]
    assert (step.metric, step.group, step.clock, step.hardware) == ("step_ms", "mtp", "perf_counter", "generic_cpu")
    assert (plain.metric, plain.group, plain.params["depth"]) == ("tokens_per_s", "decode", 0)
    assert len(plain.samples) >= 3
    assert plain.source == "pytest perf/, text: packaged"
    assert 1 < (found["MTP-3 tokens a step @ d512"].value or 0) <= 4
    rates = [found[f"MTP-3 draft {n} accepted @ d512"].value or 0 for n in (1, 2, 3)]
    assert 1 > rates[0] > rates[2] > 0.1  # of random tokens, none would be
    assert recorded.run["settings"]["model"] == {"weights": "checkpoint", "checkpoint": "nano", "prompts": None}


def test_stated_acceptance_is_no_measurement(run):
    stated = [one for one in read(run).measurements if "at 2.5 tokens a step" in one.name]
    assert [one.kind for one in stated] == [Kind.PROJECTION]
    step = next(one for one in read(run).measurements if one.metric == "step_ms")
    assert stated[0].value == pytest.approx(2500 / (step.value or 1))


def test_energy_that_nothing_counts_has_no_value_and_blocks_nothing(run):
    found = [one for one in read(run).measurements if one.group == "energy"]
    assert len(found) == 2
    for one in found:
        assert one.value is not None or (one.reason or "").startswith("not counted: ")
        assert one.value is not None or one.quality is Quality.UNSUPPORTED


def test_memory_is_what_the_formulas_say(run):
    parts = {}
    for one in read(run).measurements:
        if one.group == "memory" and "MTP" in one.name:
            parts.setdefault(one.params["part"], {})[one.kind] = one.value
    assert set(parts) == {"weights", "KV full", "KV sliding"}
    for name, of in parts.items():
        room = 0.2 if name == "KV sliding" else 0.02  # the ring holds four positions more, and all positions' numbers
        assert of[Kind.MEASURED] == pytest.approx(of[Kind.PROJECTION], rel=room), name


def test_a_baseline_holds_what_was_measured_and_nothing_else(run):
    baseline = combine([read(run)])
    names = {entry.name for entry in baseline.entries.values()}
    assert {"tg32 @ d0", "MTP-3 step @ d512", "tg32 @ d0: weights"} <= names
    assert not [name for name in names if "energy" in name or " at " in name or "accepted" in name]


def test_a_run_without_its_end_goes_on_with_what_is_left(run, tmp_path):
    lines = run.read_text().splitlines(keepends=True)
    last = next(at for at, line in enumerate(lines) if '"name": "MTP-3 step @ d512"' in line)
    path = tmp_path / "run.jsonl"
    path.write_text("".join(lines[: last + 1]))
    code, said = perf(f"--results={path}", f"--scenario={DRAFTS}", "--scenario=tg32 @ d0", "--resume", "--budget=0")
    assert code == ExitCode.INCONCLUSIVE  # what is left is not begun, as the budget of time is spent
    assert "the budget of 0 s was spent: the rest was not measured" in said
    assert "2 skipped" in said
    assert '"end"' not in path.read_text().splitlines()[-1], "what the budget left out cannot follow"
    code, said = perf(f"--results={path}", f"--scenario={DRAFTS}", "--scenario=tg32 @ d0", "--resume", "--budget=0")
    assert "2 skipped" in said


def test_a_report_shows_the_curve_the_memory_and_the_drafts(run):
    text = html(gather([run]))
    for heading in ("Decode", "Memory", "MTP"):
        assert f"<h2>{heading}</h2>" in text
    assert "tg32 @ d0, " in text


@pytest.fixture(scope="module")
def subject():
    return CheckpointSubject(find_engine("reference.engine:engine"), MINIATURE, "cpu", load_prompts(None, MINIATURE))


class Changed:
    """The reference's model, whose generations are not its own."""

    def __init__(self, model, change):
        self._model, self._change = model, change
        self.new_session, self.extend_batch = model.new_session, model.extend_batch

    def generate(self, *arguments, **options):
        found = self._model.generate(*arguments, **options)
        return replace(found, tokens=self._change(found.tokens))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tokens: [tokens[0]] * len(tokens), "is less likely than the likeliest"),
        (lambda tokens: [10**6] * len(tokens), "tokens are not of the vocabulary of 768"),
        (lambda tokens: tokens[:-1], "ended before"),
    ],
)
def test_a_generation_that_is_none_has_no_time(subject, monkeypatch, change, said):
    monkeypatch.setattr(subject, "model", Changed(subject.model, change))
    result = measure_scenario(subject, Scenario(1, 8, generated=8), HOW)
    assert result.ms is None
    assert said in result.reason


@pytest.mark.parametrize("name", ["engine", "bf16_engine"])
def test_draft_heads_of_a_checkpoint_take_the_bytes_that_are_predicted(name):
    wanted = Wanted("checkpoint", MINIATURE, "int4", MINIATURE, draft_heads="int4")
    plain, rounded = (
        subject_of(find_engine(f"reference.engine:{name}"), "cpu", one)
        for one in (replace(wanted, draft_heads=None), wanted)
    )
    assert plain.weight_bytes - rounded.weight_bytes == plain.predicted_bytes - rounded.predicted_bytes > 0
    assert rounded.description()["draft_heads"] == "int4"


def test_a_batch_is_measured_through_extend_batch(subject, monkeypatch):
    result = measure_scenario(subject, Scenario(3, 16, extends=True), HOW)
    assert result.tokens_per_s == pytest.approx(3000 / (result.ms or 1))
    monkeypatch.delattr(type(subject.model), "extend_batch")
    result = measure_scenario(subject, Scenario(3, 16, extends=True), HOW)
    assert (result.offered, "has no extend_batch" in result.reason) == (False, True)


def test_energy_is_over_the_tokens_of_the_whole_interval(subject):
    counts = iter((1000, 9000))
    window = EnergyWindow([Counter("gpu_board", lambda: Fact(next(counts), "test"))], least_s=0.0)
    result = measure_scenario(subject, Scenario(1, 0, chunk=16), replace(HOW, energy=lambda: window))
    calls = (result.warmup or 0) + len(result.samples_us)
    assert (result.energy["millijoules"], result.energy["tokens"]) == (8000, 16 * calls)
    energy = next(one for one in of_scenario(asdict(result), "x", None, "test") if one.group == "energy")
    assert energy.value == pytest.approx(8 / (16 * calls))
    assert (energy.metric, energy.params["scope"]) == ("j_per_prompt_token", "gpu_board")


def test_energy_of_a_step_behind_a_prompt_is_that_of_the_tokens_alone(subject, monkeypatch):
    monkeypatch.setattr(checkpoint_work, "ENERGY_S", 0.0)
    spent = 0

    class Counted(Changed):
        def generate(self, prompt, most, **options):
            nonlocal spent
            spent += 5 * len(prompt) + 7 * most  # millijoules
            return super().generate(prompt, most, **options)

    monkeypatch.setattr(subject, "model", Counted(subject.model, lambda tokens: tokens))
    counter = Counter("gpu_board", lambda: Fact(spent, "test"))
    how = replace(HOW, energy=lambda: EnergyWindow([counter], least_s=0.0))
    result = measure_scenario(subject, Scenario(1, 16, generated=4), how)
    energy = next(one for one in of_scenario(asdict(result), "x", None, "test") if one.group == "energy")
    assert (energy.metric, energy.value) == ("j_per_output_token", pytest.approx(0.007))


def test_the_interpreted_model_is_not_offered():
    engine = find_engine("optimized.engine:engine")
    wanted = Wanted("checkpoint", MINIATURE, "int4", MINIATURE)
    if str(engine.device) != "cpu":
        pytest.skip("there is a GPU, where it is compiled")
    with pytest.raises(NotOfferedError, match="Triton's interpreter takes seconds a step"):
        subject_of(engine, "cpu", wanted)
    with pytest.raises(NotOfferedError, match="has no synthetic_model"):
        subject_of(find_engine("reference.engine:engine"), "cpu", replace(wanted, weights="synthetic"))


def test_scenarios_reach_as_far_as_the_model():
    names = [one.name for one in scenarios_of(published().model)]
    for name in ("pp512", "pp32768", "tg128 @ d0", "tg128 @ d131072", "tg128 @ d261888", "tg128 @ d4096, MTP-2",
                 "tg128 @ d4096, batch 8 by extend_batch"):  # fmt: skip
        assert name in names
    small = [one.name for one in scenarios_of(ModelConfig.from_file(MINIATURE))]
    assert ("pp1024" in small, "pp2048" in small, "tg32 @ d1792" in small) == (True, False, True)


def test_a_name_means_its_scenario_and_another_text_all_that_hold_it():
    found = scenarios_of(published().model)
    assert [one.name for one in chosen(found, ["tg128 @ d4096"])] == ["tg128 @ d4096"]
    assert len(chosen(found, ["MTP"])) == 4
    assert chosen(found, []) == list(found)


def test_bytes_of_weights_are_those_of_the_table_of_tensors():
    config = published().model
    counted = inspect(config)
    assert held_weight_bytes(config, FORMATS["bf16"]) == pytest.approx(counted["checkpoint_bytes"], rel=1e-5)
    one, all_of_them = (held_weight_bytes(config, FORMATS["int4"], sets) for sets in (1, 42))
    layer = counted["weight_bytes_by_expert_format"]
    routed = counted["parameters"]["routed_experts"]
    assert all_of_them - one == pytest.approx(routed / 42 * 41 * 0.516, rel=0.001)
    assert layer["int4"]["with_mtp"] > all_of_them  # there, what is no expert is in bfloat16


def test_tensors_that_live_are_counted_once():
    import torch

    before = held_bytes("cpu")
    kept = torch.zeros(1 << 18)
    views = [kept[:10], kept.view(2, -1)]
    assert held_bytes("cpu") - before == kept.nbytes
    del kept, views
    assert held_bytes("cpu") == before


def test_windows_of_a_text_differ_and_a_short_text_goes_on():
    text = Prompts(list(range(5000)), "test")
    first, second = text.window(10), text.window(10)
    assert (first[0], second[0], len(second)) == (0, 1013, 10)
    assert Prompts([1, 2, 3], "test").window(7) == [1, 2, 3, 1, 2, 3, 1]
    with pytest.raises(ValueError, match="has no tokens"):
        Prompts([], "test")


def test_prompts_are_the_packaged_text_a_file_or_a_set_of_the_hub(tmp_path, monkeypatch):
    assert load_prompts(None, MINIATURE).source == "packaged"
    plain, lines = tmp_path / "text.txt", tmp_path / "text.jsonl"
    plain.write_text("import os\n")
    lines.write_text(json.dumps({"text": "import os\n"}) + "\n")
    assert load_prompts(str(plain), MINIATURE).window(3) == load_prompts(str(lines), MINIATURE).window(3)
    with pytest.raises(ValueError, match=r"prompts: .*nowhere cannot be read"):
        load_prompts(str(tmp_path / "nowhere"), MINIATURE)
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return iter([{"body": "import os\n"}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = load_prompts("hf:a/set:part:test:body", MINIATURE)
    assert asked == [(("a/set", "part"), {"split": "test", "streaming": True})]
    assert found.window(3) == load_prompts(str(plain), MINIATURE).window(3)
    with pytest.raises(ValueError, match="has no column text; it has body"):
        load_prompts("hf:a/set", MINIATURE)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"want pip install 'step35-suite\[data\]', or a file"):
        load_prompts("hf:a/set", MINIATURE)


def test_drafts_pay_from_the_ratio_of_two_steps():
    def of(drafts, ms):
        scenario = Scenario(1, 4096, drafts)
        result = ModelResult(scenario.name, asdict(scenario), ms=ms, tokens_per_s=1000 / ms)
        return next(of_scenario(asdict(result), "x", None, "test"))

    found = break_even(of(3, 5.0), of(0, 2.0))
    assert (found.value, found.unit, found.name) == (2.5, "tokens", "MTP-3 pays from @ d4096")

"""``s35 perf model``: its formulas against counts made otherwise, and the command on a CPU."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.model import tiny
from hardware.energy import Counter, EnergyWindow
from hardware.machine import Fact
from perf.cost import Ceilings
from perf.model import GPU_SCENARIOS, How, ModelResult, Scenario, measure_scenario, speculation, table
from perf.model_cost import (
    FORMATS,
    attended_pairs,
    expected_distinct,
    held_weight_bytes,
    prefill_cost,
    step_bytes,
)
from perf.sampling import StopRule
from perf.shapes import published
from perf.synthetic_work import SyntheticSubject
from reference.accounting import inspect, kv_cache_bytes
from reports.verdict import ExitCode
from s35 import main


def test_a_step_that_reads_every_expert_reads_the_whole_checkpoint():
    """In bf16, with all experts chosen and one token: all tensors but the embedding, the norms and the MTP layers."""
    config = published().model
    all_of_them = [float(layer.num_experts) for layer in config.layers if layer.is_moe]
    parts = step_bytes(config, FORMATS["bf16"], 1, 4096, 0, all_of_them)
    counts = inspect(config)["parameters"]
    head_norms = sum(2 * layer.head_dim for layer in config.layers)
    bias = 288 * len(all_of_them)
    weights = sum(parts.values()) - parts["kv_full"] - parts["kv_sliding"] - parts["embedding"]
    attention = counts["attention_full_layers"] + counts["attention_sliding_layers"] - head_norms
    others = ("dense_mlp", "shared_experts", "routed_experts", "lm_head")
    assert weights == 2 * (attention + sum(counts[name] for name in others) + counts["router"] - bias)
    assert parts["kv_full"] + parts["kv_sliding"] == kv_cache_bytes(config, 4096)


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_draft_heads_in_int4_take_less_of_a_step_with_drafts_and_of_memory(format: str):
    config, stored = published().model, FORMATS[format]
    rounded = replace(stored, draft_heads="int4")
    head = config.vocab_size * config.hidden_size
    less = 3 * head * ({"bf16": 2.0, "int4": 1 + 4 / 128**2}[format] - 33 / 64)
    for drafts in (0, 3):
        before, after = (step_bytes(config, one, 1, 4096, drafts, [8.0] * 42) for one in (stored, rounded))
        assert sum(before.values()) - sum(after.values()) == (less if drafts else 0)
        assert before["head"] == after["head"]
    assert held_weight_bytes(config, stored) - held_weight_bytes(config, rounded) == less


def test_pairs_of_queries_and_keys_are_those_that_a_loop_counts():
    for start, count, window in [(0, 9, None), (5, 7, None), (0, 9, 4), (2, 9, 4), (30, 3, 4), (1, 2, 9)]:
        seen = sum(min(i + 1, window or i + 1) for i in range(start, start + count))
        assert attended_pairs(start, count, window) == seen


def test_a_longer_prompt_costs_more_only_where_attention_is_full():
    config, stored = published().model, FORMATS["int4"]
    first, later = prefill_cost(config, stored, 8192, 4096), prefill_cost(config, stored, 12_288, 4096)
    full = sum(layer.num_attention_heads * layer.head_dim for layer in config.layers if layer.sliding_window is None)
    assert later.flops - first.flops == 4.0 * 4096 * 4096 * full


def test_distinct_experts_are_those_of_independent_choices():
    found = expected_distinct(published().model, 4)
    assert len(found) == 42
    assert found[3] == pytest.approx(30.7, abs=0.05)


def test_drafts_pay_from_the_ratio_of_steps_on():
    def result(drafts: int, ms: float) -> ModelResult:
        scenario = Scenario(1, 4096, drafts)
        return ModelResult(scenario.name, vars(scenario), ms=ms)

    rows = speculation([result(0, 2.0), result(3, 5.0), ModelResult("x", vars(Scenario(1, 9, 3)), reason="no")])
    assert len(rows) == 1
    assert rows[0]["break_even_tokens_per_step"] == 2.5
    assert rows[0]["tokens_per_s_at_length"]["3.0"] == pytest.approx(600)
    assert "not measured: no" in table([ModelResult("x", vars(Scenario(1, 9, 3)), reason="no")])


def test_the_command_makes_a_model_and_times_it_on_a_cpu(tmp_path: Path):
    config, out = tmp_path / "config.json", tmp_path / "record.json"
    config.write_text(json.dumps(dict(tiny.TINY)), encoding="utf-8")
    words = ["perf", "model", "--config", str(config), "--device", "cpu", "--only", "MTP", "--out", str(out)]
    assert main([*words, "--draft-heads", "int4"]) == ExitCode.INCONCLUSIVE  # it ran, on no device whose time is told
    record = json.loads(out.read_text(encoding="utf-8"))
    (result,) = record["results"]
    assert result["ms"] > 0
    assert result["floor_ms"] is None
    assert 4 < result["distinct"] <= 12
    assert record["model"]["expert_sets"] == record["model"]["moe_layers"] == 4
    assert record["model"]["draft_heads"] == "int4"
    assert result["memory"]["weights"] == result["memory_predicted"]["weights"]
    assert "--out" not in record["command"]


def test_what_was_measured_is_kept_when_the_command_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, out = tmp_path / "config.json", tmp_path / "record.json"
    config.write_text(json.dumps(dict(tiny.TINY)), encoding="utf-8")

    def ends(subject, scenarios, how, left_s, say):
        say(ModelResult(scenarios[0].name, vars(scenarios[0]), ms=1.0))
        raise KeyboardInterrupt

    monkeypatch.setattr("perf.model.measure_all", ends)
    main(["perf", "model", "--config", str(config), "--device", "cpu", "--only", "MTP", "--out", str(out)])
    assert [result["ms"] for result in json.loads(out.read_text(encoding="utf-8"))["results"]] == [1.0]


class Counted:
    """A model with random weights that counts positions, as a device would: past its room, a row rests."""

    weight_bytes = 1000
    description = SimpleNamespace(expert_sets=4)
    full_bytes = sliding_bytes = predicted_bytes = allocated_bytes = 10

    def __init__(self):
        self.opened, self.seen = [], []

    def decoding(self, batch, context, num_drafts, captures):
        self.opened.append((batch, context, num_drafts, captures))
        self.batch, self.most, self.width = batch, context, num_drafts + 1
        self.start = max(context - 128 - 8, 1)
        return self

    def chunk(self, start, num_tokens):
        self.opened.append((start, num_tokens))
        return SimpleNamespace(run=lambda: self.seen.append(start))

    def rewind(self):
        self.at = self.start

    def next_tokens(self, number):
        self.number = number

    def replay(self):
        self.at += self.width  # as if every draft were accepted
        assert self.at <= self.most, "a step past the room would rest, and take no time"

    def step(self):
        self.replay()
        row = SimpleNamespace(accepted=0, tokens=[self.number % 100])
        return SimpleNamespace(outcomes=lambda: [row] * self.batch)

    def distinct_experts(self, number):
        return [8] * 42


def on_a_fake_gpu(monkeypatch):
    """Its model, and its scenarios measured as on a GPU: blocks of steps between events."""
    model = Counted()
    subject = SyntheticSubject(SimpleNamespace(synthetic_model=lambda *_: model), published().model, "int4", "cpu")
    monkeypatch.setattr(subject.clock, "is_cuda", True)
    monkeypatch.setattr(subject.clock, "wait", lambda: None)
    for name in ("allocated", "peak", "in_use"):
        monkeypatch.setattr(subject.clock, name, lambda: 1)
    monkeypatch.setattr(subject.clock, "reset_peak", lambda: None)

    def times_ms(before, call, count):
        for number in range(count):
            before(number)
            call()
        return [4.0] * count

    monkeypatch.setattr(subject.clock, "times_ms", times_ms)
    ceilings = Ceilings(4000.0, {"bf16": 700.0}, {})
    rule = StopRule(least_samples=5, least_s=0.0, most_s=0.2, most_warmup=10)
    counts = itertools.count(0, 1000)
    window = lambda: EnergyWindow([Counter("gpu_board", lambda: Fact(next(counts), "test"))], least_s=0.0)  # noqa: E731
    how = How(rule, ceilings, energy=window)
    return model, lambda scenario: measure_scenario(subject, replace(scenario, profiled=False), how)


@pytest.mark.parametrize("scenario", [one for one in GPU_SCENARIOS if not one.chunk], ids=lambda one: one.name)
def test_steps_on_a_gpu_never_run_out_of_room(monkeypatch, scenario):
    model, measured = on_a_fake_gpu(monkeypatch)
    result = measured(scenario)
    assert result.reason == ""
    assert result.ms == 4.0
    assert result.tokens_per_s == pytest.approx(scenario.batch * 250)
    assert model.opened == [(scenario.batch, min(scenario.context + 136, 262_144), scenario.num_drafts, True)]
    assert result.floor_ms is not None
    steps = 16 * ((result.warmup or 0) + len(result.samples_us))
    assert (result.energy["tokens"], result.energy["millijoules"]) == (steps * scenario.batch, 1000)
    assert result.distinct == 8


def test_a_long_prompt_is_taken_in_chunks(monkeypatch):
    model, measured = on_a_fake_gpu(monkeypatch)
    result = measured(Scenario(1, 0, chunk=20_000))
    assert model.opened == [(0, 8192), (8192, 8192), (16_384, 3616)]
    assert model.seen[:3] == [0, 8192, 16_384]
    assert (result.reason, result.bound, result.tokens_per_s) == ("", "compute", pytest.approx(20_000 / 0.004))

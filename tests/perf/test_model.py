"""``s35 perf model``: its formulas against counts made otherwise, and the command on a CPU."""

import json
from pathlib import Path

import pytest

from conformance.model import tiny
from perf.model import ModelResult, Scenario, speculation, table
from perf.model_cost import FORMATS, attended_pairs, expected_distinct, prefill_cost, step_bytes
from perf.shapes import published
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
    assert main(words) == ExitCode.INCONCLUSIVE  # it ran, but on no device whose time is told
    record = json.loads(out.read_text(encoding="utf-8"))
    (result,) = record["results"]
    assert result["ms"] > 0
    assert result["floor_ms"] is None
    assert 4 < result["distinct"] <= 12
    assert record["model"]["expert_sets"] == record["model"]["moe_layers"] == 4
    assert "--out" not in record["command"]

"""Requests served in a closed loop: each figure by its definition, on a clock that the test sets."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import s35
from perf.serving import Load, measure, percentiles_ms, warm_up


@dataclass(frozen=True)
class Usage:
    drafted_per_position: tuple[int, ...] = ()
    accepted_per_position: tuple[int, ...] = ()
    preemptions: int = 0


@dataclass(frozen=True)
class Finish:
    usage: Usage


@dataclass(frozen=True)
class Event:
    request_id: int
    tokens: tuple[int, ...]
    finish: Finish | None = None


@dataclass
class Steady:
    """A step takes a second; a request's tokens come in chunks of these sizes, one a step, the first after two."""

    chunks: tuple[int, ...]
    usage: Usage = field(default_factory=Usage)
    now_s: float = 0.0
    most: int = 0
    steps: dict[int, int] = field(default_factory=dict)

    @property
    def is_busy(self) -> bool:
        return bool(self.steps)

    def submit(self, request: object) -> int:
        number = int(str(request))
        self.steps[number] = 0
        self.most = max(self.most, len(self.steps))
        return number

    def step(self) -> list[Event]:
        self.now_s += 1
        events = []
        for number in list(self.steps):
            self.steps[number] += 1
            place = self.steps[number] - 2
            if place >= 0:
                ends = place == len(self.chunks) - 1
                events.append(Event(number, (7,) * self.chunks[place], Finish(self.usage) if ends else None))
                if ends:
                    del self.steps[number]
        return events


def test_times_and_rates_follow_their_definitions() -> None:
    steady = Steady((1, 3, 2), Usage((2,), (1,), 1))
    result = measure(steady, lambda number: number, Load(2, 4, 9, 6), lambda: steady.now_s)
    assert steady.most == 2
    assert result.wall_s == 8  # two after two, of four steps each
    assert result.output_tokens_per_s == 4 * 6 / 8
    assert result.requests_per_s == 0.5
    assert set(result.ttft_ms.values()) == {2000}
    assert set(result.icl_ms.values()) == {1000}
    assert set(result.tpot_ms.values()) == {2000 / 5}  # two seconds after the first token, five tokens
    assert set(result.e2e_ms.values()) == {4000}
    assert result.acceptance_length == 5 / 4  # of five tokens after the first, one was an accepted draft
    assert result.accepted_per_position == (0.5,)
    assert result.preemptions == 4


def test_without_drafts_there_is_no_acceptance_and_one_token_has_no_gap() -> None:
    steady = Steady((1,))
    result = measure(steady, lambda number: number, Load(1, 1, 9, 1), lambda: steady.now_s)
    assert (result.acceptance_length, result.accepted_per_position) == (None, ())
    assert (result.tpot_ms, result.icl_ms) == ({}, {})


def test_a_request_that_ends_early_is_no_measurement() -> None:
    steady = Steady((1, 1))
    with pytest.raises(RuntimeError, match="ended after 2 tokens; want all of 3"):
        measure(steady, lambda number: number, Load(1, 1, 9, 3), lambda: steady.now_s)


def test_warming_up_ends_with_nothing_under_way() -> None:
    steady, counts = Steady((1, 1)), []
    warm_up(steady, lambda number, count: counts.append(count) or number, 3)
    assert counts == [8, 10, 12]
    assert not steady.is_busy


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert percentiles_ms([0.004, 0.001, 0.002, 0.003, 0.005]) == pytest.approx({"p50": 3, "p90": 4.6, "p99": 4.96})
    assert percentiles_ms([]) == {}


class Engine:
    """Serves at once what it is asked for."""

    name, profile, device = "steady", "bf16", "cpu"

    def served_model(self, checkpoint: Path, num_contexts: int, longest: int) -> "Engine":
        assert (num_contexts, longest) == (4, 16 + 5 + 2 * 4 + 8)
        return self

    def serve(self, max_batch: int, token_budget: int, mtp: int | str) -> Steady:
        assert mtp == "auto"
        return Steady((5,))

    def request(self, prompt_ids: list[int], num_tokens: int) -> str:
        assert len(prompt_ids) == 16
        return str(next(NUMBERS))


NUMBERS = itertools.count()


def test_the_command_measures_each_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("conformance.engine.find_engine", lambda name: Engine())
    words = ["perf", "serve", "--device", "cpu", "--concurrency", "1,4", "--requests", "6", "--prompt-tokens", "16"]
    assert s35.main([*words, "--new-tokens", "5", "--mtp", "auto", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [result["load"]["concurrency"] for result in record["results"]] == [1, 4]
    assert record["prompts"] == "packaged"
    assert s35.main([*words, "--new-tokens", "5", "--mtp", "auto"]) == 0
    assert "16 + 5" in capsys.readouterr().out


def test_an_engine_that_serves_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert s35.main(["perf", "serve", "--device", "cpu", "--engine", "reference"]) == 4
    assert "engine: reference serves no requests; want one with served_model" in capsys.readouterr().err

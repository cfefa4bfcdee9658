"""The trap of pytest-benchmark: a clock that a fixture sets is lost without a word in three of these four cases."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFTEST = """
import pytest
from perf.benchmark import replay, set_clock

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    HOOK

@pytest.fixture
def device_benchmark(request, benchmark):
    def run(samples):
        if not benchmark.enabled:
            return benchmark.pedantic(lambda: None)
        if CLOCK not in request.node.stash:
            pytest.fail("no clock", pytrace=False)
        replay(request.node, benchmark, samples, cache="cold")
    return run

from perf.benchmark import CLOCK
"""
TESTS = """
import pytest

SAMPLES = [2e-3, 2.1e-3, 1.9e-3]

def test_plain(device_benchmark):
    device_benchmark(SAMPLES)

@pytest.mark.benchmark(group="decorated")
def test_decorated(device_benchmark):
    device_benchmark(SAMPLES)

@pytest.mark.benchmark(group="of the class")
class TestClass:
    def test_in_class(self, device_benchmark):
        device_benchmark(SAMPLES)

def test_benchmark_first(benchmark, device_benchmark):
    device_benchmark(SAMPLES)
"""


def session(folder, *words, hook="set_clock(item)"):
    (folder / "conftest.py").write_text(CONFTEST.replace("HOOK", hook))
    (folder / "test_times.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *words]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_each_way_to_ask_for_it_reports_device_time_and_keeps_its_group(tmp_path):
    code, said = session(tmp_path, "--benchmark-json=out.json")
    assert code == 0, said
    found = {one["name"]: one for one in json.loads((tmp_path / "out.json").read_text())["benchmarks"]}
    assert [one["stats"]["median"] for one in found.values()] == [pytest.approx(2e-3)] * 4
    assert {one["options"]["timer"] for one in found.values()} == {"replay_clock"}
    assert {name: one["group"] for name, one in found.items()} == {
        "test_plain": None,
        "test_decorated": "decorated",
        "test_in_class": "of the class",
        "test_benchmark_first": None,
    }
    assert found["test_plain"]["extra_info"] == {"cache": "cold"}


@pytest.mark.parametrize("words", [("--benchmark-only",), ("--benchmark-disable",), ("--benchmark-timer=time.time",)])
def test_its_own_options_keep_working(tmp_path, words):
    code, said = session(tmp_path, *words)
    assert (code, "4 passed" in said) == (0, True), said


def test_without_the_hook_nothing_is_reported_as_device_time(tmp_path):
    late = "from perf import benchmark; item.stash[benchmark.CLOCK] = benchmark.ReplayClock()"
    code, said = session(tmp_path, hook=late)
    assert code == 1
    assert said.count("replay clock: was not used, so host time would have been reported") >= 4

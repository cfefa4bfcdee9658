"""The whole model's steps and prompts: a geometry with random weights, or a checkpoint: on a CPU the miniature."""

from collections.abc import Callable

import pytest

from .model import Scenario
from .whole import Wanted, chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario" not in metafunc.fixturenames:
        return
    config = metafunc.config
    wanted, texts = Wanted.of(config), config.getoption("--scenario")
    found = chosen(wanted.scenarios(config.getoption("--device") or "cpu"), texts)
    if config.getoption("--op") and not texts:
        found = []  # operators alone are asked for
    metafunc.parametrize("scenario", found, ids=[one.name for one in found])


@pytest.mark.benchmark(group="whole model")
def test_the_whole_model_is_right_and_takes_its_time(measured: Callable[[Scenario], None], scenario: Scenario) -> None:
    measured(scenario)

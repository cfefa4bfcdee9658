"""Each operator's time at each of its shapes: the published ones on a GPU, those of the miniature on a CPU."""

from collections.abc import Callable

import pytest

from .case import Case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    ops = config.getoption("--op")
    if (config.getoption("--device") or "cpu") == "cpu":
        from .small import small_cases as cases_of
    else:
        from .catalogue import select as cases_of
    caches = ["cold", "warm"] if config.getoption("--warm") else ["cold"]
    chosen = [] if config.getoption("--scenario") and not ops else cases_of(ops)  # the whole model alone is asked for
    cases = [(case, cache) for case in chosen for cache in caches]
    metafunc.parametrize(("case", "cache"), cases, ids=[f"{case.name} {cache}" for case, cache in cases])


@pytest.mark.benchmark(group="operators")
def test_an_operator_is_right_and_takes_its_time(timed: Callable[[Case, str], None], case: Case, cache: str) -> None:
    timed(case, cache)

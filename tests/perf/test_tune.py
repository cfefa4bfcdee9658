"""What ``s35 tune`` tries is what the kernels take."""

import tomllib
from typing import Any

import pytest

from optimized.launch import FOLDER, OPTIONS
from perf.tune import Search, searches

ENTRIES = [tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8")) for name in ("nvidia_h200_sxm", "default")]


def options(entry: dict[str, Any]) -> set[str]:
    return {key for key in entry if key.isupper() or key in OPTIONS}


@pytest.mark.parametrize("search", searches([]), ids=lambda search: f"{search.kernel} {search.holds}")
def test_candidates_have_every_option_of_an_entry_that_they_would_replace(search: Search) -> None:
    entries = [entry for file in ENTRIES for entry in file.get(search.kernel, [])]
    same = [entry for entry in entries if entry.items() >= search.holds.items()]
    same = [entry for entry in same if set(entry) - options(entry) == set(search.holds)]
    assert set(search.values) in [options(entry) for entry in same or entries]


@pytest.mark.parametrize("search", searches([]), ids=lambda search: f"{search.kernel} {search.holds}")
def test_each_search_times_cases_that_exist(search: Search) -> None:
    assert len(search.matching()) >= len(search.cases)


def test_a_kernel_without_a_search_is_named() -> None:
    with pytest.raises(ValueError, match="tune: 'nothing' has no search; known: linear, "):
        searches(["nothing"])

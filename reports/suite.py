"""Where this suite's checks are, and which version of it judges."""

import importlib.util
from pathlib import Path

from .digest import file_sha256
from .schema import Suite

JUDGED_BY = ("clauses.toml", "levels.toml")  # of conformance/: what the verdict rests on


def conformance_folder() -> Path:
    """Find the conformance tests of this checkout, from whatever folder the command runs in.

    Raises:
        ValueError: a folder named conformance on Python's path hides them.
    """
    spec = importlib.util.find_spec("conformance")
    assert spec is not None, "the conformance package is part of the distribution"
    if spec.origin is None:
        hiding = ", ".join(spec.submodule_search_locations or [])
        raise ValueError(f"conformance: {hiding} hides the suite's tests; want that folder off PYTHONPATH")
    return Path(spec.origin).parent


def levels_file() -> Path:
    """The file that says what a level is."""
    return conformance_folder() / "levels.toml"


def this_suite(commit: str | None) -> Suite:
    """Describe the suite that runs.

    Args:
        commit: of its checkout; None: not known.
    """
    folder = conformance_folder()
    return Suite(commit, {f"{folder.name}/{name}": file_sha256(folder / name) for name in JUDGED_BY})

"""The adapters of other people's implementations, where none of those is installed."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from conformance.engine import EngineError, find_engine
from conformance.subjects.installed import SubjectError, find
from reports.known_failures import read_known_failures

ROOT = Path(__file__).parents[2]
SUBJECTS = ROOT / "conformance" / "subjects"

ENGINES = {  # attribute, the library that it adapts, and what pip calls it
    "hf_transformers:engine": ("transformers", "transformers"),
    "hf_transformers:bf16_engine": ("transformers", "transformers"),
    "apple_mlx_lm:engine": ("mlx", "mlx"),
    "apple_mlx_lm:loader_engine": ("mlx", "mlx"),
    "ggml_llama_cpp:engine": ("llama_cpp", "llama-cpp-python"),
    "ggml_llama_cpp:ring_engine": ("llama_cpp", "llama-cpp-python"),
}


class Absent:
    """A finder for which a library is not there, installed or not."""

    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def without(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a library impossible to import."""
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(library), *sys.meta_path])


@pytest.mark.parametrize("name", ENGINES)
def test_a_missing_library_is_an_error_that_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library, distribution = ENGINES[name]
    without(library, monkeypatch)
    with pytest.raises(EngineError, match=f"subject: {distribution} is not installed; want pip install "):
        find_engine(f"conformance.subjects.{name}")


def test_a_library_without_the_module_is_an_error_that_names_its_version() -> None:
    with pytest.raises(SubjectError, match=r"subject: pytest is \d.*, without pytest\.no_such; want pip install --upg"):
        find("pytest.no_such", "pytest")


def test_a_librarys_own_missing_requirement_is_not_taken_for_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_requirement\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_requirement") as raised:
        find("half_installed", "half-installed")
    assert not isinstance(raised.value, SubjectError)


def test_every_adapter_is_importable_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, _ in ENGINES.values():
        without(library, monkeypatch)
    for path in SUBJECTS.glob("*.py"):
        importlib.import_module(f"conformance.subjects.{path.stem}".removesuffix(".__init__"))


def test_every_adapter_of_an_engine_is_listed_here() -> None:
    factories = {
        f"{path.stem}:{line.removeprefix('def ').partition('(')[0]}"
        for path in SUBJECTS.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and line.partition("(")[0].endswith("engine")
    }
    assert factories == set(ENGINES)


def test_known_failures_are_of_checks_that_there_are() -> None:
    command = [sys.executable, "-m", "pytest", "conformance", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    collected = set(done.stdout.splitlines())
    files = sorted((SUBJECTS / "known_failures").glob("*.toml"))
    assert files
    for path in files:
        known = read_known_failures(path)
        assert known.reasons, path.name
        assert not set(known.reasons) - collected, path.name
        assert tomllib.loads(path.read_text(encoding="utf-8")).keys() == known.reasons.keys()

"""The rules of the house that no linter knows: who imports whom, one row per op, no retries, a light front door."""

import ast
import importlib.util
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))

MAY_IMPORT = {  # of the suite's own modules, besides itself
    "hardware": (),
    "reports": (),
    "reference": (),
    "optimized": (
        "reference.config",
        "reference.checkpoint",
        "reference.quantization",
        "reference.tokenizer",
        "hardware",
    ),
    "conformance": (
        "reference",
        "hardware",
        *("reports.schema", "reports.verdict", "reports.digest"),
        *("reports.levels", "reports.waivers", "reports.known_failures"),
    ),
    "perf": (
        *("conformance.engine", "reference.config", "hardware", "reports.schema", "reports.verdict"),
        *(
            "reports.measurement",
            "reports.metrics",
            "reports.journal",
            "reports.baseline",
            "reports.gate",
            "reports.records",
        ),  # what measurements are recorded as
        "reference.accounting",  # projections count what the table of tensors holds
        "reference.quantization",  # inputs of the experts are made in its formats
        "reference.tokenizer",  # prompts are text
        "optimized.launch",  # launch configurations are tried; kernels are found by name, never imported
    ),
}
NEVER_IMPORTS = {  # of other people's modules, not even inside a function
    "hardware": ("torch", "triton", "numpy"),
    "reports": ("torch", "triton", "numpy"),
    "reference": ("triton",),
    "conformance": ("triton",),
}
STANDARD_LIBRARY_WHEN_IMPORTED = ("hardware", "reports")
RETRY_NAMES = {"flaky", "rerun", "reruns", "retry", "retries", "rerunfailures", "pytest_rerunfailures", "tenacity"}


@dataclass(frozen=True)
class Import:
    """One imported module, as the full name, and where that happens."""

    module: str
    where: str
    in_function: bool
    relative: bool


def python_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of a file; `from a import b` counts as `a.b`, which is the longest name it can mean."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names, relative = [alias.name for alias in node.names], False
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            names, relative = [f"{prefix}.{alias.name}" for alias in node.names], node.level > 0
        else:
            continue
        for name in names:
            yield Import(name, f"{path.relative_to(ROOT)}:{node.lineno}", id(node) in inside, relative)


def is_within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def test_each_package_has_its_import_rules():
    assert set(PACKAGES) <= set(MAY_IMPORT)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_whom_they_may(package):
    wrong = []
    for path in python_files(ROOT / package):
        where_packages_meet = path.parent == ROOT / package and path.name.endswith("commands.py")  # mounted by s35.py
        for used in imports_of(path):
            top = used.module.partition(".")[0]
            if top not in MAY_IMPORT or top == package or (where_packages_meet and used.in_function):
                continue
            if not is_within(used.module, MAY_IMPORT[package]):
                wrong.append(f"{used.where}: {package} imports {used.module}")
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_inside_a_package_are_relative(package):
    used = [used for path in python_files(ROOT / package) for used in imports_of(path)]
    assert used
    assert not [u.where for u in used if is_within(u.module, (package,)) and not u.relative]


@pytest.mark.parametrize("package", sorted(set(NEVER_IMPORTS) & set(PACKAGES)))
def test_packages_stay_away_from_what_they_must_not_need(package):
    used = [used for path in python_files(ROOT / package) for used in imports_of(path)]
    assert not [u.where for u in used if is_within(u.module, NEVER_IMPORTS[package])]


def test_the_front_door_and_its_packages_need_only_the_standard_library_to_be_imported():
    files = [ROOT / "s35.py", *ROOT.glob("*/*commands.py")]
    files += [path for package in STANDARD_LIBRARY_WHEN_IMPORTED for path in python_files(ROOT / package)]
    own = set(PACKAGES)
    wrong = [
        used.where
        for path in files
        for used in imports_of(path)
        if not used.in_function and used.module.partition(".")[0] not in sys.stdlib_module_names | own
    ]
    assert len(files) > len(PACKAGES)
    assert not wrong


def test_each_op_of_the_reference_is_judged_under_the_same_name():
    ops = {path.stem for path in (ROOT / "reference/ops").glob("[a-z]*.py")}
    judged = {path.stem.removeprefix("test_") for path in (ROOT / "conformance/ops").glob("test_*.py")}
    assert ops
    assert not ops - judged


def test_each_package_name_means_this_checkout():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert set(PACKAGES) <= set(listed)
    for name in [*listed, "s35"]:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        assert spec.origin is not None, name
        assert Path(spec.origin).resolve().is_relative_to(ROOT), f"{name} is {spec.origin}"


def test_nothing_is_retried():
    wrong = []
    files = [path for folder in [*PACKAGES, "tests"] for path in python_files(ROOT / folder)]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {getattr(node, "attr", None), getattr(node, "id", None)}
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.name.partition(".")[0] for alias in node.names}
                names |= {(getattr(node, "module", None) or "").partition(".")[0]}
            if names & RETRY_NAMES:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    for name in ("pyproject.toml", "Makefile", ".ci/run", "constraints.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        wrong += [f"{name}: {word}" for word in re.findall(r"--reruns|rerunfailures|flaky", text)]
    assert len(files) > len(PACKAGES)
    assert not wrong


def test_help_loads_nothing_heavy_and_comes_at_once(tmp_path):
    traced = [sys.executable, "-X", "importtime", "-m", "s35", "--help"]
    done = subprocess.run(traced, cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded  # the trace is read correctly
    assert not loaded & {"torch", "numpy", "triton", "pytest", "tabulate", "psutil", "tokenizers", "rich"}
    durations_s = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "s35", "--help"], cwd=tmp_path, capture_output=True, check=True)
        durations_s.append(time.perf_counter() - start)
    assert min(durations_s) < 0.3

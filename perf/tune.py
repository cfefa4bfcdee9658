"""Search launch configurations on a device: candidates are data, compiled side by side, checked, then timed.

``tune_candidates.toml`` says, for each kernel, which values to try, on which cases, and under which conditions the best
is entered into the device's file of ``optimized/launch_configs``. Of many combinations a seeded sample is tried.
"""

import itertools
import math
import multiprocessing
import random
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from optimized.launch import OPTIONS, trying

from .case import Args, Case
from .catalogue import all_cases
from .maker import Maker
from .ops import fused
from .ops.bench_experts import forget_weights
from .sweep import sets_of
from .timing import CaptureError, GraphStopwatch, time_calls

CANDIDATES = Path(__file__).with_name("tune_candidates.toml")
COMPILERS = 10  # processes; each holds the inputs of a case: 9 GB of bf16 experts
REPLAYS = 5
Options = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """What to try for a kernel.

    Attributes:
        kernel: as in the launch configurations.
        holds: conditions of the entry that the best becomes.
        cases: beginnings of the names of the cases that are timed.
        values: of each option; every combination is a candidate.
        most: of candidates that are tried.
    """

    kernel: str
    holds: Options
    cases: tuple[str, ...]
    values: Mapping[str, Sequence[Any]]
    most: int = 48

    def candidates(self) -> list[Options]:
        """A seeded sample of the combinations."""
        product = [dict(zip(self.values, each, strict=True)) for each in itertools.product(*self.values.values())]
        chosen = random.Random(0).sample(product, min(self.most, len(product)))
        return sorted(chosen, key=product.index)

    def matching(self) -> list[Case]:
        """The cases to time.

        Raises:
            ValueError: a beginning that no case has.
        """
        known = all_cases()
        for start in self.cases:
            if not any(case.name.startswith(start) for case in known):
                raise ValueError(f"tune: no case begins with {start!r}; `s35 perf ops --device cpu` lists them")
        return [case for case in known if case.name.startswith(self.cases)]


@dataclass(frozen=True)
class Tuned:
    """The outcome of a search: candidates that worked, best first, with their times by case in us."""

    search: Search
    ranked: tuple[tuple[Options, tuple[float, ...]], ...]
    failed: int

    @property
    def entry(self) -> Options:
        """As the launch configurations hold it."""
        return {**self.search.holds, **self.ranked[0][0]}


def searches(kernels: Sequence[str]) -> list[Search]:
    """Read the searches of these kernels; of all where none is named.

    Raises:
        ValueError: a kernel without a search.
    """
    table = tomllib.loads(CANDIDATES.read_text(encoding="utf-8"))["search"]
    found = [
        Search(one["kernel"], one.get("holds", {}), tuple(one["cases"]), one["try"], one.get("most", 48))
        for one in table
    ]  # fmt: skip
    unknown = [kernel for kernel in kernels if kernel not in {search.kernel for search in found}]
    if unknown:
        known = ", ".join(dict.fromkeys(search.kernel for search in found))
        raise ValueError(f"tune: {unknown[0]!r} has no search; known: {known}")
    return [search for search in found if not kernels or search.kernel in kernels]


def tune(wanted: Sequence[Search], budget_s: float, say: Callable[[Tuned], None]) -> list[Tuned]:
    """Run searches on the current CUDA device, one after another, until the budget is spent."""
    started, done = time.monotonic(), []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(COMPILERS, mp_context=context) as pool:
        for search in wanted:
            if time.monotonic() - started > budget_s:
                break
            with torch.inference_mode():
                found = _run(search, pool)
            if found is not None:
                done.append(found)
                say(found)
    return done


def _run(search: Search, pool: Executor) -> Tuned | None:
    candidates, cases = search.candidates(), search.matching()
    parts = [candidates[start::COMPILERS] for start in range(COMPILERS)]
    compile_part = partial(_try_all, search.kernel, cases[0].name)
    works = [options for part in pool.map(compile_part, parts) for options in part]
    times: dict[int, list[float]] = {index: [] for index in range(len(works))}
    for case in cases:
        operator, sets = operator_of(case), sets_of(case)
        for index, options in enumerate(works):
            times[index].append(_time(search, options, operator, sets, case.renew))
        del sets
    forget_weights()
    torch.cuda.empty_cache()
    ranked = sorted(times, key=lambda index: sum(map(math.log, times[index])))
    results = tuple((works[index], tuple(times[index])) for index in ranked if math.isfinite(sum(times[index])))
    return Tuned(search, results, len(candidates) - len(results)) if results else None


def _try_all(kernel: str, case_name: str, part: Sequence[Options]) -> list[Options]:
    """Compile, run and check candidates in a process of its own; those that work."""
    from .sweep import reference_rows

    if not part:
        return []
    case = next(case for case in all_cases() if case.name == case_name)
    works = []
    with torch.inference_mode():
        args, operator = case.build(Maker("cuda"))(), operator_of(case)
        reference = case.reference_of(reference_rows("cuda"))
        for options in part:
            try:
                with trying(kernel, options):
                    now = case.renew(args) if case.renew else args
                    got = operator(*now)
                torch.cuda.synchronize()
                if case.check(reference, now, got).holds:
                    works.append(options)
            except Exception as error:  # too much shared memory, say: a candidate that is none
                print(f"{kernel} {options}: {type(error).__name__}", flush=True)
    del args
    forget_weights()
    torch.cuda.empty_cache()  # the other compilers want room, and then the timer
    return works


def operator_of(case: Case) -> Callable[..., Any]:
    """The optimised engine's operator or fused kernel of a case."""
    from conformance.engine import find_engine

    return fused.find(case.fused) if case.fused else case.operator_of(find_engine("optimized.engine:engine").ops())


def _time(
    search: Search,
    options: Options,
    operator: Callable[..., Any],
    sets: Sequence[Args],
    renew: Callable[[Args], Args] | None,
) -> float:
    try:
        with trying(search.kernel, options):
            now = [renew(args) for args in sets] if renew else sets
            return time_calls(lambda copy: operator(*now[copy % len(now)]), len(now), GraphStopwatch(), REPLAYS).us
    except (CaptureError, RuntimeError):
        return math.inf


def merged(text: str, tuned: Sequence[Tuned], made: Mapping[str, str]) -> str:
    """A file of launch configurations with the best of each search in the place of the entry of the same conditions."""
    table = tomllib.loads(text)
    comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    table["made"] = dict(made)
    for one in tuned:
        entries = table.setdefault(one.search.kernel, [])
        place = next((i for i, entry in enumerate(entries) if _conditions(entry) == one.search.holds), None)
        if place is None:
            entries.insert(0, one.entry)
        else:
            entries[place] = one.entry
    lines = ["[made]", *_lines(table.pop("made")), ""]
    for kernel, entries in table.items():
        for entry in entries:
            lines += [f"[[{kernel}]]", *_lines(entry), ""]
    return comment + "\n" + "\n".join(lines)


def _conditions(entry: Options) -> Options:
    return {key: value for key, value in entry.items() if not (key.isupper() or key in OPTIONS)}


def _lines(entry: Mapping[str, Any]) -> Iterator[str]:
    for key, value in entry.items():
        shown = str(value).lower() if isinstance(value, bool) else value
        yield f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {shown}"

"""Run cases on a CUDA device: check the output, then time it, beside ceilings of the same run."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from conformance.engine import Engine, find_engine, move
from optimized.launch import Launch, noting

from .case import Args, Case
from .cost import Ceilings, floor
from .maker import Maker
from .ops import bench_experts, fused
from .peers import Peer, peers_of
from .result import Outcome, Result, blank
from .timing import Timing, time_on_device
from .workload import cold_sets

KEPT_BYTES = 60_000_000_000  # of memory that is free again: giving it back takes milliseconds


@dataclass(frozen=True)
class Sweep:
    """Results in the order of the cases, each case's peers after it."""

    ceilings: Ceilings | None
    results: tuple[Result, ...]


def without_device(cases: Sequence[Case], engine: str, why: str) -> Sweep:
    """The costs alone."""
    return Sweep(None, tuple(blank(case, engine, Outcome.NOT_MEASURED, why) for case in cases))


def run_sweep(
    cases: Sequence[Case],
    engine_name: str,
    device: str,
    budget_s: float,
    with_peers: bool,
    measure: Callable[[], Ceilings],
    say: Callable[[Result], None],
) -> Sweep:
    """Time the cases on a CUDA device until the budget is spent; what is left says so.

    Raises:
        EngineError: the engine cannot be found, or not be moved to the device.
    """
    started = time.monotonic()
    torch.cuda.set_device(torch.device(device).index or 0)
    engine = find_engine(engine_name)
    move(engine, device)
    rows, reference = engine.ops(), reference_rows(device)
    ceilings = measure()
    results: list[Result] = []
    for case in cases:
        if time.monotonic() - started > budget_s:
            new = [blank(case, engine.name, Outcome.NOT_MEASURED, f"the budget of {budget_s:g} s was spent")]
        else:
            with torch.inference_mode():
                new = _measure(case, engine, rows, reference, ceilings, peers_of(case) if with_peers else ())
        for result in new:
            say(result)
        results += new
        if torch.cuda.memory_reserved() > KEPT_BYTES:
            torch.cuda.empty_cache()
    bench_experts.forget_weights()
    return Sweep(ceilings, tuple(results))


def reference_rows(device: str) -> Mapping[str, Callable[..., Any]]:
    """The reference's operators on a device; float64 in is the oracle."""
    engine = find_engine("reference.engine:engine")
    move(engine, device)
    return engine.ops()


def _measure(
    case: Case,
    engine: Engine,
    rows: Mapping[str, Callable[..., Any]],
    reference: Mapping[str, Callable[..., Any]],
    ceilings: Ceilings,
    peers: Sequence[Peer],
) -> list[Result]:
    """The engine's result, then the peers' on the same inputs."""
    operator, lacks = None, ""
    is_ours = engine.name.startswith("optimized")
    try:
        operator = fused.find(case.fused) if case.fused and is_ours else case.operator_of(rows)
    except LookupError as error:
        lacks = str(error.args[0]) if case.fused and is_ours else f"{engine.name} has {error.args[0]}"
    try:
        sets = sets_of(case)
    except (RuntimeError, LookupError, ValueError, NotImplementedError) as error:
        return [blank(case, engine.name, Outcome.ERROR, f"inputs: {_line(error)}")]
    results = []
    if operator is None:
        results.append(blank(case, engine.name, Outcome.NOT_OFFERED, lacks))
    else:
        check = _Checked(case, case.reference_of(reference))
        results.append(_timed(case, engine.name, operator, sets, check, ceilings))
    for peer in peers:
        try:
            prepared = [(peer.prepare(args),) for args in sets]
        except Exception as error:  # whatever a peer refuses with is its answer
            results.append(blank(case, peer.name, Outcome.NOT_OFFERED, _line(error)))
            continue
        work = dataclasses.replace(
            case,
            dtype=peer.dtype or case.dtype,
            cost=dataclasses.replace(case.cost, hbm_bytes=case.cost.hbm_bytes * peer.bytes_share),
            multiplies_in=peer.dtype or case.multiplies_in,
        )
        results.append(_timed(work, peer.name, lambda call: call(), prepared, None, ceilings))
        del prepared
    return results


@dataclass(frozen=True)
class _Checked:
    case: Case
    reference: Callable[..., Any]

    def __call__(self, args: Args, got: Any) -> tuple[float, str]:
        agreement = self.case.check(self.reference, args, got)
        return agreement.error, agreement.of


def _timed(
    case: Case,
    engine: str,
    operator: Callable[..., Any],
    sets: Sequence[Args],
    check: _Checked | None,
    ceilings: Ceilings,
) -> Result:
    """Check where there is a check, then time. A peer is timed unchecked and labelled so: it is a yardstick."""
    launches: dict[str, Launch] = {}
    try:
        with noting(launches):
            got = operator(*sets[0])
            torch.cuda.synchronize()
        error, checked = check(sets[0], got) if check else (0.0, "a peer: not checked")
        del got
        if not error <= 1:
            reason = f"{checked}: {error:.3g} times the tolerance"
            return blank(case, engine, Outcome.FAIL, reason)
        timing = time_on_device(lambda copy: operator(*sets[copy % len(sets)]), len(sets), case.waits)
    except Exception as problem:  # a kernel that breaks is a result of this case, not the end of the sweep
        outcome = Outcome.ERROR if check else Outcome.NOT_OFFERED
        return blank(case, engine, outcome, _line(problem))
    return _result(case, engine, timing, error, checked, len(sets), launches, ceilings)


def _shown(launch: Launch) -> str:
    options = " ".join(f"{name}={value}" for name, value in launch.options.items())
    return f"{options} ({launch.origin.partition(':')[0]})"


def _result(
    case: Case,
    engine: str,
    timing: Timing,
    error: float,
    checked: str,
    num_sets: int,
    launches: Mapping[str, Launch],
    ceilings: Ceilings,
) -> Result:
    least = floor(case.cost, ceilings, case.multiplies_in)
    rotated = num_sets * case.cost.hbm_bytes
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return Result(
        op=case.op,
        shape=case.shape,
        dtype=case.dtype,
        engine=engine,
        hbm_bytes=case.cost.hbm_bytes,
        flops=case.cost.flops,
        outcome=Outcome.TIMED,
        us=timing.us,
        spread=timing.spread,
        floor_us=least.us,
        bound=least.bound,
        share=least.us / timing.us,
        error=error,
        checked=checked,
        method=timing.method,
        copies=timing.copies,
        replays=timing.replays,
        sets=num_sets,
        cache=f"{'cold' if rotated > 2 * cache else 'in L2'}, {num_sets} sets",
        launches={kernel: _shown(launch) for kernel, launch in launches.items()},
    )


def sets_of(case: Case) -> list[Args]:
    """Sets of arguments until they exceed the L2 cache several times, or reach the case's most."""
    draw = case.build(Maker("cuda"))
    first, second = draw(), draw()
    count = cold_sets(case, first, second)
    return [first, second, *(draw() for _ in range(count - 2))]


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160] if text else ''}"

"""``s35 doctor``: what this machine is, and which of its readings and rates can be trusted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch

from hardware.identify import identify
from hardware.machine import Fact
from hardware.profile import profile_called
from hardware.telemetry import GpuState, foreign_pids, read_gpu
from reports.verdict import Verdict

from .probes import Probe, as_dicts, probes

MUCH_MORE_THAN_PUBLISHED = 1.02
MUCH_LESS_THAN_PUBLISHED = 0.5


def examine(device: str) -> dict[str, Any]:
    """Identify, read, probe, measure; ``warnings`` say what must not be trusted.

    Raises:
        ValueError: ``device`` is no device.
    """
    machine = identify(device)
    index = int(device.partition(":")[2] or 0)
    before = read_gpu(index) if device.startswith("cuda") else Fact(None, "nvml", f"{device} is no NVIDIA GPU")
    found = [] if machine.device_missing else probes(device)
    after = read_gpu(index) if isinstance(before, GpuState) else before
    memory = [] if machine.device_missing else memories(device, before)
    warnings = complaints(machine.device_missing, str(machine.profile.value or ""), before, after, found)
    return {
        "kind": "doctor",
        "machine": asdict(machine),
        "before": _gpu(before),
        "after_load": _gpu(after),
        "memory": memory,
        "probes": as_dicts(found),
        "warnings": warnings,
        "verdict": Verdict.INCONCLUSIVE if warnings else Verdict.PASS,
    }


def _gpu(state: GpuState | Fact) -> dict[str, Any]:
    return {"unread": asdict(state)} if isinstance(state, Fact) else asdict(state)


def memories(device: str, state: GpuState | Fact) -> list[dict[str, Any]]:
    """Each opinion on the device's memory, with its source: they may differ, and on unified memory they do."""
    from hardware.host import memory_bytes

    facts = {"host total": memory_bytes()}
    if isinstance(state, GpuState):
        facts |= {"device total": state.memory_total_bytes, "device used": state.memory_used_bytes}
    if device.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(torch.device(device))
        facts |= {
            "torch total": Fact(total, "torch.cuda.mem_get_info"),
            "torch free": Fact(free, "torch.cuda.mem_get_info"),
        }
    if device == "mps":
        facts |= {
            "recommended maximum": Fact(torch.mps.recommended_max_memory(), "torch.mps.recommended_max_memory"),
            "allocated by the driver": Fact(torch.mps.driver_allocated_memory(), "torch.mps.driver_allocated_memory"),
        }
    return [{"what": what, **asdict(fact)} for what, fact in facts.items()]


def complaints(
    missing: str | None, profile: str, before: GpuState | Fact, after: GpuState | Fact, found: Sequence[Probe]
) -> list[str]:
    """What makes timings on this machine untrustworthy now."""
    said = [missing] if missing else []
    foreign = sorted(foreign_pids(before, after))
    if foreign:
        said.append(f"foreign processes on the GPU: {', '.join(map(str, foreign))}; their work is in every timing")
    if isinstance(after, GpuState) and after.slowed_by:
        said.append(f"the clock was taken down after load by: {', '.join(after.slowed_by)}")
    return [*said, *_against_profile(profile, found)]


def _against_profile(profile: str, found: Sequence[Probe]) -> list[str]:
    """Rates far from the data sheet's: above it the measurement is wrong, far below it the device is not itself."""
    published = profile_called(profile).published if profile else {}
    names = {
        "memory is read": "memory_gb_per_s",
        "bf16 matrices are multiplied": "bf16_tflops",
        "fp8 matrices are multiplied": "fp8_tflops",
    }
    said = []
    for probe in found:
        figure = published.get(names.get(probe.question, ""))
        if figure is None or not isinstance(probe.answer, float):
            continue
        share = probe.answer / figure.value
        if share > MUCH_MORE_THAN_PUBLISHED:
            said.append(f"{probe.question} at {share:.0%} of what is published: the measurement is wrong")
        elif share < MUCH_LESS_THAN_PUBLISHED:
            said.append(f"{probe.question} at {share:.0%} of what is published: the device is held down or shared")
    return said


def text(record: Mapping[str, Any]) -> str:
    """For a terminal: one line a value, its source at the end."""
    lines = []
    machine = record["machine"]
    for name, fact in machine.items():
        if isinstance(fact, dict):
            lines.append(_line(name, fact))
    for heading in ("before", "after_load"):
        lines += ["", f"GPU, {heading.replace('_', ' ')}"]
        state = record[heading]
        lines += [_line(name, state[name]) for name in ("unread", *_NAMES) if name in state]
    lines += ["", "memory", *(_line(memory["what"], memory) for memory in record["memory"])]
    lines += ["", "probes", *(_probe(probe) for probe in record["probes"])]
    lines += ["", *(f"warning: {warning}" for warning in record["warnings"])]
    why = f"{len(record['warnings'])} warnings" if record["warnings"] else "timings on this machine can be trusted now"
    return "\n".join([*lines, f"{record['verdict']}: {why}"])


_NAMES = [field.name for field in fields(GpuState)]


def _line(name: str, fact: Mapping[str, Any]) -> str:
    value = f"not known ({fact['reason']})" if fact["value"] is None else fact["value"]
    return f"{name:<22}{value}  [{fact['source']}]"


def _probe(probe: Mapping[str, Any]) -> str:
    answer = probe["answer"]
    shown = {True: "yes", False: "no", None: "not known"}.get(answer) if not isinstance(answer, float) else None
    shown = shown or f"{answer:.1f} {probe['unit']}"
    why = f" ({probe['reason']})" if probe["reason"] else ""
    return f"{probe['question']:<42}{shown}{why}  [{probe['source']}]"

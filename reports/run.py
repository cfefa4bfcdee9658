"""``s35 run``: identify the machine, generate text, judge the engine, write one folder that says it all."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from .conformance_session import Session, run_session
from .digest import checkpoint_sha256
from .markdown import render
from .schema import SCHEMA_VERSION, CheckRecord, GenerationSample, Result, dumps
from .verdict import ExitCode, Status, exit_code, judge

SAMPLE_PROMPT = "def "
SAMPLE_TOKENS = 64
SAMPLE_DRAFTS = 3  # the checkpoint's three MTP layers


@dataclass(frozen=True)
class Request:
    """What to run."""

    engine: str
    tier: str
    device: str
    checkpoint: Path
    out: Path
    pytest_arguments: tuple[str, ...]
    command: tuple[str, ...]  # as it will be recorded: without secrets


@dataclass
class _Progress:
    """What the run has found so far; an interrupt keeps it."""

    checkpoint_sha256: str | None = None
    generation: GenerationSample | None = None
    session: Session = field(default_factory=lambda: Session(None, None, (), interrupted=False))


def new_results_folder(parent: Path, started: datetime) -> Path:
    """Name a folder for a run by its start in UTC; a second run in the same second gets a suffix."""
    stem = started.strftime("%Y-%m-%dT%H%M%SZ")
    names = (stem if index == 0 else f"{stem}-{index}" for index in count())
    return next(parent / name for name in names if not (parent / name).exists())


def run_suite(
    request: Request,
    identify: Callable[[str], Mapping[str, Any]],
    generate: Callable[..., Mapping[str, Any]],
) -> ExitCode:
    """Run what was requested, write result.json and report.md, and end stdout with the verdict.

    Args:
        identify: from a device to the machine, as in ``Result.machine``.
        generate: ``reference.commands.generate_text`` or its like.

    Raises:
        ValueError: the request cannot be met: no checkpoint, an engine that does not load, a used folder.
    """
    _check(request)
    started, clock = datetime.now(UTC), time.monotonic()
    progress = _Progress()
    machine = identify(request.device)
    request.out.mkdir(parents=True, exist_ok=True)
    try:
        if machine["device_missing"]:
            detail = machine["device_missing"]
            absent = CheckRecord("device", "", Status.INCONCLUSIVE, 0.0, {}, detail)
            progress.session = replace(progress.session, checks=(absent,))
        else:
            _run_stages(request, generate, progress)
    except KeyboardInterrupt:
        cut = CheckRecord("run", "", Status.INCONCLUSIVE, 0.0, {}, "interrupted before the conformance checks")
        progress.session = replace(progress.session, checks=(cut,), interrupted=True)
    verdict, reason = judge(progress.session.checks)
    result = Result(
        schema_version=SCHEMA_VERSION,
        verdict=verdict,
        reason=reason,
        machine=machine,
        engine=request.engine,
        engine_profile=progress.session.engine_profile,
        tier=request.tier,
        checkpoint_sha256=progress.checkpoint_sha256,
        suite_commit=machine["suite_commit"]["value"],
        seed=progress.session.seed,
        command=request.command,
        started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        duration_s=round(time.monotonic() - clock, 3),
        generation=progress.generation,
        checks=progress.session.checks,
    )
    report = _write(result, request.out)
    print(f"{verdict}: {' '.join(reason.split())} — {report}")
    return ExitCode.INTERRUPTED if progress.session.interrupted else exit_code(verdict)


def _check(request: Request) -> None:
    if not (request.checkpoint / "config.json").is_file():
        raise ValueError(
            f"checkpoint: {request.checkpoint} has no config.json; want a folder in the published format, "
            "with config.json, tokenizer.json and *.safetensors"
        )
    if request.out.exists() and any(request.out.iterdir()):  # records of another run must not be read as ours
        raise ValueError(f"out: {request.out} holds files already; want a new folder")


def _run_stages(request: Request, generate: Callable[..., Mapping[str, Any]], progress: _Progress) -> None:
    _say(f"1/3 reading {request.checkpoint}")
    progress.checkpoint_sha256 = checkpoint_sha256(request.checkpoint)
    _say(f"2/3 generating {SAMPLE_TOKENS} tokens on {request.device}")
    sample = generate(
        checkpoint=request.checkpoint,
        prompt=SAMPLE_PROMPT,
        max_new_tokens=SAMPLE_TOKENS,
        mtp=SAMPLE_DRAFTS,
        device=request.device,
    )
    progress.generation = GenerationSample(
        prompt=SAMPLE_PROMPT,
        text=sample["text"],
        tokens_per_s=sample["tokens_per_s"],
        acceptance_per_position=tuple(sample["acceptance_per_position"]),
    )
    _say(f"3/3 judging engine {request.engine}, tier {request.tier}")
    progress.session = run_session(request.pytest_arguments, request.out)


def _write(result: Result, out: Path) -> Path:
    page = render(result)
    report = out / "report.md"
    (out / "result.json").write_text(dumps(result), encoding="utf-8")
    report.write_text(page, encoding="utf-8")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(page)
    return report


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

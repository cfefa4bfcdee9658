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

from .chain import seal
from .conformance_session import Session, run_session
from .digest import checkpoint_sha256, file_sha256
from .known_failures import gate, read_known_failures
from .levels import grants_sentence, judge_levels, read_levels
from .markdown import render
from .schema import SCHEMA_VERSION, GenerationSample, Grant, Result, dumps, suite_record
from .suite import levels_file, this_suite
from .verdict import ExitCode, Status, exit_code, judge
from .waivers import read_waivers

RESULT = "result.json"
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
    waivers: Path | None = None  # as in pytest_arguments; read here, too, to refuse before anything slow
    known_failures: Path | None = None


@dataclass
class _Progress:
    """What the run has found so far; an interrupt keeps it."""

    checkpoint_sha256: str | None = None
    generation: GenerationSample | None = None
    session: Session = field(default_factory=lambda: Session(None, (), interrupted=False))


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
    """Run what was requested, write result.json and report.md, and end stdout with levels and verdict.

    Args:
        identify: from a device to the machine, as in ``Result.machine``.
        generate: ``reference.commands.generate_text`` or its like.

    Raises:
        ValueError: the request cannot be met: no checkpoint, an engine that does not load, a used folder, waivers
            that do not hold.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    _check(request, started)
    progress = _Progress()
    machine = identify(request.device)
    request.out.mkdir(parents=True, exist_ok=True)
    try:
        if machine["device_missing"]:
            absent = suite_record("device", Status.INCONCLUSIVE, machine["device_missing"])
            progress.session = replace(progress.session, checks=(absent,))
        else:
            _run_stages(request, generate, progress)
    except KeyboardInterrupt:
        cut = suite_record("run", Status.INCONCLUSIVE, "interrupted before the conformance checks")
        progress.session = replace(progress.session, checks=(cut,), interrupted=True)
    result = _result(request, machine, progress, started, time.monotonic() - clock)
    report = _write(result, request.out)
    code, news = gate(result.checks, result.known_failures)
    if code is not exit_code(result.verdict_after_waivers):
        news = (*news, f"exit code {int(code)}: the list of known failures decides it; verdict and levels stay")
    print("\n".join([*news, *_outcome_lines(result, report)]))
    return ExitCode.INTERRUPTED if progress.session.interrupted else code


def _result(
    request: Request, machine: Mapping[str, Any], progress: _Progress, started: datetime, duration_s: float
) -> Result:
    """Judge what was found; the digests of files and the chain come when those are written."""
    outcome, checks = progress.session.outcome, progress.session.checks
    collected = outcome.collected if outcome else ()
    capabilities = outcome.capabilities if outcome else None
    profile = outcome.engine.profile if outcome else None
    after, reason = judge(checks, heed_waivers=True)
    commit = machine["suite_commit"]["value"]
    return Result(
        schema_version=SCHEMA_VERSION,
        verdict_before_waivers=judge(checks)[0],
        verdict_after_waivers=after,
        reason=reason,
        levels=judge_levels(read_levels(levels_file()), checks, collected, capabilities, profile),
        machine=machine,
        engine=request.engine,
        engine_identity=outcome.engine if outcome else None,
        capabilities=capabilities,
        tier=request.tier,
        checkpoint_sha256=progress.checkpoint_sha256,
        suite=this_suite(commit),
        seed=outcome.seed if outcome else None,
        command=request.command,
        started=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        duration_s=round(duration_s, 3),
        generation=progress.generation,
        waivers=outcome.waivers if outcome else (),
        known_failures=outcome.known_failures if outcome else None,
        collected=collected,
        checks=checks,
        files={},
        chain=(),
        head="",
    )


def _outcome_lines(result: Result, report: Path) -> list[str]:
    """What stdout ends with: levels that are not granted and why, both verdicts where they can differ, the verdict."""
    lines = []
    for level in result.levels:
        if level.grant is Grant.NOT_GRANTED and level.checks:
            more = f" and {len(level.blocked_by) - 1} more" if len(level.blocked_by) > 1 else ""
            lines.append(f"{level.label} not granted: {level.blocked_by[0]}{more}")
    if result.waivers:
        lines.append(f"before waivers {result.verdict_before_waivers}: {judge(result.checks)[1]}")
    verdict = f"{result.verdict_after_waivers}: {result.reason}; {grants_sentence(result.levels)}"
    return [" ".join(line.split()) for line in [*lines, f"{verdict} — {report}"]]


def _check(request: Request, started: datetime) -> None:
    if not (request.checkpoint / "config.json").is_file():
        raise ValueError(
            f"checkpoint: {request.checkpoint} has no config.json; want a folder in the published format, "
            "with config.json, tokenizer.json and *.safetensors"
        )
    if request.out.exists() and any(request.out.iterdir()):  # records of another run must not be read as ours
        raise ValueError(f"out: {request.out} holds files already; want a new folder")
    if request.waivers:
        read_waivers(request.waivers, started.date())
    if request.known_failures:
        read_known_failures(request.known_failures)


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
    report.write_text(page, encoding="utf-8")
    files = {path.name: file_sha256(path) for path in sorted(out.iterdir()) if path.is_file()}
    (out / RESULT).write_text(dumps(seal(replace(result, files=files))), encoding="utf-8")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(page)
    return report


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

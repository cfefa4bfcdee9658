"""A sweep's record as a page of Markdown: one table, each operator beside the best peer of the same run."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

TIMED = "timed"
HEADERS = ("operator", "shape", "dtype", "us", "floor us", "share", "bound", "best peer", "peer us", "ours / peer")


def page(record: Mapping[str, Any], title: str, date: str) -> str:
    """Render the JSON object of ``s35 perf ops``.

    Args:
        record: as ``s35 perf ops --json`` prints it.
        date: of the run.
    """
    machine, ceilings = record["machine"], record["ceilings"] or {"read_gb_per_s": 0, "tflops": {}, "notes": {}}
    rates = [f"reading {ceilings['read_gb_per_s']:.0f} GB/s"]
    rates += [f"{dtype} {rate:.0f} TFLOP/s" for dtype, rate in ceilings["tflops"].items()]
    return "\n".join(
        [
            f"# {title}",
            "",
            f"Made by `{shlex.join(record['command'])}` at commit {str(machine['suite_commit']['value'])[:12]}"
            f"{', with changes' if machine['suite_dirty']['value'] else ''}, {date}; torch "
            f"{machine['torch']['value']}, Triton {machine['triton']['value']}. Ceilings of the same run: "
            f"{', '.join(rates)}.",
            "",
            "Times are medians of replays of a CUDA graph whose calls rotate through sets of inputs that together "
            "exceed the L2 cache. The floor is the least work of the contract at the ceilings; share is floor over "
            "time. Every output was compared with the reference in float64 in the same run; peers are timed, not "
            "judged.",
            "",
            tabulate(list(_rows(record["results"])), HEADERS, tablefmt="github"),
            "",
            *_untimed(record["results"]),
        ]
    )


def _rows(results: Sequence[Mapping[str, Any]]) -> Any:
    ours = [result for result in results if result["engine"].startswith("optimized")]
    for result in ours:
        if result["outcome"] != TIMED:
            continue
        peers = [
            peer
            for peer in results
            if peer not in ours and peer["outcome"] == TIMED and _same(peer) == _same(result)
        ]  # fmt: skip
        best = min(peers, key=lambda peer: peer["us"], default=None)
        beside = (best["engine"], f"{best['us']:.1f}", f"{result['us'] / best['us']:.2f}") if best else ("", "", "")
        figures = f"{result['us']:.1f}", f"{result['floor_us']:.1f}", f"{result['share']:.0%}"
        yield (*_same(result), *figures, result["bound"], *beside)


def _same(result: Mapping[str, Any]) -> tuple[str, str, str]:
    return result["op"], result["shape"], result["dtype"]


def _untimed(results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"- {' '.join(_same(result))}, {result['engine']}: {result['outcome']}: {result['reason']}"
        for result in results
        if result["outcome"] != TIMED
    ]
    return ["Not timed:", "", *lines, ""] if lines else []

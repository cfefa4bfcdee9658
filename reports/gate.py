"""Has something become slower? Medians over runs, a floor under the noise, and a word that says when nobody can tell.

What varies is the median of a run, not the samples within one: those are many and agree with each other, so a test on
them finds a difference between any two runs. The interval of the difference between two groups of runs is Student's, on
logarithms of their medians; a difference counts if it is certain at 99 % and larger than ``LEAST_EFFECT``.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .baseline import Baseline, Entry
from .measurement import Comparison
from .verdict import Verdict

CONFIDENCE = 0.99
LEAST_EFFECT = 0.02  # smaller differences are nobody's news
NOISE_FLOOR = 0.003  # between runs: few runs may agree by chance
DOUBTFUL = (Comparison.MISSING, Comparison.AMBIGUOUS)  # never counted as the same
SPARE = "-"
NORMAL_80 = 0.8416  # of which 80 % of a normal lies below


@dataclass(frozen=True)
class Compared:
    """One workload, then and now.

    Attributes:
        change: of the time; above 0 is slower, whatever the metric. None: MISSING or NEW.
        low, high: its 99 % interval.
        smallest_detectable: slowdown that would be found four times in five, with these runs.
    """

    id: str
    name: str
    unit: str
    word: Comparison
    then: float | None
    now: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    smallest_detectable: float | None = None


def compare_entry(then: Entry, now: Sequence[float], max_regression: float) -> Compared:
    """Compare the medians of some runs with an entry of a baseline."""
    base = Compared(then.id, then.name, then.unit, Comparison.AMBIGUOUS, then.median, statistics.median(now))
    a, b = (_logs(values, then.better) for values in (then.medians, now))
    logarithm = statistics.fmean(b) - statistics.fmean(a)
    change = math.expm1(logarithm)
    freedom = len(a) + len(b) - 2
    if freedom < 1:
        return _of(base, Comparison.AMBIGUOUS, change, -math.inf, math.inf, math.inf)
    spread = sum((value - statistics.fmean(group)) ** 2 for group in (a, b) for value in group)
    deviation = max(math.sqrt(spread / freedom), NOISE_FLOOR)
    error = deviation * math.sqrt(1 / len(a) + 1 / len(b))
    half = student_quantile((1 + CONFIDENCE) / 2, freedom) * error
    low, high = math.expm1(logarithm - half), math.expm1(logarithm + half)
    detectable = math.expm1(max(LEAST_EFFECT, half) + NORMAL_80 * error)
    return _of(base, _word(change, low, high, max_regression), change, low, high, detectable)


def _word(change: float, low: float, high: float, max_regression: float) -> Comparison:
    if low > 0 and change > LEAST_EFFECT:
        return Comparison.SLOWER
    if high < 0 and change < -LEAST_EFFECT:
        return Comparison.FASTER
    return Comparison.SAME if high <= max_regression else Comparison.AMBIGUOUS


def _of(base: Compared, word: Comparison, change: float, low: float, high: float, detectable: float) -> Compared:
    return Compared(base.id, base.name, base.unit, word, base.then, base.now, change, low, high, detectable)


def _logs(values: Sequence[float], better: str) -> list[float]:
    """Logarithms, of times: a rate's are turned round, so that larger is slower."""
    return [math.log(value) * (1 if better != "higher" else -1) for value in values]


def compare(then: Baseline, now: Baseline, max_regression: float) -> list[Compared]:
    """Compare every workload of either side, in the order of the baseline; what only one side has is said."""
    found = [
        compare_entry(entry, now.entries[id].medians, max_regression)
        if id in now.entries
        else Compared(id, entry.name, entry.unit, Comparison.MISSING, entry.median, None)
        for id, entry in then.entries.items()
    ]
    new = [entry for id, entry in now.entries.items() if id not in then.entries]
    return [*found, *(Compared(e.id, e.name, e.unit, Comparison.NEW, None, e.median) for e in new)]


def student_quantile(probability: float, freedom: int) -> float:
    """Where Student's distribution reaches a probability above 1/2; by bisection on its integral."""
    low, high = 0.0, 1.0
    while _student(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _student(t: float, freedom: int) -> float:
    """The distribution function at t >= 0, with the angle theta = atan(t / sqrt(n)), by its finite series."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(theta), math.sin(theta)
    if freedom % 2:
        term = total = cosine if freedom > 1 else 0.0
        for k in range(3, freedom - 1, 2):
            term *= cosine * cosine * (k - 1) / k
            total += term
        return 0.5 + (theta + sine * total) / math.pi
    term = total = 1.0
    for k in range(2, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 0.5 + sine * total / 2


def counted(one: Compared, max_regression: float) -> Comparison:
    """The word as a verdict takes it: SLOWER by no more than what is allowed is SAME, or AMBIGUOUS if perhaps more."""
    if one.word is Comparison.SLOWER and (one.change or 0.0) <= max_regression:
        return Comparison.SAME if (one.high or 0.0) <= max_regression else Comparison.AMBIGUOUS
    return one.word


def judge(found: Sequence[Compared], max_regression: float, stale: str | None = None) -> tuple[Verdict, str]:
    """The verdict on a comparison: slower than allowed fails; missing, in doubt or old makes it inconclusive."""
    of = {word: [one for one in found if counted(one, max_regression) is word] for word in Comparison}
    said = {word: sum(one.word is word for one in found) for word in Comparison}
    counts = ", ".join(f"{said[word]} {word}" for word in Comparison if said[word]) or "nothing was compared"
    if of[Comparison.SLOWER]:
        worst = max(of[Comparison.SLOWER], key=lambda one: one.change or 0.0)
        return Verdict.FAIL, f"{counts}; worst: {worst.name} {worst.change or 0:+.1%}"
    doubts = [stale] if stale else []
    perhaps = {Comparison.SLOWER: ", perhaps by more than is allowed"}
    doubts += [f"{one.name} is {one.word}{perhaps.get(one.word, '')}" for word in DOUBTFUL for one in of[word]]
    if not of[Comparison.SAME] and not of[Comparison.FASTER]:
        doubts.append("nothing could be compared")
    if doubts:
        return Verdict.INCONCLUSIVE, f"{counts}; {doubts[0]}"
    return Verdict.PASS, counts


def table(found: Sequence[Compared]) -> str:
    """Markdown: one line a workload, what changed first."""
    order = list(Comparison)
    rank = {word: at for at, word in enumerate(sorted(order, key=lambda word: word is Comparison.SAME))}
    heads = ("", "workload", "then", "now", "unit", "change", "99 % interval", "smallest detectable slowdown")
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for one in sorted(found, key=lambda one: (rank[one.word], -(one.change or 0.0))):
        number = [SPARE if value is None else f"{value:.4g}" for value in (one.then, one.now)]
        share = [SPARE if value is None else f"{value:+.1%}" for value in (one.change, one.low, one.high)]
        interval = SPARE if one.low is None else f"{share[1]} to {share[2]}"
        smallest = SPARE if one.smallest_detectable is None else f"{one.smallest_detectable:.1%}"
        cells = (str(one.word), one.name, *number, one.unit, share[0], interval, smallest)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rates(
    entries: Sequence[Entry], then: int, now: int, planted: float, max_regression: float, splits: int, seed: int = 0
) -> dict[str, float]:
    """How often each word is said of runs of the same thing, split by chance, the second group made slower.

    Args:
        planted: slowdown of the second group; 0: every SLOWER is a false alarm.
        splits: of each workload.
    """
    draw = random.Random(seed)
    counts = dict.fromkeys(Comparison, 0)
    for entry in entries:
        factor = 1 / (1 + planted) if entry.better == "higher" else 1 + planted
        for _ in range(splits):
            chosen = draw.sample(entry.medians, then + now)
            base = replace(entry, medians=tuple(chosen[:then]))
            word = compare_entry(base, [value * factor for value in chosen[then:]], max_regression).word
            counts[word] += 1
    total = splits * len(entries)
    return {str(word): count / total for word, count in counts.items() if count}

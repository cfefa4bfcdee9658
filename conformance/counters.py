"""What shows that a check could have failed, and how near to its bound it came.

A check that compared nothing, or one of whose counters stayed 0, judged nothing: it is inconclusive.
"""

import math


class Counters:
    """The ledger of one check, over all its examples.

    Attributes:
        statistic, bound: of the comparison that came nearest to its bound, or went furthest beyond it.
    """

    def __init__(self) -> None:
        self.counts: dict[str, float] = {"comparisons": 0}
        self.statistic: float | None = None
        self.bound: float | None = None
        self._worst = -math.inf

    def add(self, name: str, amount: float) -> None:
        """Declare a counter, and add to it; it must be above 0 when the check ends."""
        self.counts[name] = self.counts.get(name, 0) + float(amount)

    def compared(self, statistic: float | None = None, bound: float | None = None) -> None:
        """Note a comparison; exact ones have no statistic."""
        self.add("comparisons", 1)
        if statistic is None or bound is None:
            return
        ratio = margin(statistic, bound)
        if ratio > self._worst:
            self._worst, self.statistic, self.bound = ratio, statistic, bound

    @property
    def empty(self) -> list[str]:
        """Names of the counters that stayed 0."""
        return [name for name, count in self.counts.items() if count <= 0]


def margin(statistic: float, bound: float) -> float:
    """``statistic / bound``: above 1 fails; NaN is infinitely far away."""
    if math.isnan(statistic) or math.isnan(bound):
        return math.inf
    if statistic <= bound:
        return statistic / bound if bound else 0.0
    return statistic / bound if bound else math.inf

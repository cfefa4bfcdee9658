"""What shows that a check could have failed, how near to its bound it came, and what it is sure to catch.

A check that compared nothing, or one of whose counters stayed 0, judged nothing: it is inconclusive.
"""

import hashlib
from dataclasses import replace

from torch import Tensor, uint8

from reports.schema import Evidence
from reports.verdict import is_beyond

EXACTLY = "equal, bit for bit"
CONTRACT = "contract"  # shapes, dtypes, finite results, untouched inputs, no exceptions


class Counters:
    """The ledger of one check, over all its examples."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {"comparisons": 0}
        self.evidence: dict[str, Evidence] = {}
        self._expected = hashlib.sha256()

    def add(self, name: str, amount: float) -> None:
        """Declare a counter, and add to it; it must be above 0 when the check ends."""
        self.counts[name] = self.counts.get(name, 0) + float(amount)

    def compared(self, rule: str, statistic: float, bound: float, where: object, detects: float | None = None) -> None:
        """Note a comparison, before its outcome is acted upon.

        Args:
            rule: why the bound is what it is; comparisons by one rule make one entry of evidence.
            detects: the smallest fault of a typical element, relative to the size of what was wanted, that is certain
                to be caught: twice the bound, as the engine's own error may use up one.
        """
        self.add("comparisons", 1)
        new = Evidence.measured(rule, 1, float(statistic), float(bound), detects, str(where))
        old = self.evidence.get(rule, new)
        known = [value for value in (old.detects, detects) if value is not None]
        count = new.comparisons + (old.comparisons if old is not new else 0)
        worst = new if new.margin > old.margin else old
        self.evidence[rule] = replace(worst, comparisons=count, detects=min(known, default=None))

    def broke(self, where: object) -> None:
        """Note that the contract was broken where nothing could be compared."""
        self.compared(CONTRACT, 1, 0, where)

    def expected(self, want: Tensor) -> None:
        """Take what is wanted into the oracle's digest."""
        self._expected.update(want.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().tobytes())

    @property
    def oracle_digest(self) -> str:
        """sha256 of everything that was wanted."""
        return self._expected.hexdigest()

    @property
    def beyond(self) -> bool:
        """Whether a comparison went beyond its bound."""
        return any(is_beyond(entry) for entry in self.evidence.values())

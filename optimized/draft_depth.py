"""How many drafts a step should verify: as many as bring the most tokens for its time.

    expected(d) = 1 + sum over i < d of held(i)        tokens of a step; held(i): how often drafts 0 .. i all hold
    rate(d) = expected(d) / cost(d)                    tokens per second

``held`` and ``cost`` are means over steps, older ones forgotten exponentially. At first, and again after a while, every
depth is tried for some steps: what drafts are worth and what steps cost changes with the text and the context.
"""

from collections import deque
from collections.abc import Sequence


class _Mean:
    """A plain mean of the first values, then one that forgets.

    Attributes:
        value: None before the first.
        count: values since the last ``renew``, up to the memory.
    """

    def __init__(self, memory: int) -> None:
        self._memory, self.count = memory, 0
        self.value: float | None = None

    def add(self, x: float) -> None:
        self.count = min(self.count + 1, self._memory)
        self.value = x if self.count == 1 or self.value is None else self.value + (x - self.value) / self.count

    def renew(self) -> None:
        """Let the next value stand for all before it."""
        self.count = 0


class DraftDepth:
    """Chooses a depth from 0 to the deepest, by what the steps that it chose showed.

    Args:
        memory: steps after which a value has lost most of its weight.
        trial: steps for which a depth is tried.
        interval: steps between trials of all depths.
        margin: by what share another depth has to be better, so that noise does not decide.

    Attributes:
        depth: of the next step.
    """

    def __init__(
        self, deepest: int, memory: int = 64, trial: int = 8, interval: int = 1024, margin: float = 0.03
    ) -> None:
        self.deepest, self._trial, self._interval, self._margin = deepest, trial, interval, margin
        self._cost_s = [_Mean(memory) for _ in range(deepest + 1)]
        self._held = [_Mean(memory) for _ in range(deepest)]
        self._to_try = deque(range(deepest, -1, -1))
        self._since = 0
        self.depth = deepest

    def expected(self, depth: int) -> float:
        """Tokens that a step of this depth brings."""
        return 1 + sum(mean.value or 0.0 for mean in self._held[:depth])

    def rate(self, depth: int) -> float:
        """Tokens per second at this depth; 0 as long as its cost is not known."""
        cost_s = self._cost_s[depth].value
        return self.expected(depth) / cost_s if cost_s else 0.0

    def observe(self, depth: int, cost_s: float, accepted: Sequence[int]) -> None:
        """Learn from a step, and choose the next one's depth.

        Args:
            depth: of the step; it may have been started before the newest choice.
            accepted: drafts that held, of each sequence; empty where nobody is left who wants to know.
        """
        for position in range(depth if accepted else 0):
            self._held[position].add(sum(count > position for count in accepted) / len(accepted))
        self._cost_s[depth].add(cost_s)
        if depth != self.depth:
            return
        self._since += 1
        if self._to_try:
            if self._since < self._trial:
                return
            self._to_try.popleft()
            self.depth, self._since = self._to_try[0] if self._to_try else self._best(), 0
        elif self._since >= self._interval:
            self._to_try.extend(range(self.deepest, -1, -1))
            for mean in (*self._cost_s, *self._held):
                mean.renew()
            self.depth, self._since = self.deepest, 0
        elif self.rate(best := self._best()) > self.rate(self.depth) * (1 + self._margin):
            self.depth = best

    def _best(self) -> int:
        return max(range(self.deepest + 1), key=self.rate)

"""Rare events: whether an engine shows them more often than legal evaluations do."""

from math import exp, fsum, lgamma, log

from ..counters import Counters
from ..tolerance import ENVELOPE_FACTOR, ConformanceError

FALSE_ALARMS = 1e-6  # of one statistical check, as the whole suite's


def most_of(legal_events: int, num_legal: int) -> int:
    """The most events that one more evaluation may show after ``num_legal`` showed ``legal_events`` together.

    Rates may differ by the envelope's factor. Of rare events in all evaluations, each is then the engine's with a
    probability of at most factor / (factor + num_legal), whatever the rate: a binomial tail below FALSE_ALARMS is the
    engine's fault.
    """
    share = ENVELOPE_FACTOR / (ENVELOPE_FACTOR + num_legal)
    events = 0
    while _tail(events + 1 + legal_events, events + 1, share) >= FALSE_ALARMS:
        events += 1
    return events


def check_as_rare(events: int, legal_events: int, num_legal: int, counters: Counters, where: object) -> None:
    """Compare a count with the counts of legal evaluations of the same trials.

    Raises:
        ConformanceError: events are more frequent than legal evaluations explain.
    """
    most = most_of(legal_events, num_legal)
    rule = f"binomial, given those of legal evaluations, at {FALSE_ALARMS} false alarms"
    counters.compared(rule, events, most, where)
    if events > most:
        raise ConformanceError(
            f"{where}: {events} times; want at most {most}, as {num_legal} legal evaluations showed {legal_events} "
            f"together ({rule})"
        )


def _tail(trials: int, at_least: int, share: float) -> float:
    """P(binomial >= at_least)."""

    def logarithm(k: int) -> float:
        ways = lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1)
        return ways + k * log(share) + (trials - k) * log(1 - share)

    return fsum(exp(logarithm(k)) for k in range(at_least, trials + 1))

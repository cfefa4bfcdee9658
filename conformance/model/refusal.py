"""What an engine must refuse: by raising, not by crashing, and not by going on."""

from collections.abc import Callable

from ..counters import EXACTLY, Counters
from ..tolerance import ConformanceError

REFUSED = "raised "  # how the judge's message says that the engine's own exception came


def check_refused(call: Callable[[], object], counters: Counters, where: str) -> None:
    """Make a call that the engine must answer with an exception of its own.

    Raises:
        ConformanceError: it went on, or returned what no engine may.
        EngineDiedError: it crashed.
    """
    try:
        call()
    except ConformanceError as error:
        if REFUSED in str(error):
            counters.compared(EXACTLY, 0, 0, where)
            return
        raise
    counters.compared(EXACTLY, 1, 0, where)
    raise ConformanceError(f"{where}: was taken; want an exception that says what is wrong")

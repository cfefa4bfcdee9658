"""How far long work is, and how long it will take: one bar on a terminal, nothing in pipes and in CI.

Lines that are said meanwhile stand above the bar. ``rich`` is imported when there is something to draw.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
WIDTH = 32  # of the bar, in characters


class Progress:
    """A bar that is silent.

    Attributes:
        is_shown: whether somebody sees it.
    """

    is_shown = False

    def begin(self, step: str) -> None:
        """Name what is being done now."""

    def advance(self) -> None:
        """One step is done."""

    def say(self, line: str) -> None:
        """Show a line, whether there is a bar or not."""
        print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Take the bar away."""


class _Bar(Progress):
    """A bar on standard error, drawn when something happens: no thread writes while somebody else does."""

    is_shown = True

    def __init__(self, what: str, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Drawing

        columns = (
            TextColumn(what, markup=False),
            BarColumn(bar_width=WIDTH),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[step]}", markup=False),
        )
        self._drawing = Drawing(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        self._task: Any = self._drawing.add_task(what, total=total, step="")
        self._drawing.start()

    def begin(self, step: str) -> None:
        self._drawing.update(self._task, step=step, refresh=True)

    def advance(self) -> None:
        self._drawing.update(self._task, advance=1, refresh=True)

    def say(self, line: str) -> None:
        self._drawing.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._drawing.stop()


def is_wanted() -> bool:
    """Whether somebody looks: standard error is a terminal, and this is no CI."""
    return sys.stderr.isatty() and not os.environ.get("CI") and os.environ.get("TERM") != "dumb"


def bar_of(what: str, total: int) -> Progress:
    """A bar that somebody has to stop."""
    return _Bar(what, total) if is_wanted() else Progress()


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """A bar for a block of ``total`` steps."""
    bar = bar_of(what, total)
    try:
        yield bar
    finally:
        bar.stop()


def tracked(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items, one step each."""
    with progress(what, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()

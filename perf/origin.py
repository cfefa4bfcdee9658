"""Where launch configurations came from, as ``optimized.launch`` hands them out; other engines say nothing."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LAUNCH, LOOKUP = "optimized.launch", "_launch"


@contextmanager
def recorded() -> Iterator[dict[str, str]]:
    """Note each kernel's configuration and its file while calls run, by kernel."""
    module = sys.modules.get(LAUNCH)
    notes: dict[str, str] = {}
    if module is None:
        yield notes
        return
    lookup = getattr(module, LOOKUP)

    def noting(kernel: str, file: str, sizes: Any) -> Any:
        launch = lookup(kernel, file, sizes)
        options = " ".join(f"{name}={value}" for name, value in launch.options.items())
        notes[kernel] = f"{options} ({launch.origin.partition(':')[0]})"
        return launch

    setattr(module, LOOKUP, noting)
    try:
        yield notes
    finally:
        setattr(module, LOOKUP, lookup)

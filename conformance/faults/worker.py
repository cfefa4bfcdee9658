"""Judge engines of the catalogue one after another in one process; started by ``prove.py``.

Usage: python -m conformance.faults.worker FOLDER CHECKPOINT NAME... Writes FOLDER/NAME.json for each as it ends. With
S35_LEAVE_ONE_OUT in the environment, a fault is localised without thinking of that very fault.
"""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from ..isolation import CHECK_LIMIT_S
from .attacks import ATTACKS
from .catalogue import FAULTS, find

LEAVE_ONE_OUT = "S35_LEAVE_ONE_OUT"
CONFORMANCE = Path(__file__).parents[1]
ROOT = CONFORMANCE.parent


class OnlyClause:
    """A fault is run on the checks of its own clause, up to the first that fails: no other could catch it."""

    def __init__(self, clause: str) -> None:
        self.clause = clause

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept = [item for item in items if self.clause in [m.args[0] for m in item.iter_markers("clause")]]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def main() -> None:
    folder, checkpoint, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for name in names:
        attack = ATTACKS.get(name)
        entry = attack or find(name)
        module, limit_s = ("attacks", attack.time_limit_s) if attack else ("catalogue", CHECK_LIMIT_S)
        records = folder / f"{name}.checks.json"
        started = time.monotonic()
        fault = FAULTS.get(name)
        code = pytest.main(
            [
                *(["-x", "--no-shrink"] if fault else []),
                *([f"--without-suspect={name}"] if fault and LEAVE_ONE_OUT in os.environ else []),
                *(str(CONFORMANCE / path) for path in entry.checks),
                f"--engine=conformance.faults.{module}:{name}",
                f"--checks={records}",
                f"--checkpoint={checkpoint}",
                f"--time-limit={limit_s}",
                f"--rootdir={ROOT}",
                f"-c={ROOT / 'pyproject.toml'}",
                "-q",
                "--tb=no",
                "-p",
                "no:cacheprovider",
            ],
            plugins=[OnlyClause(fault.clause)] if fault else [],
        )
        checks = json.loads(records.read_text(encoding="utf-8"))["checks"] if records.exists() else []
        outcome = {"exit_code": int(code), "seconds": round(time.monotonic() - started, 2), "checks": checks}
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(json.dumps(outcome), encoding="utf-8")
        unfinished.rename(folder / f"{name}.json")


if __name__ == "__main__":
    main()

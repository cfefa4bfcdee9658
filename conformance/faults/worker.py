"""Judge engines of the catalogue one after another in one process; started by ``prove.py``.

Usage: python -m conformance.faults.worker FOLDER CHECKPOINT NAME... Writes FOLDER/NAME.json for each as it ends.
"""

import json
import sys
import time
from pathlib import Path

import pytest

from .catalogue import BENIGN, FAULTS

CONFORMANCE = Path(__file__).parents[1]
ROOT = CONFORMANCE.parent


def main() -> None:
    folder, checkpoint, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    for name in names:
        entry = FAULTS[name] if name in FAULTS else BENIGN[name]
        records = folder / f"{name}.checks.json"
        started = time.monotonic()
        code = pytest.main(
            [
                str(CONFORMANCE / entry.checks),
                f"--engine=conformance.faults.catalogue:{name}",
                f"--checks={records}",
                f"--checkpoint={checkpoint}",
                f"--rootdir={ROOT}",
                f"-c={ROOT / 'pyproject.toml'}",
                "-q",
                "--tb=no",
                "-p",
                "no:cacheprovider",
            ]
        )
        checks = json.loads(records.read_text(encoding="utf-8"))["checks"] if records.exists() else []
        outcome = {"exit_code": int(code), "seconds": round(time.monotonic() - started, 2), "checks": checks}
        unfinished = folder / f"{name}.unfinished"
        unfinished.write_text(json.dumps(outcome), encoding="utf-8")
        unfinished.rename(folder / f"{name}.json")


if __name__ == "__main__":
    main()

"""Judge wrong engines in one process, each by the checks of its own file; print what they did as JSON.

Usage: judge_faults.py SCRATCH_FOLDER CHECKPOINT FAULT...
"""

import json
import sys
from pathlib import Path

import pytest
from wrong_engines import FAULTS

CONFORMANCE = Path(__file__).parents[2] / "conformance"


def main() -> None:
    scratch, checkpoint, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    outcomes = {}
    for name in names:
        checks = scratch / f"{name}.json"
        code = pytest.main(
            [
                str(CONFORMANCE / FAULTS[name].checks),
                f"--engine=wrong_engines:with_{name}",
                f"--checks={checks}",
                f"--checkpoint={checkpoint}",
                "-q",
                "--tb=no",
                "-p",
                "no:cacheprovider",
            ]
        )
        outcomes[name] = {"exit_code": int(code), "checks": json.loads(checks.read_text())["checks"]}
    (scratch / "outcomes.json").write_text(json.dumps(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()

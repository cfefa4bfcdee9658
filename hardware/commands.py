"""The command ``s35 hardware``."""

import dataclasses
import json
from argparse import ArgumentParser, Namespace

from .identify import identify
from .machine import Accelerator, Fact, Machine


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or mps (default: cpu)")
    parser.add_argument("--json", action="store_true", help="every value with its source, as JSON")


def run(args: Namespace) -> int:
    machine = identify(args.device)
    if args.json:
        print(json.dumps(dataclasses.asdict(machine), indent=2))
    else:
        print("\n".join(f"{name:<20}{text}" for name, text in _rows(machine)))
    return 0


def _rows(thing: Machine | Accelerator) -> list[tuple[str, str]]:
    rows = []
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if isinstance(value, Fact):
            rows.append((field.name, f"{value}  [{value.source}]"))
        elif isinstance(value, str):
            rows.append((field.name, value))
        elif isinstance(value, tuple):
            for index, accelerator in enumerate(value):
                rows += [(f"{index} {name}", text) for name, text in _rows(accelerator)]
    return rows

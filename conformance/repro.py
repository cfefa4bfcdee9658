"""A failed check as a script of its own: the calls that the engine got, and what was wanted of the last one.

The script needs the engine, torch and safetensors, and nothing of the judge; its tensors lie in a file beside it.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from reference.quantization import Fp8Weight, Int4Weight

from .isolation import Call
from .tolerance import ConformanceError, Failure

LARGEST_SCRIPT = 40  # lines

TEMPLATE = '''"""{title}

{said}
"""
import importlib, json, sys
from pathlib import Path

import torch
from safetensors.torch import load_file
{imports}
CALLS = json.loads(Path(__file__).with_suffix(".json").read_text())
TENSORS = load_file(Path(__file__).with_suffix(".safetensors"))
sys.path[:0] = {path!r}
engine = importlib.import_module({module!r}).{attribute}
engine = engine if hasattr(engine, "ops") and not isinstance(engine, type) else engine()
{device}

def read(value):
    if isinstance(value, dict) and "tensor" in value:
        return TENSORS[value["tensor"]].to(engine.device)
    if isinstance(value, dict) and "quantised" in value:
        return globals()[value["quantised"]](*map(read, value["parts"]), value["group"])
    return [read(item) for item in value] if isinstance(value, list) else value

{run}
{compare}
'''

RUN_OP = """for name, inputs in CALLS:
    got = engine.ops()[name](*read(inputs))
got = (got if isinstance(got, tuple) else (got,))[{part}]"""

RUN_MODEL = """model, sessions, outputs = engine.load_model(Path({checkpoint!r})), {{}}, {{}}
for target, member, args in CALLS:
    if member == "new_session":
        sessions[target] = model.new_session()
    else:
        result = getattr(sessions[target] if target else model, member)(*args)
        outputs.setdefault(target, []).append(result)
got = {got}"""

COMPARE = """error = {statistic}
print("worst error", error.max().item(), "of bound", TENSORS["bound"].max().item())
sys.exit("wrong: beyond the bound" if (~(error <= TENSORS["bound"])).any() else 0)"""

# How each statistic of ``tolerance`` comes from the difference of two tensors.
STATISTICS = {
    "element": '(torch.as_tensor(got).cpu().double() - TENSORS["want"]).abs()',
    "rms_of_row": '(got.cpu().double() - TENSORS["want"]).square().mean(-1, keepdim=True).sqrt().flatten(0, -2)',
    "worst_of_row": '(got.cpu().double() - TENSORS["want"]).abs().amax(-1, keepdim=True).flatten(0, -2)',
    "rms_of_blocks": "torch.cat([b.square().mean(-1, keepdim=True).sqrt() for b in (got.cpu().double() - "
    'TENSORS["want"]).flatten(0, -2).split(128, -1)], -1)',
}


def write_reproduction(
    folder: Path,
    check: str,
    engine: str,
    device: str | None,
    error: ConformanceError,
    calls: list[Call],
) -> Path:
    """Write the script and its tensors.

    Args:
        folder: made if need be.
        check: id of the check.
        engine: module:attribute.
        calls: what the engine was asked in this check; of operators, the last call only.

    Returns:
        the script.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / (re.sub(r"\W+", "_", check.rpartition("/")[2]).strip("_") + ".py")
    tensors: dict[str, Tensor] = {}
    failure = error.failure
    if failure is not None:
        tensors |= {"want": failure.want.double().contiguous(), "bound": failure.bound.double().contiguous()}
    if calls and calls[-1].call == "op":
        last = calls[-1]
        listed: list[Any] = [[last.args["name"], [_written(value, tensors) for value in last.args["inputs"]]]]
        part = _part(last.value["output"], failure)
        run = RUN_OP.format(part=part or 0)
        comparable = part is not None
    else:
        listed, found = _model_calls(calls, failure)
        checkpoint = next((call.args["checkpoint"] for call in calls if call.call == "load_model"), "reference/nano")
        run = RUN_MODEL.format(got=found or "outputs", checkpoint=checkpoint)
        comparable = found is not None
    quantised = any(
        isinstance(value, Fp8Weight | Int4Weight) for call in calls for value in call.args.get("inputs", [])
    )
    module, _, attribute = engine.partition(":")
    compare = COMPARE.format(statistic=STATISTICS[failure.statistic]) if failure and comparable else "print(got)"
    said = str(error).splitlines()[0][:110].replace("\\", "/").replace('"', "'")
    text = TEMPLATE.format(
        title=check[:110],
        said=said,
        imports="from reference.quantization import Fp8Weight, Int4Weight" if quantised else "",
        path=[folder for folder in sys.path if folder and not folder.startswith((sys.prefix, sys.base_prefix))],
        module=module,
        attribute=attribute,
        device=f"engine.device = {device!r}" if device else "",
        run=run,
        compare=compare,
    )
    text = re.sub(r"\n{3,}", "\n\n", text)
    assert text.count("\n") <= LARGEST_SCRIPT, "a reproduction stays short"
    script.write_text(text, encoding="utf-8")
    script.with_suffix(".json").write_text(json.dumps(listed), encoding="utf-8")
    save_file(tensors or {"none": torch.zeros(1)}, script.with_suffix(".safetensors"))
    return script


def _written(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = f"input{len(tensors)}"
        tensors[name] = value.contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Fp8Weight | Int4Weight):
        parts = (value.data, value.scale_inv) if isinstance(value, Fp8Weight) else (value.data, value.scale)
        group = list(value.block) if isinstance(value, Fp8Weight) else value.group
        written = [_written(part, tensors) for part in parts]
        return {"quantised": type(value).__name__, "parts": written, "group": group}
    return value


def _part(output: Any, failure: Failure | None) -> int | None:
    """Which part of an operator's output was compared: the one that holds the very numbers."""
    parts = output if isinstance(output, tuple) else (output,)
    for number, part in enumerate(parts):
        if failure is not None and isinstance(part, Tensor) and _same(part, failure.got):
            return number
    return None


def _model_calls(calls: list[Call], failure: Failure | None) -> tuple[list[Any], str | None]:
    """Calls of sessions and models as [target, member, args], and where in their outputs the compared rows are."""
    listed: list[Any] = []
    outputs: dict[int, list[Tensor]] = {}
    for call in calls:
        if call.call == "new_session":
            listed.append([call.args["number"], "new_session", []])
        elif call.call == "session":
            listed.append([call.args["number"], call.args["member"], call.args["args"]])
            outputs.setdefault(call.args["number"], [])
            if isinstance(call.value["output"], Tensor):
                outputs[call.args["number"]].append(call.value["output"])
        elif call.call == "generate":
            listed.append([0, "generate", [call.args["prompt_ids"], call.args["max_new_tokens"]]])
        elif call.call == "call_model":
            listed.append([0, call.args["member"], call.args["args"]])
    if failure is None:
        return listed, None
    for number, tensors in outputs.items():
        if not tensors:
            continue
        rows = torch.cat(tensors)
        for start in range(len(rows) - len(failure.got) + 1):
            if _same(rows[start : start + len(failure.got)], failure.got):
                where = f"torch.cat([o for o in outputs[{number}] if o is not None])"
                return listed, f"{where}[{start}:{start + len(failure.got)}]"
    return listed, None


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.double(), other.double())

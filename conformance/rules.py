"""How many faults the rules in use elsewhere let through, beside this suite's, on one MoE layer at its real shape.

``python -m conformance.rules --device cuda --out FILE.md`` judges the same faulty layers, right layers and inputs by
every rule, and writes the table. Sources of the rules: FlashInfer tests of fused MoE (match ratio), flashinfer-bench
default, vLLM tests of block FP8 MoE, DeepGEMM calc_diff, llama.cpp test-backend-ops (NMSE), flash-attention tests (2x a
baseline).
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.operators import Operators
from reference.quantization import FORMATS

from .counters import Counters
from .faults.catalogue import BENIGN, FAULTS, Change
from .legal import reordered_operators
from .profiles import PROFILES, Profile
from .strategies import ROUTER_FAMILIES
from .tolerance import ConformanceError, DotBound, Envelope, Residual, gamma, near_tie, within

LEGAL = 16  # evaluations for the envelope
LOWEST_LOGIT = -16.0
SCALING, LIMIT, SHARED_LIMIT = 3.0, 7.0, 16.0  # of layer 44: both clamps are on
ROWS = {  # rows that a MoE layer is made of
    "bf16": ("router", "experts", "mlp"),
    "fp8": ("router", "experts_fp8", "mlp"),
}
# Families of inputs: what happens to the router's, and how large activations are.
FAMILIES = {
    "randn": ("randn", 1.0),
    "saturating": ("randn", 8.0),
    "small": ("randn", 0.02),
    "all_negative": ("all_negative", 1.0),
    "near_ties": ("near_ties", 1.0),
    "biased": ("biased", 1.0),
    "hot": ("hot", 1.0),
    "mixed_rows": ("randn", 0.0),
}


@dataclass(frozen=True)
class Shape:
    """Tokens, hidden size, intermediate size of an expert, experts, experts of a token."""

    tokens: int = 64
    hidden_size: int = 4096
    intermediate_size: int = 1280
    num_experts: int = 288
    top_k: int = 8


@dataclass(frozen=True)
class Layer:
    """Inputs and weights of one MoE layer."""

    x: Tensor
    router_weight: Tensor
    router_bias: Tensor
    top_k: int
    stacked: tuple[Any, Any, Any]
    shared: tuple[Tensor, Tensor, Tensor]

    def run(self, ops: Operators, experts: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output [T, D], expert ids and expert weights; in ``dtype`` if given."""
        x, router_weight, bias = (_as(t, dtype) for t in (self.x, self.router_weight, self.router_bias))
        ids, weights = ops.router(x.clone(), router_weight, bias, self.top_k, SCALING)
        routed = getattr(ops, experts)(x.clone(), ids, weights, *self.stacked, LIMIT)
        return routed + ops.mlp(x.clone(), *(_as(t, dtype) for t in self.shared), SHARED_LIMIT), ids, weights


def _as(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def make_weights(shape: Shape, profile: Profile, device: str) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    """Stacked weights of the routed experts as the profile stores them, and of the shared one."""
    random = torch.Generator(device).manual_seed(1)

    def one(rows: int, columns: int) -> Tensor:
        scale = torch.linspace(0.5, 2, rows, device=device)[:, None] / columns**0.5
        return (torch.randn(rows, columns, generator=random, device=device) * scale).to(profile.weights)

    sizes = [(shape.intermediate_size, shape.hidden_size)] * 2 + [(shape.hidden_size, shape.intermediate_size)]
    stacked = []
    for size in sizes:
        dense_weight = torch.stack([one(*size) for _ in range(shape.num_experts)])
        stacked.append(FORMATS["fp8"].quantize(dense_weight) if profile.expert_weights == "fp8" else dense_weight)
    return tuple(stacked), tuple(one(*size) for size in sizes)  # type: ignore[return-value]


def make_layer(family: str, shape: Shape, profile: Profile, weights: Any, device: str) -> Layer:
    """Inputs of a family."""
    routing, scale = FAMILIES[family]
    random = torch.Generator().manual_seed(sum(family.encode()))
    x = torch.randn(shape.tokens, shape.hidden_size, generator=random)
    factors = 2.0 ** torch.randint(-6, 5, (shape.tokens, 1), generator=random) if scale == 0 else scale
    router_weight = 2 * torch.randn(shape.num_experts, shape.hidden_size, generator=random) / shape.hidden_size**0.5
    bias = torch.randn(shape.num_experts, generator=random) / 10
    x, router_weight, bias = ROUTER_FAMILIES[routing](x, router_weight, bias, random)
    if routing == "all_negative":  # as low as a trained router goes: at this width they would underflow
        router_weight *= LOWEST_LOGIT / (x @ router_weight.T).min()
    narrow = (x * factors).to(device, profile.activations), router_weight.to(device, profile.weights)
    return Layer(*narrow, bias.to(device), shape.top_k, *weights)


def relative_or_absolute(rtol: float, atol: float, share: float) -> Callable[[Tensor, Tensor], bool]:
    def passes(got: Tensor, want: Tensor) -> bool:
        return bool(((got - want).abs() <= atol + rtol * want.abs()).double().mean() >= share)

    return passes


def calc_diff(got: Tensor, want: Tensor) -> bool:
    return bool(1 - 2 * (got * want).sum() / (got.square() + want.square()).sum() < 1e-3)


def nmse(got: Tensor, want: Tensor) -> bool:
    return bool((got - want).square().sum() / want.square().sum() < 5e-4)


RULES: Mapping[str, Callable[[Tensor, Tensor], bool]] = {
    "FlashInfer: 0.85 relative, 0.1 absolute, for 80 %": relative_or_absolute(0.85, 0.1, 0.80),
    "FlashInfer: 0.2 relative, 0.1 absolute, for 85 %": relative_or_absolute(0.2, 0.1, 0.85),
    "flashinfer-bench: 0.01 and 0.01, for 95 %": relative_or_absolute(0.01, 0.01, 0.95),
    "vLLM: allclose 0.035 and 0.035": relative_or_absolute(0.035, 0.035, 1.0),
    "DeepGEMM: calc_diff < 1e-3": calc_diff,
    "llama.cpp: NMSE < 5e-4": nmse,
}
TWICE, OUTPUT, ROUTED = (
    "flash-attention: twice the error of a baseline",
    "this suite, from the output alone: envelope and residual",
    "this suite, with expert ids and weights exposed",
)
ALL_RULES = (*RULES, TWICE, OUTPUT, ROUTED)


class Judge:
    """Everything that the rules need of one layer: oracle, legal evaluations, directions."""

    def __init__(self, layer: Layer, profile: Profile, shape: Shape) -> None:
        self.layer, self.profile, self.shape = layer, profile, shape
        self.experts = "experts_fp8" if profile.expert_activations == "fp8" else "experts"
        self.exact, self.ids, _ = layer.run(Operators(), self.experts, torch.float64)
        tables = [reordered_operators(profile, seed) for seed in range(LEGAL)]
        legal = [layer.run(table, self.experts)[0].double() for table in tables]
        ideal = layer.run(Operators(), "experts", torch.float64)[0] if self.experts != "experts" else None
        self.envelope = Envelope(legal, self.exact, ideal=ideal)
        self.baseline = layer.run(Operators(), self.experts)[0].double()
        self.residual = Residual(legal, self.exact, self._directions())

    def _directions(self) -> dict[str, Tensor]:
        """What each part adds: the shared expert, and the routed experts of each rank."""
        wide = torch.float64
        x = self.layer.x.to(wide)
        shared = Operators().mlp(x, *(t.to(wide) for t in self.layer.shared), SHARED_LIMIT)
        ids, weights = Operators().router(
            x, self.layer.router_weight.to(wide), self.layer.router_bias.to(wide), self.shape.top_k, SCALING
        )
        parts = {"shared expert": shared}
        run = getattr(Operators(), self.experts)
        for rank in range(self.shape.top_k):
            alone = torch.zeros_like(weights)
            alone[:, rank] = weights[:, rank]
            parts[f"expert of rank {rank}"] = run(x, ids, alone, *self.layer.stacked, LIMIT)
        return parts

    def verdicts(self, got: Tensor, ids: Tensor, weights: Tensor) -> dict[str, bool]:
        """Whether each rule lets an output pass."""
        if got.shape != self.exact.shape or not got.isfinite().all():
            return dict.fromkeys(ALL_RULES, False)
        wide = got.double()
        passes = {name: rule(wide, self.exact) for name, rule in RULES.items()}
        worst = (self.baseline - self.exact).abs().max()
        passes[TWICE] = bool((wide - self.exact).abs().max() <= 2 * worst)
        passes[OUTPUT] = self._accepts(lambda counters: self._check_output(got, counters))
        passes[ROUTED] = passes[OUTPUT] and self._accepts(lambda counters: self._check_routing(ids, weights, counters))
        return passes

    def _accepts(self, check: Callable[[Counters], None]) -> bool:
        try:
            check(Counters())
        except ConformanceError as error:
            self.objection = str(error)
            return False
        return True

    def _check_output(self, got: Tensor, counters: Counters) -> None:
        self.envelope.check(got, counters, "layer")
        self.residual.check(got, counters, "layer")

    def _check_routing(self, ids: Tensor, weights: Tensor, counters: Counters) -> None:
        """As ``conformance/ops/test_router.py``."""
        x, weight = self.layer.x.double(), self.layer.router_weight.double()
        plain = torch.sigmoid(x @ weight.T).cpu()
        accumulate = self.profile.accumulate
        logit_error = DotBound(x.shape[-1], accumulate).error(x.abs() @ weight.abs().T).cpu()
        errors = logit_error / 4 + gamma(5, accumulate)
        biased, ids = plain + self.layer.router_bias.double().cpu(), ids.cpu()
        for token, chosen in enumerate(ids.tolist()):
            near_tie(set(chosen), biased[token], errors[token], self.shape.top_k, counters, f"token {token}")
        chosen_scores = plain.gather(-1, ids)
        want = chosen_scores / (chosen_scores.sum(dim=-1, keepdim=True) + 1e-20) * SCALING
        relative = (1 - chosen_scores) * logit_error.gather(-1, ids).expm1() + gamma(5, torch.float32)
        bound = want * (relative + relative.amax(dim=-1, keepdim=True) + gamma(self.shape.top_k + 3, torch.float32))
        within(weights.cpu(), want, bound, "both errors of a quotient of sigmoids", counters, "weights")


def candidates(profile: Profile) -> tuple[dict[str, Change], dict[str, Change]]:
    """Faults, and right variants, of the rows of a MoE layer."""
    rows = ROWS[profile.name]
    own = ("float32", "bf16", profile.name)
    faults = {
        name: f
        for name, f in FAULTS.items()
        if f.row in rows and f.profile in own and not f.checks[0].startswith("model")
    }
    plain = Operators()
    right = {
        name: benign
        for name, benign in BENIGN.items()
        if benign.profile == profile.name
        and any(getattr(benign.operators(plain), r) != getattr(plain, r) for r in rows)
    }
    return faults, right  # type: ignore[return-value]


def compare(
    profile: Profile, shape: Shape, device: str = "cpu", families: Sequence[str] = tuple(FAMILIES)
) -> dict[str, Any]:
    """Judge every candidate on every family by every rule.

    Returns:
        faults, right: names; passes: by name, family and rule, whether it passed; not_run and objections: why.
    """
    weights = make_weights(shape, profile, device)
    faults, right = candidates(profile)
    passes: dict[str, dict[str, dict[str, bool]]] = {}
    unrunnable: dict[str, str] = {}
    objections: dict[str, str] = {}  # of this suite to right variants
    for family in families:
        judge = Judge(make_layer(family, shape, profile, weights, device), profile, shape)
        for name, change in {**faults, **right}.items():
            if name in unrunnable:
                continue
            try:
                output = judge.layer.run(change.operators(Operators()), judge.experts)
            except (RuntimeError, ValueError, IndexError) as error:  # most are written for the CPU and small layers
                unrunnable[name] = str(error).partition("\n")[0]
                continue
            same = torch.equal(output[0], judge.baseline.to(output[0].dtype)) and torch.equal(output[1], judge.ids)
            verdicts = judge.verdicts(*output)
            if name in right and not verdicts[ROUTED]:
                objections[f"{name} on {family}"] = judge.objection
            passes.setdefault(name, {})[family] = verdicts | {"same as the reference": same}
        del judge
    return {
        "profile": profile.name,
        "faults": [name for name in faults if name not in unrunnable],
        "right": [name for name in right if name not in unrunnable],
        "not_run": unrunnable,
        "objections": objections,
        "passes": passes,
    }


def table(result: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (rule, caught on randn, caught on all families, right variants rejected)."""
    passes = result["passes"]
    visible = [n for n in result["faults"] if not all(f["same as the reference"] for f in passes[n].values())]
    rows = []
    for rule in ALL_RULES:
        on_randn = sum(not passes[name]["randn"][rule] for name in visible)
        anywhere = sum(any(not family[rule] for family in passes[name].values()) for name in visible)
        rejected = sum(any(not family[rule] for family in passes[name].values()) for name in result["right"])
        rows.append(
            (rule, f"{on_randn}/{len(visible)}", f"{anywhere}/{len(visible)}", f"{rejected}/{len(result['right'])}")
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m conformance.rules", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="FILE.md; FILE.json beside it holds every verdict")
    for field, value in asdict(Shape()).items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, default=value)
    args = parser.parse_args()
    shape = Shape(**{field: getattr(args, field) for field in asdict(Shape())})
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    lines = [f"{name}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}; {asdict(shape)}", ""]
    results = []
    for profile in ROWS:
        result = compare(PROFILES[profile], shape, args.device)
        results.append(result)
        right, missing = len(result["right"]), len(result["not_run"])
        lines += [f"Profile {profile}: {len(result['faults'])} faults, {right} right variants, {missing} not run", ""]
        lines += ["| rule | caught, randn | caught, all families | right ones rejected |", "|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in table(result)] + [""]
    args.out.write_text("\n".join(lines), encoding="utf-8")
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""The engines that the judge is proven on, from TOML: ``--engine conformance.faults.catalogue:NAME``.

wrong/*.toml       one thing wrong, by category: must be caught by a check of the fault's clause.
equivalents.toml   looks wrong and is provably not: must be accepted, with the proof.
benign.toml        right, and computed otherwise than the reference: must be accepted.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from reference.config import ModelConfig
from reference.engine import ReferenceEngine, ReferenceModel, ReferenceSession
from reference.model import Model, Weights
from reference.operators import Operators

from . import (
    benign_engines,
    benign_products,
    benign_rows,
    configs,
    generation,
    loaded,
    loaders,
    models,
    mtp_models,
    sessions,
    weights,
)
from .operators import find_operator, misreading
from .operators.composed import Composed

HERE = Path(__file__).parent
KINDS = {  # field of a change, and the modules in which its value is looked up
    "config": (configs,),
    "weights": (weights,),
    "model": (models, mtp_models),
    "session": (sessions,),
    "loaded": (loaded, generation),
    "engine_class": (loaders,),
    "variant": (benign_products, benign_rows),
}


@dataclass(frozen=True)
class Change:
    """What makes an engine differ from the reference; exactly one of the kinds below.

    Attributes:
        checks: what is run, below ``conformance/``.
        profile: the arithmetic that the engine declares.
        row, function: an operator, and by what it is replaced (default: a function of the entry's own name).
        within: the rows that are made of ``row``, and get the other one inside, too.
        misread: a function of ``operators.stored``: how ``row`` reads its quantised weights.
        config, weights, model, session, loaded, engine_class: a function or class of the modules in KINDS.
        variant: a function of them, too: several rows computed otherwise.
        feature, what, depth: for ``features.py``, which measures it: the feature, how it is wrong, and which output
            shows it (0 the model's, 1 to 3 an MTP depth's).
    """

    name: str
    checks: tuple[str, ...]
    profile: str = "float32"
    row: str | None = None
    function: str | None = None
    within: tuple[str, ...] = ()
    misread: str | None = None
    config: str | None = None
    weights: str | None = None
    model: str | None = None
    session: str | None = None
    loaded: str | None = None
    engine_class: str | None = None
    variant: str | None = None
    feature: str | None = None
    what: str | None = None
    depth: int = 0

    def found(self, kind: str) -> Any:
        """The function or class that a kind names; None where it names none.

        Raises:
            ValueError: the module has nothing of that name.
        """
        name = getattr(self, kind)
        if name is None:
            return None
        modules = (benign_engines, *KINDS[kind]) if isinstance(self, Benign) else KINDS[kind]
        for module in modules:
            if callable(found := getattr(module, name, None)):
                return found
        names = " or ".join(module.__name__ for module in modules)
        raise ValueError(f"{self.name}: {kind} is {name!r}; want a name of {names}")

    @property
    def content(self) -> tuple[Any, ...]:
        """What the change is, apart from its name and from who should notice it."""
        kinds = ("row", "within", "misread", *KINDS)
        function = (self.function or self.name) if self.row is not None and self.misread is None else None
        return (self.profile, function, *(getattr(self, kind) for kind in kinds))

    @property
    def changes_a_model(self) -> bool:
        """Whether ``of_model`` does anything."""
        return any(getattr(self, kind) is not None for kind in ("row", "config", "weights", "model", "variant"))

    def operators(self, ops: Operators) -> Operators:
        """A table with the changed rows."""
        if (variant := self.found("variant")) is not None:
            return replace(ops, **(variant(self.profile) if variant is benign_rows.reordered else variant()))
        if self.row is None:
            return ops
        if self.misread is not None:
            return replace(ops, **{self.row: misreading(self.row, self.misread)})
        changed = replace(ops, **{self.row: find_operator(self.row, self.function or self.name)})
        inside = Composed(changed)
        return replace(changed, **{row: getattr(inside, row) for row in self.within})

    def of_model(self, model: Model) -> Model:
        """A model like the given one, with this change; operators are taken as they are in ``model``."""
        change_config: Callable[[ModelConfig], ModelConfig] | None = self.found("config")
        change_weights: Callable[[ModelConfig, Weights], Weights] | None = self.found("weights")
        config = model.config if change_config is None else change_config(model.config)
        held = model.weights if change_weights is None else change_weights(model.config, model.weights)
        built: Model = (self.found("model") or Model)(config, held, model.dtype, model.device, model.ops)
        return built

    def engine(self) -> Any:
        """The reference with this change."""
        base = self.found("engine_class") or ReferenceEngine
        return type("Changed", (_Changed, base), {"change": self})(
            self.name.replace("_", "-"), self.profile, ops=self.operators(Operators())
        )


class _Changed(ReferenceEngine):
    """An engine whose loaded model has a change."""

    change: Change

    def load_model(self, checkpoint: Path) -> ReferenceModel:
        model = self.change.of_model(super().load_model(checkpoint).model)
        session, loaded_class = self.change.found("session"), self.change.found("loaded") or ReferenceModel
        if session is None:
            return loaded_class(model)
        return _WithSessions(model, session)


class _WithSessions(ReferenceModel):
    def __init__(self, model: Model, session: type[ReferenceSession]) -> None:
        super().__init__(model)
        self.session = session

    def new_session(self) -> ReferenceSession:
        return self.session(self.model)


@dataclass(frozen=True)
class Fault(Change):
    """One thing wrong.

    Attributes:
        clause: the clause whose checks must notice.
        category: what kind of part is wrong.
        component: what a localisation should name: a row of ``reference/ops``, or a part around the operators.
        origin: where it happened, if it did.
        specific: whether only this model can have it.
    """

    clause: str = ""
    category: str = ""
    component: str = ""
    origin: str | None = None
    specific: bool = False


@dataclass(frozen=True)
class Equivalent(Change):
    """Looks like a fault and is none.

    Attributes:
        component: where it lies, as of a fault.
        proof: why nobody can tell it from the reference, or why it is right all the same.
    """

    component: str = ""
    proof: str = ""


@dataclass(frozen=True)
class Benign(Change):
    """Right, and computed otherwise than the reference.

    Attributes:
        why: what an engine gains by computing so.
    """

    why: str = ""


def _tables(path: Path) -> Mapping[str, dict[str, Any]]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _entry(kind: type[Any], name: str, table: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if unknown := table.keys() - known:
        raise ValueError(f"{name}: has {', '.join(sorted(unknown))}; want fields of {kind.__name__}")
    checks = table.get("checks", f"ops/test_{table.get('row')}.py")
    entry = {"checks": tuple([checks] if isinstance(checks, str) else checks)}
    if "within" in table:
        entry["within"] = tuple(table["within"])
    if kind is not Benign:
        entry["component"] = table.get("component", table.get("row", ""))
    return kind(name, **(table | entry))


def _for_each_profile(tables: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """An entry of benign.toml names its profiles; those after the first are part of the engine's name."""
    groups, entries = tables["groups"], {}
    for name, table in tables.items():
        if name == "groups":
            continue
        rest = {key: value for key, value in table.items() if key not in ("profiles", "groups")}
        if "groups" in table:
            rest["checks"] = [check for group in table["groups"] for check in groups[group]]
        for number, profile in enumerate(table["profiles"]):
            entries[name if number == 0 else f"{name}_{profile.replace('-', '_')}"] = rest | {"profile": profile}
    return entries


def _faults() -> dict[str, Fault]:
    """The faults of every file, whose name is their category."""
    faults: dict[str, Fault] = {}
    for path in sorted((HERE / "wrong").glob("*.toml")):
        for name, table in _tables(path).items():
            if name in faults:
                raise ValueError(f"{path.name}: {name} is a {faults[name].category} fault already; want another name")
            faults[name] = _entry(Fault, name, {"category": path.stem.replace("_", " ")} | table)
    return faults


FAULTS: dict[str, Fault] = _faults()
EQUIVALENTS: dict[str, Equivalent] = {
    name: _entry(Equivalent, name, table) for name, table in _tables(HERE / "equivalents.toml").items()
}
BENIGN: dict[str, Benign] = {
    name: _entry(Benign, name, table) for name, table in _for_each_profile(_tables(HERE / "benign.toml")).items()
}


def find(name: str) -> Fault | Equivalent | Benign:
    """Look an engine up.

    Raises:
        ValueError: it is not in the catalogue.
    """
    for table in (FAULTS, EQUIVALENTS, BENIGN):
        if name in table:
            return table[name]
    raise ValueError(f"fault: {name} is not in the catalogue; want a name of conformance/faults/*.toml")


def __getattr__(name: str) -> Any:
    try:
        return find(name).engine
    except ValueError:
        raise AttributeError(name) from None

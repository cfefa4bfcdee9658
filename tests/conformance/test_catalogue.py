"""The catalogue of engines is what it says: every entry stands for one change, that exists and does something."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from row_inputs import inputs_of
from torch import Tensor

from conformance.clauses import CLAUSES
from conformance.faults import generation, loaded, models, sessions
from conformance.faults.catalogue import BENIGN, EQUIVALENTS, FAULTS, KINDS, Change, find
from conformance.faults.suspects import wrong_models
from conformance.profiles import PROFILES
from reference.cache import LayerCache
from reference.checkpoint import Checkpoint, LoadedWeights
from reference.engine import ReferenceEngine, ReferenceModel, ReferenceSession
from reference.model import Model
from reference.operators import Operators
from reference.quantization import FORMATS, dense

CONFORMANCE = Path(__file__).parents[2] / "conformance"
NANO = Path(__file__).parents[2] / "reference" / "nano"
EVERYTHING = {**FAULTS, **EQUIVALENTS, **BENIGN}
CHANGES = {**FAULTS, **EQUIVALENTS}
ISSUE = re.compile(r"[\w.-]+#\d+")
WRONG_ANYHOW = ("routed_clamp_16", "theta_10000", "experts_swapped", "gate_skipped", "swiglu_swapped")
ROWS = [name for name, change in CHANGES.items() if change.row is not None]


@pytest.fixture(scope="module")
def opened() -> Checkpoint:
    return Checkpoint(NANO)


@pytest.fixture(scope="module")
def held(opened: Checkpoint) -> dict[str | None, LoadedWeights]:
    """The right weights, by the format of their experts."""
    dense = opened.load(dtype=torch.float32)
    return {None: dense} | {name: dense.with_experts(format.quantize) for name, format in FORMATS.items()}


def test_there_are_enough_to_prove_anything() -> None:
    assert len(FAULTS) >= 150
    assert sum(bool(ISSUE.search(fault.origin or "")) for fault in FAULTS.values()) >= 60
    assert sum(fault.specific for fault in FAULTS.values()) >= 25
    assert len({fault.category for fault in FAULTS.values()}) >= 12
    assert len(EQUIVALENTS) >= 10
    assert len(BENIGN) >= 28
    assert len({benign.profile for benign in BENIGN.values()}) >= 4
    assert len(EVERYTHING) == len(FAULTS) + len(EQUIVALENTS) + len(BENIGN), "names are unique"


def test_every_clause_that_an_engine_can_break_has_a_fault() -> None:
    of_the_suite_itself = {"CONF-1", "AWAKE-1"}
    assert {fault.clause for fault in FAULTS.values()} == set(CLAUSES) - of_the_suite_itself


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_says_who_must_notice_it(name: str) -> None:
    fault = FAULTS[name]
    assert fault.clause in CLAUSES
    assert fault.component
    assert fault.category
    assert fault.origin is None or len(fault.origin) > 10


@pytest.mark.parametrize("name", EVERYTHING)
def test_its_checks_exist(name: str) -> None:
    change = find(name)
    assert change.profile in PROFILES
    for path in change.checks:
        file, _, check = path.partition("::")
        assert (CONFORMANCE / file).exists(), path
        if check:
            assert f"def {check.partition('[')[0]}(" in (CONFORMANCE / file).read_text(encoding="utf-8"), path


@pytest.mark.parametrize("name", EVERYTHING)
def test_it_is_one_change_and_an_engine(name: str) -> None:
    change = find(name)
    kinds = [kind for kind in ("row", *KINDS) if getattr(change, kind) is not None]
    assert len(kinds) == 1 or (name in BENIGN and not kinds), "the reference itself is the only one without a change"
    for kind in KINDS:
        change.found(kind)
    engine = change.engine()
    assert isinstance(engine, ReferenceEngine)
    assert engine.profile == change.profile


def test_nothing_is_there_twice() -> None:
    twice = Counter((change.content, change.checks) for change in CHANGES.values())
    assert [content for content, count in twice.items() if count > 1] == []


@pytest.mark.parametrize("name", EQUIVALENTS)
def test_an_equivalent_has_a_proof(name: str) -> None:
    assert len(EQUIVALENTS[name].proof) > 60


def same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.double(), other.double())
    return bool(one == other)


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", [name for name in ROWS if name in FAULTS])
def test_a_wrong_operator_does_something_wrong(name: str) -> None:
    """Another result than the reference's on one of the row's inputs, or a change of an input, or no result."""
    change = CHANGES[name]
    assert change.row is not None
    right, wrong = getattr(Operators(), change.row), getattr(change.operators(Operators()), change.row)
    differs = False
    for args in inputs_of(change.row, PROFILES[change.profile]):
        want, sent = right(*args), [copied(value) for value in args]
        try:
            got = wrong(*sent)
        except (ValueError, RuntimeError, IndexError):
            differs = True
            continue
        unchanged = all(
            same(a, b) for a, b in zip(sent, args, strict=True) if isinstance(a, Tensor) and not a.isnan().any()
        )
        differs = differs or not unchanged or not same(got, want)
    assert differs


@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if change.config is not None])
def test_another_reading_of_the_config_is_another_config(name: str, opened: Checkpoint) -> None:
    config = opened.config
    if name == "drafts_with_the_settings_of_the_first_depth":  # the proof: there is no difference
        assert CHANGES[name].found("config")(config) == config
    else:
        assert CHANGES[name].found("config")(config) != config


@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if change.weights is not None])
def test_other_weights_are_other_weights(name: str, opened: Checkpoint, held: dict[str | None, LoadedWeights]) -> None:
    stored = PROFILES[CHANGES[name].profile].expert_weights
    right = held[stored]
    wrong = CHANGES[name].found("weights")(opened.config, right)

    def differ(one: Any, other: Any) -> bool:
        return not torch.equal(dense(one, torch.float64), dense(other, torch.float64))

    layers = range(len(opened.config.layers + opened.config.mtp_layers))
    pairs = [(right.top(), wrong.top()), *((right.layer(i), wrong.layer(i)) for i in layers)]
    assert all(one.keys() == other.keys() for one, other in pairs)
    assert any(differ(one[key], other[key]) for one, other in pairs for key in one)


BASES = {"model": Model, "session": ReferenceSession, "loaded": ReferenceModel, "engine_class": ReferenceEngine}


@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if any(getattr(change, k) for k in BASES)])
def test_a_wrong_class_overrides_something(name: str) -> None:
    kind = next(kind for kind in BASES if getattr(CHANGES[name], kind) is not None)
    found = CHANGES[name].found(kind)
    assert issubclass(found, BASES[kind])
    lineage = found.__mro__[: found.__mro__.index(BASES[kind])]
    assert any(
        hasattr(BASES[kind], member) for one in lineage for member in vars(one) if not member.startswith("__")
    ) or (any("__init__" in vars(one) for one in lineage))
    assert found.__doc__


def test_every_class_and_function_is_used() -> None:
    """A fault that no entry names is never run."""
    used = {value for change in EVERYTHING.values() for value in vars(change).values() if isinstance(value, str)}
    used |= set(ROWS)
    for module, base in ((loaded, ReferenceModel), (generation, ReferenceModel), (sessions, ReferenceSession)):
        for name, found in vars(module).items():
            if isinstance(found, type) and issubclass(found, base) and not found.__subclasses__() and found is not base:
                assert name in used, name


@torch.inference_mode()
def test_suspects_are_models_that_run_and_name_what_is_wrong(opened: Checkpoint) -> None:
    weights = opened.load(dtype=torch.float64)
    tokens = torch.tensor([5, 9, 300, 77])
    right = Model(opened.config, weights, torch.float64)
    true = right.logits(right.hidden(tokens))
    names = []
    for suspect in wrong_models(opened.config, weights):
        names.append(suspect.fault)
        assert suspect.component == FAULTS[suspect.fault].component
        assert suspect.model.dtype == torch.float64
        if suspect.fault in WRONG_ANYHOW:
            assert not torch.equal(suspect.model.logits(suspect.model.hidden(tokens)), true)
    assert set(WRONG_ANYHOW) <= set(names)
    assert len(names) == len(set(names)) > 200


def test_a_wrong_cache_is_a_cache() -> None:
    assert all(issubclass(found.layer_cache, LayerCache) for found in _cached_models())


def _cached_models() -> list[Any]:
    return [found for found in vars(models).values() if isinstance(found, type) and hasattr(found, "layer_cache")]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing_wrong is not in the catalogue"):
        find("nothing_wrong")
    assert not hasattr(__import__("conformance.faults.catalogue", fromlist=["x"]), "nothing_wrong")


def test_a_change_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"config is 'no_such_edit'; want a name of conformance\.faults\.configs"):
        Change("odd", ("ops",), config="no_such_edit").engine().load_model(NANO)

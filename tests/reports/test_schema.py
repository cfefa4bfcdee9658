import dataclasses
import json
import math
import re
from importlib import resources

import pytest
from json_schema import TYPES

from reports import schema
from reports.schema import CheckRecord, ConformanceOutcome, Result, ResultError, dumps, loads
from reports.verdict import Status

SCHEMA = json.loads((resources.files("reports") / "result.schema.json").read_text())


def complaints(value, schema, where="$"):
    """What JSON Schema has against a value; covers the keywords that our schema uses, and no others."""
    used = {"$schema", "$defs", "title", "description", "type", "required", "properties", "pattern"}
    assert set(schema) <= used | {"enum", "items", "additionalProperties", "$ref", "anyOf"}, where
    if "$ref" in schema:
        return complaints(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], where)
    if "anyOf" in schema:
        tried = [complaints(value, option, where) for option in schema["anyOf"]]
        return [] if [] in tried else [complaint for found in tried for complaint in found]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r} is none of {schema['enum']}"]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    is_number_but_bool = isinstance(value, bool) and "boolean" not in kinds
    if is_number_but_bool or not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return [f"{where}: {value!r} is no {kinds}"]
    found = []
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{where}: {value!r} does not match {schema['pattern']}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            found += complaints(item, schema["items"], f"{where}[{index}]")
    if isinstance(value, dict):
        found += [f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            found += complaints(item, inner, f"{where}.{name}") if inner else []
    return found


def test_a_result_survives_the_way_to_json_and_back(make_result):
    result = make_result()
    text = dumps(result)
    back = loads(Result, text, "result.json")
    assert math.isnan(back.checks[4].evidence[0].statistic)
    assert dumps(back) == text
    assert dataclasses.replace(back, checks=back.checks[:4]) == dataclasses.replace(result, checks=result.checks[:4])


def test_a_result_is_strict_json_that_the_shipped_schema_accepts(make_result):
    def refuse(constant):
        raise AssertionError(constant)

    for result in (make_result(), make_result(checks=(), generation=None, seed=None, engine_identity=None)):
        assert complaints(json.loads(dumps(result), parse_constant=refuse), SCHEMA) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda r: r.update(verdict_after_waivers="GOOD"), "$.verdict_after_waivers"),
        (lambda r: r.pop("seed"), "seed is missing"),
        (lambda r: r["checks"][1].update(status="ok"), "$.checks[1].status"),
        (lambda r: r["machine"].update(cpu_cores=2), "$.machine.cpu_cores"),
        (lambda r: r.update(schema_version="1.0"), "does not match"),
        (lambda r: r["checks"][0]["evidence"][0].update(margin="big"), "$.checks[0].evidence[0].margin"),
        (lambda r: r.update(head="abc"), "$.head"),
    ],
)
def test_the_shipped_schema_refuses_what_is_wrong(make_result, spoil, complaint):
    record = json.loads(dumps(make_result()))
    spoil(record)
    assert complaint in " ".join(complaints(record, SCHEMA))


@pytest.mark.parametrize(
    ("kind", "shipped"),
    [
        (Result, SCHEMA),
        (CheckRecord, SCHEMA["$defs"]["check"]),
        (schema.Capabilities, SCHEMA["$defs"]["capabilities"]),
        (schema.EngineIdentity, SCHEMA["$defs"]["engine"]),
        (schema.Evidence, SCHEMA["$defs"]["evidence"]),
        (schema.GenerationSample, SCHEMA["$defs"]["generation"]),
        (schema.KnownFailures, SCHEMA["$defs"]["known_failures"]),
        (schema.LevelOutcome, SCHEMA["$defs"]["level"]),
        (schema.Link, SCHEMA["$defs"]["link"]),
        (schema.Suite, SCHEMA["$defs"]["suite"]),
        (schema.Waiver, SCHEMA["$defs"]["waiver"]),
    ],
)
def test_the_shipped_schema_lists_the_fields_of_the_record(kind, shipped):
    fields = [field.name for field in dataclasses.fields(kind)]
    assert list(shipped["properties"]) == fields
    assert shipped["required"] == fields


def test_the_shipped_schema_lists_the_words_of_the_record():
    assert SCHEMA["$defs"]["check"]["properties"]["status"]["enum"] == list(Status)
    assert SCHEMA["$defs"]["verdict"]["enum"] == list(schema.Verdict)
    assert SCHEMA["$defs"]["level"]["properties"]["grant"]["enum"] == list(schema.Grant)


def test_the_shipped_schema_lists_the_facts_of_a_machine():
    from hardware.machine import Accelerator, Fact, Machine

    for kind, name in ((Machine, "machine"), (Accelerator, "accelerator"), (Fact, "fact")):
        assert list(SCHEMA["$defs"][name]["properties"]) == [field.name for field in dataclasses.fields(kind)]


def test_a_reader_ignores_fields_of_a_later_minor_version(make_result):
    record = json.loads(dumps(make_result()))
    record.update(schema_version="2.9", weather="fine")
    record["checks"][0]["mood"] = "good"
    assert loads(Result, json.dumps(record), "result.json").schema_version == "2.9"


def check_record(**changes):
    return {
        "id": "a::b",
        "clause": "X-1",
        "level": None,
        "profile": "bf16",
        "seed": 0,
        "status": "passed",
        "duration_s": 1,
        "evidence": [],
        "counters": {"rows": 2},
        "digests": {},
        "detail": "",
        "waiver": None,
        **changes,
    }


def outcome(*checks):
    return {"engine": {"name": "a", "profile": "bf16", "device": "cpu"}, "seed": 0, "checks": list(checks)}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (check_record(status="ok"), "checks[0]: status: is 'ok'; want one of passed, failed"),
        (check_record(counters={"rows": "two"}), "checks[0]: counters.rows: is 'two'; want an integer or a number"),
        (check_record(counters=[]), "checks[0]: counters: is []; want an object"),
        (check_record(duration_s=True), "checks[0]: duration_s: is True; want an integer or a number"),
        (check_record(id=None), "checks[0]: id: is None; want a string"),
        (check_record(evidence=[{"rule": "x"}]), "checks[0]: evidence[0]: comparisons is missing; want a complete Evi"),
        (check_record(counters={"rows": 10**400}), "checks[0]: counters.rows: has 401 digits; want a number"),
        ({"id": "a"}, "checks[0]: clause is missing; want a complete CheckRecord"),
        ("a::b", "checks[0]: is 'a::b'; want an object"),
    ],
)
def test_an_error_names_the_file_the_place_and_what_is_wanted(record, message):
    text = json.dumps(outcome(record))
    with pytest.raises(ResultError, match=re.escape(f"checks.json: {message}")):
        loads(ConformanceOutcome, text, "checks.json")


@pytest.mark.parametrize("text", ["", "{", "nonsense", '"\\ud800"', "[" * 100_000, "9" * 5_000])
def test_what_is_not_json_is_refused_by_name(text):
    with pytest.raises(ResultError, match=r"result\.json: not JSON"):
        loads(Result, text, "result.json")


def test_a_name_twice_and_a_bare_nan_are_refused():
    with pytest.raises(ResultError, match=r"result\.json: seed stands twice in one object"):
        loads(Result, '{"seed": 1, "seed": 2}', "result.json")
    with pytest.raises(ResultError, match=r'result\.json: NaN is not JSON; want the string "nan"'):
        loads(Result, '{"seed": NaN}', "result.json")


def test_the_worst_evidence_is_the_one_with_the_largest_margin(make_check, make_evidence):
    entries = (make_evidence(0.5), make_evidence(0, 0), make_evidence(1.5))
    assert make_check(evidence=entries).worst is entries[2]
    assert make_check(evidence=()).worst is None


@pytest.mark.parametrize("version", ["1.0", "10.1", 2, None])
def test_another_major_version_is_refused(make_result, version):
    record = {**json.loads(dumps(make_result())), "schema_version": version}
    with pytest.raises(ResultError, match=r"schema_version is .*; want 2\.x"):
        loads(Result, json.dumps(record), "result.json")

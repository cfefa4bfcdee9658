"""``s35 verify`` accepts what a run wrote, and refuses every edit of it; an edit that hashes cannot show is refused by
what the evidence says, and what neither can show is named.
"""

import dataclasses
import json
import shutil

import pytest
from tamper import EDITS, FAILED, FILE_EDITS, FORGERIES, GOOD, Bundle

import s35
from hardware.identify import identify
from reports.conformance_session import pytest_arguments
from reports.levels import read_levels
from reports.run import Request, run_suite
from reports.schema import Suite
from reports.suite import conformance_folder, levels_file, this_suite
from reports.verdict import ExitCode
from reports.verify import verify

COMMIT = "0123abc"  # of the machine in conftest.py


def look(folder, **options):
    return verify(folder, this_suite(COMMIT), read_levels(levels_file()), **options)


@pytest.fixture
def copied(bundle, tmp_path):
    return Bundle(shutil.copytree(bundle, tmp_path / "bundle"))


def test_what_a_run_wrote_is_accepted(bundle):
    found = look(bundle)
    assert [str(complaint) for complaint in found.complaints] == []
    assert found.result is not None
    grants = {level.level: level.grant for level in found.result.levels}
    assert grants["L0"] == "granted"
    assert grants["L1"] == "granted with waivers"
    assert grants["L2"] == "not granted"
    assert (found.result.verdict_before_waivers, found.result.verdict_after_waivers) == ("FAIL", "INCONCLUSIVE")
    assert look(bundle / "result.json").accepted


@pytest.mark.parametrize("tampering", EDITS, ids=lambda tampering: tampering.name)
def test_an_edited_record_is_refused_by_name(copied, tampering):
    tampering.edit(copied)
    copied.write()
    said = [str(complaint) for complaint in look(copied.folder).complaints]
    assert said
    assert tampering.refusal in "\n".join(said)


@pytest.mark.parametrize("tampering", FILE_EDITS, ids=lambda tampering: tampering.name)
def test_an_edited_file_is_refused_by_name(copied, tampering):
    tampering.edit(copied)
    said = [str(complaint) for complaint in look(copied.folder).complaints]
    assert said
    assert tampering.refusal in "\n".join(said)


@pytest.mark.parametrize("tampering", FORGERIES, ids=lambda tampering: tampering.name)
def test_computing_every_hash_again_does_not_help_against_the_evidence(copied, tampering):
    tampering.edit(copied)
    copied.forge()
    complaints = [str(complaint) for complaint in look(copied.folder).complaints]
    assert complaints
    assert tampering.refusal in "\n".join(complaints)
    assert not [said for said in complaints if "was edited" in said or "link" in said]  # the hashes were all right


def test_junit_contradicts_a_failure_that_became_a_pass_with_all_its_evidence(copied):
    copied.check(FAILED).update(status="passed", waiver=None)
    copied.check(FAILED)["evidence"][0].update(statistic=0.5, margin=0.25)
    copied.forge()
    said = [str(complaint) for complaint in look(copied.folder).complaints]
    assert f"{FAILED}: status: is passed, but junit.xml says that it failed" in said


def test_a_bundle_written_anew_as_a_whole_is_not_found_out(copied):
    """Hashes are no signature: this is what they cannot show."""
    copied.check(GOOD)["evidence"][0].update(statistic=0.125, margin=0.0625)
    copied.forge()
    assert look(copied.folder).accepted


def test_another_version_of_the_suite_is_said_and_refused_unless_allowed(bundle):
    other = Suite("feed", {**this_suite(COMMIT).files, "conformance/levels.toml": "0" * 64})
    levels = read_levels(levels_file())
    refused = verify(bundle, other, levels)
    assert {complaint.field for complaint in refused.complaints} == {
        "suite.commit",
        "suite.files.conformance/levels.toml",
    }
    assert "judged by version 0123abc; this is feed" in refused.complaints[0].text
    allowed = verify(bundle, other, levels, other_suite=True)
    assert allowed.accepted
    assert "judged by another version: levels were not computed again" in allowed.notes


def test_another_version_of_the_suite_is_still_held_to_its_evidence(copied):
    copied.check(FAILED).update(status="passed")
    copied.forge()
    other = Suite("feed", {})
    assert not verify(copied.folder, other, read_levels(levels_file()), other_suite=True).accepted


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory):
    """Results of a few checks of the suite itself."""
    folder = conformance_folder()
    out = tmp_path_factory.mktemp("real") / "out"
    target = [str(folder / "ops" / "test_head_gate.py")]
    request = Request(
        engine="reference",
        tier="quick",
        device="cpu",
        checkpoint=folder.parent / "reference" / "nano",
        out=out,
        pytest_arguments=tuple(pytest_arguments(target, "reference", "quick", None)),
        command=("s35", "run"),
    )
    text = {"text": "", "tokens_per_s": None, "acceptance_per_position": []}
    run_suite(request, lambda device: dataclasses.asdict(identify(device)), lambda **_: text)
    return out


def test_what_the_real_judge_wrote_is_accepted(real_folder, capsys):
    assert s35.main(["verify", str(real_folder)]) == ExitCode.PASS, capsys.readouterr().out
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith("accepted: PASS: 3 checks passed; no level granted; head ")


def test_a_refusal_names_each_thing_that_does_not_hold(real_folder, tmp_path, capsys):
    folder = shutil.copytree(real_folder, tmp_path / "copy")
    Bundle(folder).edit_file("result.json", '"status": "passed"', '"status": "failed"')
    assert s35.main(["verify", str(folder), "--json"]) == ExitCode.FAIL
    record = json.loads(capsys.readouterr().out)
    assert record["accepted"] is False
    statuses = [complaint for complaint in record["complaints"] if complaint["field"] == "status"]
    assert statuses[0]["where"].startswith("conformance/ops/test_head_gate.py::")
    assert statuses[0]["text"] == "is failed; evidence gives passed"
    assert s35.main(["verify", str(folder)]) == ExitCode.FAIL
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"refused: {len(record['complaints'])} things do not hold in ")


def test_what_is_no_results_folder_is_a_mistake_of_the_caller(tmp_path, capsys):
    assert s35.main(["verify", str(tmp_path)]) == ExitCode.USAGE
    assert "has no result.json; want the results folder of a run" in capsys.readouterr().err

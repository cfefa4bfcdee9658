"""``s35 fit`` as its users meet it."""

import json
import re
import subprocess
import sys

import pytest

from reports.verdict import ExitCode


def fit(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "s35", "fit", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def walk(value):
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


def test_every_part_that_holds_a_time_says_that_it_is_a_projection(tmp_path):
    code, said, _ = fit("--hardware", "h200", "--devices", "8", "--batch", "1,32", "--json", cwd=tmp_path)
    assert code == ExitCode.PASS
    record = json.loads(said)
    timed = [part for part in walk(record) if isinstance(part, dict) and {"ms", "step_ms", "fits"} & set(part)]
    assert len(timed) > 15
    assert {part["kind"] for part in timed} == {record["kind"]} == {"projection"}
    assert all("https://" in source for source in record["rates"]["sources"].values() if "[published" in source)


def test_the_text_names_the_projection_in_each_heading_and_where_rates_are_from(tmp_path):
    words = ("--hardware", "dgx_spark", "--context", "262144", "--format", "q4", "--without-mtp")
    code, said, _ = fit(*words, cwd=tmp_path)
    assert code == ExitCode.FAIL  # 256K in 16 bit does not fit beside 111 GB of weights
    assert said.startswith("PROJECTION for nvidia_dgx_spark")
    assert "rate memory_gb_per_s: 273 [published: https://www.nvidia.com/" in said
    assert "short by" in said
    assert "the rate of matrix products is not known" in said
    assert "MTP on one sequence" not in said
    assert fit(*words, "--kv-bits", "8", cwd=tmp_path)[0] == ExitCode.PASS
    assert "published by others" in said
    assert re.search(r"tg128 @ d262144 +8.39 +tokens/s", said)
    for heading in ("memory of each device", "decode", "prefill"):
        line = next(line for line in said.splitlines() if line.startswith(heading))
        assert "(projection)" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hardware", "a100"], "s35 fit: hardware: 'a100' has no profile; known: "),
        (["--hardware", "cpu"], "s35 fit: generic_cpu: has no published memory_gb_per_s; known: none"),
        (["--hardware", "h200", "--format", "int3"], "s35 fit: format: 'int3' is not known"),
        (["--hardware", "h200", "--context", "300000"], "s35 fit: context: is 300000; want 0 to 262144"),
        (["--hardware", "h200", "--batch", "0"], "s35 fit: fit: 1 devices, batch 0; want 1 or more"),
        (["--hardware", "h20", "--rates", "measured"], "s35 fit: nvidia_h20: has no measured memory_gb_per_s"),
    ],
)
def test_what_cannot_be_projected_is_refused_in_one_line(tmp_path, words, message):
    code, said, error = fit(*words, cwd=tmp_path)
    assert (code, said) == (ExitCode.USAGE, "")
    assert error.startswith(message)
    assert len(error.splitlines()) == 1

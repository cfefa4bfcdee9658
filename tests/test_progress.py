"""Bars on terminals, and nothing in pipes and in CI."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORK = """
import sys
from s35_progress import progress, tracked

with progress("runs", 2) as bar:
    for number in (1, 2):
        bar.begin(f"step [{number}]")
        bar.say(f"run {number} [ok]")
        bar.advance()
print(list(tracked(("a", "b"), "layers")), "rich" in sys.modules)
"""


def on_a_terminal(*words, **changes):
    """Run a command whose outputs are a terminal; what it wrote there, colours taken away."""
    ours, theirs = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "CI"}
    env |= {"TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=ROOT, env={**env, **changes}, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    process.wait()
    return process.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


def test_a_terminal_shows_how_far_it_is_and_what_is_said_stands_above():
    code, said = on_a_terminal(sys.executable, "-c", WORK)
    assert code == 0, said
    assert re.search(r"runs .* 1/2 0:00:0\d left .*step \[2\]", said)
    assert "run 1 [ok]" in said
    assert "layers" in said
    assert "['a', 'b'] True" in said


def test_pipes_and_ci_get_lines_and_no_bar():
    done = subprocess.run([sys.executable, "-c", WORK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stderr, done.stdout) == ("run 1 [ok]\nrun 2 [ok]\n", "['a', 'b'] False\n")
    for changes in ({"CI": "true"}, {"TERM": "dumb"}):
        _, said = on_a_terminal(sys.executable, "-c", WORK, **changes)
        assert said.splitlines() == ["run 1 [ok]", "run 2 [ok]", "['a', 'b'] False"]


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_session_of_measuring_has_a_bar_instead_of_letters(ci):
    words = ("-m", "pytest", "perf", "-q", "--engine=reference.engine:engine", "--op=rms_norm", "--benchmark-disable")
    _, said = on_a_terminal(sys.executable, *words, "-p", "no:cacheprovider", **({"CI": ci} if ci else {}))
    assert bool(re.search(r"measured .* 3/4 ", said)) == (not ci)
    assert bool(re.search(r"^\.\.\.\.", said)) == bool(ci)
    assert "4 passed" in said

import pytest

from reports.redaction import redact


@pytest.mark.parametrize(
    ("command", "recorded"),
    [
        (["s35", "run", "--api-key", "abc"], ["s35", "run", "--api-key", "***"]),
        (["s35", "run", "--api-key=abc", "--quick"], ["s35", "run", "--api-key=***", "--quick"]),
        (["--hf-token", "--odd", "--quick"], ["--hf-token", "***", "--quick"]),
        (["-H", "Authorization: Bearer a.b-c"], ["-H", "Authorization: ***"]),
        (["--base-url", "https://me:pw@host/v1"], ["--base-url", "https://***@host/v1"]),
        (["--note=sk-abc123"], ["--note=***"]),
    ],
)
def test_secrets_are_not_recorded(command, recorded):
    assert list(redact(command)) == recorded


def test_everything_else_is_recorded_as_it_is():
    command = ["s35", "run", "--max-new-tokens", "8", "--checkpoint", "models/a@b", "--engine=mine:engine"]
    assert list(redact(command)) == command

"""Take secrets out of a command line before it is recorded."""

import re
from collections.abc import Sequence

HIDDEN = "***"
_SECRET_OPTION = re.compile(r"--?[\w-]*(key|token|secret|password|authorization)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(sk-|hf_|ghp_|Bearer\s+|Basic\s+)[\w.\-]+", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def redact(command: Sequence[str]) -> tuple[str, ...]:
    """Replace the values of secret options, known token shapes and credentials in URLs by ``***``.

    Args:
        command: the words of a command line; ``--api-key VALUE`` and ``--api-key=VALUE`` are both understood.
    """
    redacted = []
    hide_next = False
    for word in command:
        option, equals, _ = word.partition("=")
        secret_option = bool(_SECRET_OPTION.match(option))
        if hide_next:
            redacted.append(HIDDEN)
        elif secret_option and equals:
            redacted.append(f"{option}={HIDDEN}")
        else:
            redacted.append(_URL_CREDENTIALS.sub(HIDDEN, _SECRET_VALUE.sub(HIDDEN, word)))
        hide_next = secret_option and not equals and not hide_next
    return tuple(redacted)

"""Find the library that a subject adapts, when it is first needed."""

import importlib
from importlib import metadata
from typing import Any


class SubjectError(ImportError):
    """A library is missing or too old; the message says how to install it."""


def find(module: str, distribution: str, install: str = "'step35-suite[peers]'") -> Any:
    """Import a module of a library that this package does not require.

    Args:
        module: its full name.
        distribution: what pip calls the library.
        install: what pip is asked for.

    Raises:
        SubjectError: it is not installed, or this version of it lacks the module.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise
        if error.name == top:
            raise SubjectError(f"subject: {distribution} is not installed; want pip install {install}") from None
        raise SubjectError(
            f"subject: {distribution} is {metadata.version(distribution)}, without {error.name}; "
            f"want pip install --upgrade {install}"
        ) from None

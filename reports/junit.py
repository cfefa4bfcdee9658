"""What pytest's own JUnit file says of each check: a second witness beside the records."""

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree


def ended_badly(path: Path, ids: Iterable[str]) -> dict[str, bool]:
    """Read which test cases failed or broke.

    Args:
        ids: of checks, for the way back from JUnit's names to ids.

    Returns:
        by check id whether it failed; a test case that is none of the checks is there under JUnit's own name.

    Raises:
        ValueError: not XML.
    """
    id_of = {_case_name(id): id for id in ids}
    try:
        cases = ElementTree.parse(path).getroot().iter("testcase")
    except ElementTree.ParseError as error:
        raise ValueError(f"is not XML ({error}); want the file as pytest wrote it") from error
    bad: dict[str, bool] = {}
    for case in cases:
        name = f"{case.get('classname')}.{case.get('name')}"
        id = id_of.get(name, name)
        wrong = case.find("failure") is not None or case.find("error") is not None
        bad[id] = bad.get(id, False) or wrong
    return bad


def _case_name(id: str) -> str:
    """JUnit's name of a check: ``a/b.py::test_c[d]`` is ``test_c[d]`` of class ``a.b``."""
    file, _, test = id.partition("::")
    name, bracket, parameters = test.partition("[")
    return ".".join([file.removesuffix(".py").replace("/", "."), name.replace("::", ".")]) + bracket + parameters

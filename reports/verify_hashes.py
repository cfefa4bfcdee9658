"""What hashes show of a results folder: which field, record or file was edited, dropped, added or moved."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .bundle import CHECKS, JUNIT, LOG, REPORT, RESULT, Bundle, Complaint, machine_value
from .chain import links_of
from .digest import file_sha256
from .markdown import render
from .schema import Result


def _chain(bundle: Bundle) -> Iterator[Complaint]:
    """Edited, dropped, added and reordered fields and records, by name."""
    recorded = bundle.result.chain
    if bundle.result.head != (recorded[-1].sha256 if recorded else ""):
        yield Complaint(RESULT, "head", "is not the last link of the chain")
    names = [link.of for link in links_of(bundle.raw)]
    if names != [link.of for link in recorded]:
        unlinked, lost = Counter(names), Counter(link.of for link in recorded)
        for name in unlinked - lost:
            yield Complaint(_place(name), _named(name), "has no link in the chain")
        for name in lost - unlinked:
            yield Complaint(_place(name), _named(name), "has a link in the chain and is not there")
        if unlinked == lost:
            yield Complaint(RESULT, "chain", "stands in another order than what it covers")
        return
    for index, link in enumerate(links_of(bundle.raw, [link.sha256 for link in recorded])):
        if link != recorded[index]:
            yield Complaint(_place(link.of), _named(link.of), "was edited: its hash is another one")


def _place(name: str) -> str:
    return name if "::" in name else RESULT


def _named(name: str) -> str:
    return "record" if "::" in name else name


def _files(bundle: Bundle) -> Iterator[Complaint]:
    """The other files are those of the run, and the page is what the record says."""
    result = bundle.result
    wanted = {REPORT, CHECKS, JUNIT, LOG} if result.engine_identity else {REPORT}
    for name in sorted(wanted - set(result.files)):
        yield Complaint(RESULT, f"files.{name}", "is missing; want its sha256")
    for name, digest in result.files.items():
        path = bundle.folder / name
        if Path(name).name != name or not path.is_file():
            yield Complaint(name, "content", f"is not there; {RESULT} has its sha256")
        elif file_sha256(path) != digest:
            yield Complaint(name, "sha256", "was edited: its hash is another one")
    page = bundle.folder / REPORT
    if bundle.same_suite and page.is_file() and page.read_bytes() != _rendered(result):
        yield Complaint(REPORT, "content", f"is not what {RESULT} gives; want the page as it was written")


def _rendered(result: Result) -> bytes:
    try:
        return render(result).encode()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):  # a machine edited beyond its schema
        return b""


def _suite(bundle: Bundle) -> Iterator[Complaint]:
    recorded = machine_value(bundle.result, "suite_commit")
    if recorded != bundle.result.suite.commit:
        yield Complaint(RESULT, "suite.commit", f"is {bundle.result.suite.commit}; machine.suite_commit is {recorded}")


LOOKS = (_chain, _files, _suite)

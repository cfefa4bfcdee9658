"""The hash chain over a result: whoever edits a field or a record in it breaks the link of that name.

Each link is sha256 over the link before it, the name of what it covers and its JSON, with sorted names and without
spaces. First come the fields of the result, then its records, in the order of the file. Hashes detect edits of a file;
they are no signature: whoever can edit the file can compute them again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .schema import Link, Result, dumps

RECORDS = "checks"
OWN = ("chain", "head")


def seal(result: Result) -> Result:
    """Give a result its chain and head."""
    links = tuple(links_of(json.loads(dumps(result))))
    return dataclasses.replace(result, chain=links, head=links[-1].sha256)


def links_of(raw: Mapping[str, Any], recorded: Sequence[str] | None = None) -> Iterator[Link]:
    """Compute the links of a result as parsed from its JSON.

    Args:
        recorded: the hashes to chain to, one a link: then a link is wrong only where its own content was edited.
            None: chain to the computed ones.
    """
    fields = [(name, value) for name, value in raw.items() if name not in (RECORDS, *OWN)]
    records = [(str(record["id"]), record) for record in raw[RECORDS]]
    before = ""
    for index, (of, value) in enumerate(fields + records):
        content = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(f"{before}\n{of}\n{content}".encode()).hexdigest()
        before = digest if recorded is None else recorded[index]
        yield Link(of, digest)

"""The part of JSON Schema 2020-12 that the suite's own schemas use; a keyword that it does not know is an error."""

import re
from datetime import date, datetime

TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "object": dict,
    "array": list,
}
ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description"}
FORMATS = {"date": date.fromisoformat, "date-time": datetime.fromisoformat}


def complaints(value, schema, root, where="$"):
    """Everything that a schema has against a value."""
    found = []
    for word, wanted in schema.items():
        if word not in ANNOTATIONS:
            found += KEYWORDS[word](value, wanted, schema, root, where)
    return found


def _type(value, wanted, schema, root, where):
    kinds = [wanted] if isinstance(wanted, str) else wanted
    fits = any(isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool)) for kind in kinds)
    return [] if fits else [f"{where}: {value!r} is no {kinds}"]


def _says(fits):
    """A keyword that holds or does not."""

    def keyword(value, wanted, schema, root, where):
        return [] if fits(value, wanted) else [f"{where}: {value!r} against {wanted!r}"]

    return keyword


def _ref(value, wanted, schema, root, where):
    return complaints(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, where)


def _properties(value, wanted, schema, root, where):
    if not isinstance(value, dict):
        return []
    inner = [(name, part) for name, part in wanted.items() if name in value]
    return [said for name, part in inner for said in complaints(value[name], part, root, f"{where}.{name}")]


def _required(value, wanted, schema, root, where):
    return [f"{where}: {name} is missing" for name in wanted if isinstance(value, dict) and name not in value]


def _items(value, wanted, schema, root, where):
    items = value if isinstance(value, list) else []
    return [said for at, item in enumerate(items) for said in complaints(item, wanted, root, f"{where}[{at}]")]


def _one_of(value, wanted, schema, root, where):
    tried = [complaints(value, option, root, where) for option in wanted]
    return [] if tried.count([]) == 1 else [f"{where}: fits {tried.count([])} of {len(wanted)}", *min(tried, key=len)]


def _if(value, wanted, schema, root, where):
    branch = schema.get("then" if not complaints(value, wanted, root) else "else", {})
    return complaints(value, branch, root, where)


KEYWORDS = {
    "type": _type,
    "$ref": _ref,
    "properties": _properties,
    "required": _required,
    "items": _items,
    "oneOf": _one_of,
    "allOf": lambda value, wanted, schema, root, where: [
        said for part in wanted for said in complaints(value, part, root, where)
    ],
    "not": lambda value, wanted, schema, root, where: (
        [] if complaints(value, wanted, root) else [f"{where}: fits what it must not: {wanted}"]
    ),
    "if": _if,
    "then": lambda *_: [],
    "else": lambda *_: [],
    "const": _says(lambda value, wanted: value == wanted),
    "enum": _says(lambda value, wanted: value in wanted),
    "pattern": _says(lambda value, wanted: not isinstance(value, str) or bool(re.search(wanted, value))),
    "format": _says(lambda value, wanted: FORMATS[wanted](value) is not None),
    "minLength": _says(lambda value, wanted: not isinstance(value, str) or len(value) >= wanted),
    "maxItems": _says(lambda value, wanted: not isinstance(value, list) or len(value) <= wanted),
    "minimum": _says(lambda value, wanted: not isinstance(value, int | float) or value >= wanted),
    "exclusiveMinimum": _says(lambda value, wanted: not isinstance(value, int | float) or value > wanted),
}

"""Training text of the miniature: CPython's standard library, its reference documentation, and dialogues about it.

Three kinds of documents, all made from a standard library folder alone:
- source files, less test suites, encoding tables and bundled wheels;
- the language reference's topics, which pydoc carries as text;
- dialogues in the chat format: a question about a function is answered with the first paragraph of its docstring,
  after a line of reasoning, or by a tool call where a tool is offered.

Whole files are held out, chosen by the hash of their path; dialogues follow their file.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..chat import render

EXCLUDED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "_bundled",
    "encodings",
    "turtledemo",
    "__pycache__",
}
HELD_OUT_SHARE = 25  # one file in so many
LOOKUP_TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Return the documentation of a Python object.",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "full": {"type": "boolean"}},
            "required": ["name"],
        },
    },
}


@dataclass(frozen=True)
class Document:
    """A text with its name; ``is_chat`` texts begin with the chat frame, the others with the start token."""

    name: str
    text: str
    is_chat: bool
    held_out: bool


def documents(stdlib: Path, chat_template: str) -> Iterator[Document]:
    """All documents of a standard library folder, in the order of their names."""
    for path in sorted(stdlib.rglob("*.py")):
        name = path.relative_to(stdlib).as_posix()
        if EXCLUDED_FOLDERS & set(path.relative_to(stdlib).parts) or name == "pydoc_data/topics.py":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if len(text) < 200:
            continue
        held_out = _is_held_out(name)
        yield Document(name, text, False, held_out)
        for number, dialogue in enumerate(_dialogues(name, text, chat_template)):
            yield Document(f"{name}#{number}", dialogue, True, held_out)
    for topic, text in sorted(_topics(stdlib).items()):
        yield Document(f"topics/{topic}", text, False, _is_held_out(f"topics/{topic}"))


def digest(corpus: list[Document]) -> str:
    """SHA-256 over names and texts."""
    total = hashlib.sha256()
    for document in corpus:
        total.update(f"{document.name}\0{document.text}\0".encode())
    return total.hexdigest()


def _is_held_out(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def _topics(stdlib: Path) -> dict[str, str]:
    """pydoc's topics, run from their file: it holds one dictionary of texts."""
    spec = importlib.util.spec_from_file_location("stdlib_topics", stdlib / "pydoc_data" / "topics.py")
    if spec is None or spec.loader is None:
        return {}
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.topics)


def _dialogues(name: str, source: str, chat_template: str) -> Iterator[str]:
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.parse(source).body:
        functions = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{module}.{node.name}" if isinstance(node, ast.ClassDef) else module
        for function in functions:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            paragraph = " ".join((ast.get_docstring(function) or "").split("\n\n")[0].split())
            if len(paragraph) > 20:
                yield _dialogue(f"{prefix}.{function.name}", paragraph, chat_template)


def _dialogue(name: str, answer: str, chat_template: str) -> str:
    question = {"role": "user", "content": f"What does {name} do?"}
    if len(name) % 8:  # the others call the tool
        told = {"role": "assistant", "reasoning_content": f"I recall {name}.", "content": answer}
        return render(chat_template, [question, told], add_generation_prompt=False)
    call = {"function": {"name": "lookup", "arguments": {"name": name, "full": len(answer) > 80}}}
    asked = {"role": "assistant", "reasoning_content": "I look it up.", "content": "", "tool_calls": [call]}
    return render(chat_template, [question, asked], tools=[LOOKUP_TOOL], add_generation_prompt=False)

"""Copy the docstrings of the async APIs into the blocking ones: run `python -m tests.api.blocking_docstrings`.

Editors and documentation tools read the blocking APIs without running them, so the docstrings have to be in the files.
`test_sync_api.py` fails if they differ from those of the async classes.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from textwrap import indent

from async_bento.api import async_api, async_models, item_api, sync_api, sync_item_api, sync_models

BLOCKING_APIS = [Path(module.__file__) for module in (sync_api, sync_item_api, sync_models)]

ORIGINALS: dict[str, type] = {
    "BentoAPI": async_api.AsyncBentoAPI,
    "ModelAPI": async_models.AsyncModelAPI,
    "BlockingItemAPI": item_api.ItemAPI,
}
"""The async class of each blocking class."""

WORDS = {
    "AsyncBentoAPI": "BentoAPI",
    "AsyncModelAPI": "ModelAPI",
    "async with ": "with ",
    "async for ": "for ",
    "await ": "",
    "aclose": "close",
    ", on the same event loop": "",
}
"""The replacements for words of the async docstrings."""

CLIENT = re.compile(r"^    client: .*(?:\n {8}.*)*", re.MULTILINE)
"""The argument that differs: BentoAPI closes a client that it was given, AsyncBentoAPI does not."""


def blocking_words(text: str) -> str:
    for word, blocking in WORDS.items():
        text = text.replace(word, blocking)
    return text


def method_docstring(name: str, method: str) -> str | None:
    """The docstring for a method of a blocking class; None if the async class has no such method."""
    original = getattr(ORIGINALS[name], method, None)
    text = original and inspect.getdoc(original)  # None would have the docstring of NoneType since Python 3.13
    return text and blocking_words(text)


def class_docstring(text: str) -> str:
    """The docstring for BentoAPI: its own summary and `client`, and the other sections of AsyncBentoAPI."""
    original = blocking_words(inspect.getdoc(async_api.AsyncBentoAPI) or "")
    client = CLIENT.search(text)
    arguments = original[original.index("\nArgs:\n") :]
    if client is not None:
        arguments = CLIENT.sub(client[0].replace("\\", r"\\"), arguments)
    return text.partition("\nArgs:\n")[0] + arguments


def with_blocking_docstrings(source: str) -> str:
    """The source of blocking APIs with the docstrings that the classes and methods should have."""
    lines = source.splitlines(keepends=True)
    for cls in reversed([node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]):
        if cls.name not in ORIGINALS:
            continue
        for node in reversed(cls.body):
            is_overload = isinstance(node, ast.FunctionDef) and bool(node.decorator_list)
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not is_overload:
                set_docstring(lines, node, method_docstring(cls.name, node.name))
        if cls.name == "BentoAPI":
            set_docstring(lines, cls, class_docstring(ast.get_docstring(cls) or ""))
    return "".join(lines)


def set_docstring(lines: list[str], node: ast.FunctionDef | ast.ClassDef, text: str | None) -> None:
    if text is None:
        return
    first = node.body[0]
    end = first.end_lineno if ast.get_docstring(node) is not None else first.lineno - 1
    margin = " " * first.col_offset
    closing = f'\n{margin}"""\n' if "\n" in text else '"""\n'
    lines[first.lineno - 1 : end] = [indent(f'"""{text}', margin), closing]


if __name__ == "__main__":
    for path in BLOCKING_APIS:
        path.write_text(with_blocking_docstrings(path.read_text(encoding="utf-8")), encoding="utf-8")

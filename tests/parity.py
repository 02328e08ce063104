"""The tables of docs/parity.md and docs/acceptance.md, whose last cells name tests."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "docs" / "parity.md"
ACCEPTANCE = ROOT / "docs" / "acceptance.md"
VERDICTS = ("Same", "Better", "Different")

_RULE = re.compile(r"\|[-| ]+\|")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        section: The heading it stands under.
        line: Its line in the document, from 1.
        cells: Its cells: what it is about, in docs/parity.md BentoML and here, and the tests that show it.
    """

    section: str
    line: int
    cells: tuple[str, ...]

    @property
    def tests(self) -> list[tuple[str, str]]:
        """The tests that it names, each as a file and a function."""
        return _TEST.findall(self.cells[-1])


def rows_of(text: str) -> list[Row]:
    """Every row of every table, without the heads.

    Args:
        text: The document.
    """
    lines = text.splitlines()
    section, rows = "", []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            section = line.lstrip("# ")
        is_head = number < len(lines) and _RULE.fullmatch(lines[number])
        if line.startswith("|") and not is_head and not _RULE.fullmatch(line):
            rows.append(Row(section, number, tuple(cell.strip() for cell in line.strip()[1:-1].split("|"))))
    return rows


def problems_of(text: str, *, compares: bool) -> list[str]:
    """What is wrong with the tables.

    Args:
        text: The document.
        compares: Whether its rows say what BentoML does, and whether that is the same here.
    """
    columns = 4 if compares else 2
    problems = []
    for row in rows_of(text):
        where = f"line {row.line} ({row.cells[0]})"
        if len(row.cells) != columns:
            problems.append(f"{where} has {len(row.cells)} cells")
            continue
        if compares and not row.cells[2].startswith(VERDICTS):
            problems.append(f"{where} does not say whether it is the same")
        if not row.tests:
            problems.append(f"{where} names no test")
        if rest := _TEST.sub("", row.cells[-1]).strip(", "):
            problems.append(f"{where} names something that is no test: {rest}")
        problems += [
            f"{where} names a test that is not there: {file}::{name}"
            for file, name in row.tests
            if name not in tests_in(file)
        ]
    return problems


@cache
def tests_in(file: str) -> frozenset[str]:
    """The test functions of a file.

    Args:
        file: Its path below the root of the repository.
    """
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, functions) and node.name.startswith("test_"))

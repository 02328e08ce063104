"""Parse the tables of docs/parity.md, whose last cells name tests."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARITY = ROOT / "docs" / "parity.md"
COLUMNS = 4
VERDICTS = ("Same", "Better", "Different")

_RULE = re.compile(r"\|[-| ]+\|")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@dataclass(frozen=True)
class Row:
    """A row of a table: its heading, its line from 1, and its cells (subject, BentoML, here, tests)."""

    section: str
    line: int
    cells: tuple[str, ...]

    @property
    def tests(self) -> list[tuple[str, str]]:
        """The file and the function of each test in the last cell."""
        return _TEST.findall(self.cells[-1])


def rows_of(text: str) -> list[Row]:
    """Return the rows of all tables in a document, without the header rows."""
    lines = text.splitlines()
    section, rows = "", []
    for number, line in enumerate(lines, start=1):
        if line.startswith("#"):
            section = line.lstrip("# ")
        is_head = number < len(lines) and _RULE.fullmatch(lines[number])
        if line.startswith("|") and not is_head and not _RULE.fullmatch(line):
            rows.append(Row(section, number, tuple(cell.strip() for cell in line.strip()[1:-1].split("|"))))
    return rows


def problems_of(text: str) -> list[str]:
    """Return what is wrong with the tables of a document."""
    problems = []
    for row in rows_of(text):
        where = f"line {row.line} ({row.cells[0]})"
        if len(row.cells) != COLUMNS:
            problems.append(f"{where} has {len(row.cells)} cells")
            continue
        if not row.cells[2].startswith(VERDICTS):
            problems.append(f"{where} has no verdict (Same, Better or Different)")
        if not row.tests:
            problems.append(f"{where} names no test")
        if rest := _TEST.sub("", row.cells[-1]).strip(", "):
            problems.append(f"{where} names something other than a test: {rest}")
        problems += [
            f"{where} names a missing test: {file}::{name}"
            for file, name in row.tests
            if name not in functions_in(file)
        ]
    return problems


@cache
def functions_in(file: str) -> frozenset[str]:
    """Return the test functions of a file, given by its path below the repository's root."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, functions) and node.name.startswith("test_"))

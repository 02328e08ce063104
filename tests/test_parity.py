"""Check that docs/parity.md names tests that exist, and CONTRIBUTING.md functions that exist."""

from __future__ import annotations

import ast
import re

import pytest

from tests.parity import PARITY, ROOT, functions_in, problems_of, rows_of

SECTIONS = {
    "The description of BentoAPI",
    "RestApiClient",
    "BentoAPI",
    "BentoAPI.push",
    "BentoAPI.pull",
    "BentoAPI.list",
    "BentoAPI.get",
    "ModelAPI",
    "ModelAPI.push",
    "ModelAPI.pull",
    "ModelAPI.list",
    "ModelAPI.get",
    "Models on the Hugging Face Hub",
    "Deliberate differences",
    "Out of scope",
}

SHOWN = "`tests/test_parity.py::test_row_tests_exist`"

TABLE = f"""
## BentoAPI

| What | BentoML 1.4.39 | Here | Shown by |
| --- | --- | --- | --- |
| `client` | The REST client. | Same. | {SHOWN} |
"""


def test_row_tests_exist() -> None:
    text = PARITY.read_text(encoding="utf-8")

    assert rows_of(text)
    assert problems_of(text) == []
    assert all(name in functions_in(file) for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))


def test_every_call_has_its_table() -> None:
    assert {row.section for row in rows_of(PARITY.read_text(encoding="utf-8"))} == SECTIONS


@pytest.mark.parametrize(
    ("shown_by", "problem"),
    [
        ("", "names no test"),
        ("by hand", "names something other than a test: by hand"),
        (f"{SHOWN}, tests/cli/test_cli.py", "names something other than a test: tests/cli/test_cli.py"),
        (SHOWN.replace("test_parity", "test_nothing"), "names a missing test: tests/test_nothing.py::"),
        (SHOWN.replace("exist", "existed"), "names a missing test: tests/test_parity.py::"),
        ("`tests/parity.py::problems_of`", "names a missing test: tests/parity.py::"),
        (f"{SHOWN} | {SHOWN}", "has 5 cells"),
    ],
)
def test_missing_test_is_reported(shown_by: str, problem: str) -> None:
    assert problems_of(TABLE) == []

    problems = problems_of(TABLE.replace(SHOWN, shown_by))

    assert any(problem in found for found in problems), problems
    assert all(found.startswith("line 6 (`client`)") for found in problems)


def test_missing_verdict_is_reported() -> None:
    (problem,) = problems_of(TABLE.replace("Same.", "Well."))

    assert "has no verdict" in problem


def test_where_is_table_names_exist() -> None:
    rows = [
        row for row in rows_of((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) if row.section == "Where is …?"
    ]
    assert len(rows) == 23

    for row in rows:
        code = re.findall(r"`([^`]+)`", "".join(row.cells[1:]))
        files = [name for name in code if name.endswith(".py")]
        trees = [ast.parse((ROOT / name).read_text(encoding="utf-8")) for name in files]
        definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        defined = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, definitions)}
        named = {part for name in code if name not in files for part in name.split(".")}
        assert named
        assert named <= defined, f"line {row.line} ({row.cells[0]}): {named - defined}"

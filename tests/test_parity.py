"""docs/parity.md and docs/acceptance.md name, for all that they say is done, the tests that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.parity import ACCEPTANCE, PARITY, problems_of, rows_of

if TYPE_CHECKING:
    from pathlib import Path

SECTIONS = {
    "What the description of BentoAPI promises",
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
    "What is different on purpose",
    "What BentoML has and this has not",
}

SHOWN = "`tests/test_parity.py::test_no_row_is_without_a_test_that_exists`"

TABLE = f"""
## BentoAPI

| What | BentoML 1.4.39 | Here | Shown by |
| --- | --- | --- | --- |
| `client` | Who speaks. | Same. | {SHOWN} |
"""


BEHAVIOURS = f"""
## Push

| Behaviour | Shown by |
| --- | --- |
| A push pushes. | {SHOWN} |
"""


@pytest.mark.parametrize(("document", "compares"), [(PARITY, True), (ACCEPTANCE, False)], ids=["parity", "acceptance"])
def test_no_row_is_without_a_test_that_exists(document: Path, compares: bool) -> None:
    text = document.read_text(encoding="utf-8")

    assert rows_of(text)
    assert problems_of(text, compares=compares) == []


def test_every_call_has_its_table() -> None:
    assert {row.section for row in rows_of(PARITY.read_text(encoding="utf-8"))} == SECTIONS


@pytest.mark.parametrize(
    ("shown_by", "problem"),
    [
        ("", "names no test"),
        ("by hand", "names something that is no test: by hand"),
        (f"{SHOWN}, tests/cli/test_cli.py", "names something that is no test: tests/cli/test_cli.py"),
        (SHOWN.replace("test_parity", "test_nothing"), "names a test that is not there: tests/test_nothing.py::"),
        (SHOWN.replace("exists", "existed"), "names a test that is not there: tests/test_parity.py::"),
        ("`tests/parity.py::problems_of`", "names a test that is not there: tests/parity.py::"),
        (f"{SHOWN} | {SHOWN}", "has 5 cells"),
    ],
)
def test_a_row_without_a_test_that_exists_is_found(shown_by: str, problem: str) -> None:
    assert problems_of(TABLE, compares=True) == []

    problems = problems_of(TABLE.replace(SHOWN, shown_by), compares=True)

    assert any(problem in found for found in problems), problems
    assert all(found.startswith("line 6 (`client`)") for found in problems)


def test_a_row_that_does_not_say_whether_it_is_the_same_is_found() -> None:
    (problem,) = problems_of(TABLE.replace("Same.", "Well."), compares=True)

    assert "does not say whether it is the same" in problem


@pytest.mark.parametrize(
    ("shown_by", "problem"),
    [
        ("", "names no test"),
        (SHOWN.replace("exists", "existed"), "names a test that is not there: tests/test_parity.py::"),
        (f"Same. | {SHOWN}", "has 3 cells"),
    ],
)
def test_a_behaviour_without_a_test_that_exists_is_found(shown_by: str, problem: str) -> None:
    assert problems_of(BEHAVIOURS, compares=False) == []

    (found,) = problems_of(BEHAVIOURS.replace(SHOWN, shown_by), compares=False)

    assert found.startswith(f"line 6 (A push pushes.) {problem}")

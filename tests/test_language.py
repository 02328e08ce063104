"""Check that no text of the project uses a word that its style rules exclude (CONTRIBUTING.md, "Style")."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXTS = (
    "async_bento/**/*.py",
    "deploy/*",
    "docs/**/*.md",
    "examples/*",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
)
WORDS = (
    "afresh",
    "anew",
    "be had",
    "begun",
    "(?:go|goes|gone|went) on with",
    "heed(?:s|ed|ing)?",
    "hitherto",
    "mend(?:s|ed|ing)?",
    "said",
    "tells?",
    "thereby",
    "told",
    "wherein",
    "whoever",
)
EXCLUDED = re.compile(rf"(?<![a-z])(?:{'|'.join(WORDS)})(?![a-z])", re.IGNORECASE)  # `_told` and "is_told", too

TEST_ID = re.compile(r"\btests/[\w/]+\.py::\w+")  # docs/parity.md names tests


def findings(text: str, name: str) -> list[str]:
    return [
        f"{name}:{number}:{found[0]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for found in EXCLUDED.finditer(TEST_ID.sub("", line))
    ]


def texts() -> list[Path]:
    return sorted(path for pattern in TEXTS for path in ROOT.glob(pattern) if path.is_file())


def test_texts_use_no_excluded_word() -> None:
    found = [
        finding
        for path in texts()
        for finding in findings(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]

    assert not found, "\n".join(found)


def test_texts_cover_docs_and_examples() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in texts()}

    assert {"async_bento/errors.py", "async_bento/transfer/tar/plan.py", "docs/guides/ci.md"} <= names
    assert {"README.md", "SECURITY.md", "examples/ci.sh", "examples/notebook.ipynb"} <= names


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("A transfer that was Begun anew.", ["Begun", "anew"]),
        ("is_told = _told or said_by", ["told", "told", "said"]),
        ("It goes on with what can be had.", ["goes on with", "be had"]),
        ('{"said": mended}', ["said", "mended"]),
        ("`tests/api/test_pull.py::test_a_word_is_said` is a test; it is told.", ["told"]),
        ("We recommend amendments; a shed, a renewal, unheeded.", []),
    ],
)
def test_excluded_words_are_found(line: str, words: list[str]) -> None:
    assert findings(f"\n{line}", "page.md") == [f"page.md:2:{word}" for word in words]

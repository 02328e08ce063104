"""The table of storages in the documentation."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "registry-on-s3.md"


def read_table() -> dict[str, dict[str, str]]:
    """Return the rows of the table by the name of the storage, and the cells by the heading of the column."""
    lines = PAGE.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| storage | tried |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    headings, _, *others = rows
    return {cells[0].strip("*"): dict(zip(headings[1:], cells[1:], strict=True)) for cells in others}

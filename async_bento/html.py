"""Tables in HTML, as notebooks show them.

All text is escaped, and no colour is set: what the notebook has for its own tables is readable in its light and in its
dark theme.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_ROWS = 20
"""Rows of a list that are shown; what was left out is counted."""

_CELL = ' style="text-align: left; vertical-align: top"'  # notebooks set numbers to the right, and tags with them


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, total: int, what: str) -> str:
    """Write a list.

    Args:
        head: The columns' names.
        rows: As many cells each; those beyond `MOST_ROWS` are not looked at.
        total: How many rows there are.
        what: What they are, in the plural, like `bentos`.

    Returns:
        A table, and a line that says how many there are.
    """
    if total == 0:
        return f"<p>no {escape(what)}</p>"
    shown = [row for _, row in zip(range(MOST_ROWS), rows, strict=False)]
    names = "".join(f"<th{_CELL}>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in shown)
    if total == 1:
        what = what.removesuffix("s")
    count = f"{total:,} {what}" if len(shown) >= total else f"the first {len(shown)} of {total:,} {what}"
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table><p>{escape(count)}</p>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Write what is known of one thing.

    Args:
        pairs: The name of each fact and the fact; those that are empty are left out.

    Returns:
        A table of two columns.
    """
    rows = "".join(f"<tr><th{_CELL}>{escape(name)}</th>{_cells([fact])}</tr>" for name, fact in pairs if fact)
    return f"<table><tbody>{rows}</tbody></table>"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td{_CELL}>{escape(cell)}</td>" for cell in row)

"""Sizes, durations and names as text, and tables in HTML for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from async_bento.config import KiB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MINUTE = 60
_HOUR = 60 * _MINUTE


def human_size(count: float) -> str:
    """Write a size as a person reads it.

    Args:
        count: Bytes.

    Returns:
        Like `1.5 MiB`.
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < KiB:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= KiB
    return f"{count:.1f} TiB"


def human_time(seconds: float) -> str:
    """Write a duration as a person reads it.

    Args:
        seconds: How long.

    Returns:
        Like `4 s`, `2 min 05 s` or `1 h 03 min`.
    """
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"


def shorten(name: str, room: int) -> str:
    """Cut the middle out of a name that is too long.

    Args:
        name: The name.
        room: Characters there are.

    Returns:
        The name, with an ellipsis where something is missing.
    """
    if len(name) <= room:
        return name
    tail = (room - 1) // 2
    return f"{name[: room - 1 - tail]}…{name[len(name) - tail :]}"


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

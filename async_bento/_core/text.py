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
    """Format a number of bytes, like `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < KiB:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= KiB
    return f"{count:.1f} TiB"


def human_time(seconds: float) -> str:
    """Format a duration, like `4 s`, `2 min 05 s` or `1 h 03 min`."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"


def shorten(name: str, width: int) -> str:
    """Replace the middle of a name longer than `width` characters by an ellipsis."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


MAX_ROWS = 20
"""Rows of a table; the line below the table counts the others."""

_CELL = ' style="text-align: left; vertical-align: top"'  # notebooks align cells to the right, which suits numbers only


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, total: int, noun: str, caption: str | None = None
) -> str:
    """Render rows as an HTML table and a line with their total; rows beyond `MAX_ROWS` are not read.

    `noun` names the rows in the plural, like `bentos`; `caption` replaces the total of a table with all its rows.
    """
    if total == 0:
        return f"<p>no {escape(noun)}</p>"
    shown = [row for _, row in zip(range(MAX_ROWS), rows, strict=False)]
    names = "".join(f"<th{_CELL}>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in shown)
    if total == 1:
        noun = noun.removesuffix("s")
    count = caption or f"{total:,} {noun}"
    if len(shown) < total:
        count = f"{caption}; " if caption else ""
        count += f"the first {len(shown)} of {total:,} {noun}"
    return f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table><p>{escape(count)}</p>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Render names and values as an HTML table of two columns, without the empty values."""
    rows = "".join(f"<tr><th{_CELL}>{escape(name)}</th>{_cells([fact])}</tr>" for name, fact in pairs if fact)
    return f"<table><tbody>{rows}</tbody></table>"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td{_CELL}>{escape(cell)}</td>" for cell in row)

"""A table, as the commands print it."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from async_bento.units import shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

GAP = "  "
NARROWEST = 12
"""Characters that a column keeps, so that what is left of a tag can be told from another."""


def say_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table to standard output, each column as wide as it has to be.

    On a terminal that is too narrow, the widest cells lose their middle; a file or a pipe gets all.

    Args:
        head: The columns' names.
        rows: As many cells each.
    """
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    if (room := terminal_width()) is not None:
        widths = fitted(widths, room)
    for row in (head, *rows):
        cells = (shorten(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(GAP.join(cells).rstrip())


def say_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print what is known of one thing to standard output; on a terminal, long facts are wrapped.

    Args:
        facts: The name of each fact and the fact; those that are empty are left out.
    """
    for name, fact in facts:
        if fact:
            click.echo(wrapped(f"{name + ':':13}", fact))


def wrapped(head: str, text: str) -> str:
    """Write a text beside its head, on a terminal in as many lines as it needs.

    Args:
        head: What stands before its first line.
        text: The text; neither a tag nor a label in it is cut at its hyphens, nor anywhere else.

    Returns:
        The lines.
    """
    room = terminal_width()
    if room is None:
        return head + text
    indent = " " * len(head)
    lines = textwrap.fill(
        text, room, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return head + lines[len(head) :]


def fitted(widths: Sequence[int], room: int) -> list[int]:
    """Take from the widest columns what a table is too wide.

    Args:
        widths: The columns' widths.
        room: Characters of a line.

    Returns:
        Widths that fit, unless each column is at `NARROWEST`.
    """
    found = [*widths]
    while sum(found) + len(GAP) * (len(found) - 1) > room and max(found) > NARROWEST:
        found[found.index(max(found))] -= 1
    return found


def terminal_width() -> int | None:
    """How wide standard output is.

    Returns:
        The characters of a line; None where it is no terminal.
    """
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None

"""Results, records and tables, printed for a person or as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from async_bento._core.text import human_size, shorten
from async_bento.errors import NotFoundError
from async_bento.progress.events import is_watched

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from async_bento.api.push import PushResult
    from async_bento.rest.schemas import ItemSchema


def say_pushed(result: PushResult, word: str) -> None:
    """Say what a push did, where no bar has said it.

    Args:
        result: What it did.
        word: `bento` or `model`.
    """
    if is_watched():
        return  # the bars have said it
    if result.skipped:
        click.echo(f"The registry has the {word} {result.tag} already; --force pushes it anew.")
    elif result.parts == 0:
        click.echo(f"Pushed the record of the {word} {result.tag}.")
    else:
        parts = "" if result.parts == 1 else f" in {result.parts} parts"
        click.echo(f"Pushed the {word} {result.tag}: {human_size(result.bytes_sent)}{parts}, {result.seconds:.1f} s.")


def pushed(result: PushResult) -> dict[str, object]:
    """Write what a push did for a machine.

    Args:
        result: What it did.

    Returns:
        Its fields, ready for JSON.
    """
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {**fields, "tag": str(result.tag), "models": [pushed(model) for model in result.models]}


def say_pulled(tag: str, path: Path | None, as_json: bool) -> None:
    """Say where a pull has put something.

    Args:
        tag: What was pulled.
        path: Its directory; None for a model whose files live elsewhere.
        as_json: Whether a machine reads.
    """
    if as_json:
        click.echo(json.dumps({"tag": tag, "path": None if path is None else str(path)}))
    elif path is None:
        click.echo(f"{tag} has no files on the registry: they live on the Hugging Face Hub.")
    else:
        click.echo(f"{tag} is in {path}")


def say_list(items: Sequence[ItemSchema], as_json: bool) -> None:
    """Say what the registry has.

    Args:
        items: The records.
        as_json: Whether a machine reads.
    """
    if as_json:
        click.echo(json.dumps([_record(item) for item in items]))
        return
    if not items:
        click.echo("The registry has none.", err=True)
        return
    from async_bento.rest.schemas import HEAD, row_of

    say_table(HEAD, [row_of(item) for item in items])


def say_record(tag: str | None, found: Sequence[ItemSchema], as_json: bool) -> None:
    """Say what the registry has of one item.

    Args:
        tag: What was asked for; None where that was not by its tag.
        found: The record, or nothing.
        as_json: Whether a machine reads.

    Raises:
        NotFoundError: Nothing was found.
    """
    if not found:
        raise NotFoundError("nothing on the registry matches")
    item = found[0]
    if as_json:
        click.echo(json.dumps(_record(item)))
        return
    from async_bento.rest.schemas import facts_of

    say_facts(facts_of(item, tag and f"{tag.partition(':')[0]}:{item.version}"))


def _record(item: ItemSchema) -> dict[str, object]:
    return item.model_dump(mode="json", by_alias=True, exclude={"presigned_upload_url", "presigned_download_url"})


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

"""Results, records and tables, printed as text or as JSON."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import click

from async_bento._core.text import human_size, shorten
from async_bento.cli.errors import expects_json
from async_bento.cli.logs import is_quiet
from async_bento.cli.progress import progress_mode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from async_bento.api.push import PushResult
    from async_bento.rest.schemas import ItemSchema

_GAP = "  "
_PAST = {"push": "pushed", "pull": "pulled", "copy": "copied"}
_MIN_WIDTH = 16  # of a column that is cut: that of a time, and shortened tags stay distinguishable


def print_json(value: object) -> None:
    """Print a value as JSON: indented on a terminal, otherwise on one line."""
    click.echo(json.dumps(value, indent=2 if terminal_width() is not None else None))


def print_bytes(data: bytes) -> None:
    """Print bytes without the buffer of standard output, whose lock would block the exit while a thread prints."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if raw is None:  # a program may replace or close standard output
        click.echo(data, nl=False)
        return
    rest = memoryview(data)
    while rest:
        written = raw.write(rest)
        if written is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        rest = rest[written:]


def print_push(result: PushResult, word: str, verb: str) -> None:
    """Print what a push or a copy has changed, unless the bars have left a line for it."""
    if is_quiet() or progress_mode() == "bars":
        return
    if result.skipped:
        if result.labels:
            click.echo(f"Labelled {word} {result.tag}: {', '.join(result.labels)}.")
    elif result.parts == 0:
        click.echo(f"{_PAST[verb].capitalize()} the record of {word} {result.tag}.")
    else:
        parts = "" if result.parts == 1 else f" in {result.parts} parts"
        facts = f"{human_size(result.bytes_sent)}{parts}, {result.seconds:.1f} s"
        click.echo(f"{_PAST[verb].capitalize()} {word} {result.tag}: {facts}.")


def print_skipped(tags: Sequence[str], word: str, verb: str) -> None:
    """Print one line for all items that were skipped, unless the bars leave it."""
    if not tags or is_quiet() or expects_json(click.get_current_context()) or progress_mode() == "bars":
        return
    items, pronoun = (f"{word} {tags[0]}", "it") if len(tags) == 1 else (f"{len(tags)} {word}s", "them")
    click.echo(f"Skipped {items}: already {_PAST[verb]}. Use --force to {verb} {pronoun} again.")


def push_as_json(result: PushResult) -> dict[str, object]:
    """Convert the result of a push to JSON types."""
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {**fields, "tag": str(result.tag), "models": [push_as_json(model) for model in result.models]}


def print_pull(tag: str, path: Path) -> None:
    """Print where a pull has put an item."""
    if not is_quiet():
        click.echo(f"{tag} is in {path}")


def pull_as_json(pulled: tuple[str, Path]) -> dict[str, object]:
    """Convert the tag and the path of a pulled item to JSON types."""
    tag, path = pulled
    return {"tag": tag, "path": str(path)}


def print_records(records: Sequence[ItemSchema], word: str, endpoint: str, *, as_json: bool) -> None:
    """Print records as a table, on a terminal with a heading."""
    if as_json:
        print_json([_record_as_json(record) for record in records])
        return
    from async_bento.rest.schemas import SUMMARY_COLUMNS, summary_row

    if terminal_width() is not None:
        click.echo(f"{word.capitalize()}s in the registry at {endpoint}:")
    tag, size, *more = SUMMARY_COLUMNS
    head = (tag, f"{size} WITH MODELS" if word == "bento" else size, *more)
    print_table(head, [summary_row(record) for record in records])


def print_record(record: ItemSchema, endpoint: str, tag: str | None = None, *, as_json: bool) -> None:
    """Print one record; `tag`, if known, names the item in case the record does not."""
    if as_json:
        print_json(_record_as_json(record))
        return
    from async_bento.rest.schemas import details

    first, *more = details(record, tag and f"{tag.partition(':')[0]}:{record.version}")
    print_facts([first, ("Registry", endpoint), *more])


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; on a terminal that is too narrow, the widest cells lose their middle, then the last columns go."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    if (columns := terminal_width()) is not None:
        widths = fit_widths(widths, columns)
    for row in (head, *rows):
        cells = (shorten(cell, width).ljust(width) for cell, width in zip(row, widths, strict=False))
        click.echo(_GAP.join(cells).rstrip())


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print the names and values of all facts that have a value."""
    for name, value in facts:
        if value:
            click.echo(wrap(f"{name + ':':13}", value))


def wrap(head: str, text: str) -> str:
    """Put a text next to its head; on a terminal, wrap it between words and indent the further lines."""
    columns = terminal_width()
    if columns is None:
        return head + text
    indent = " " * len(head)
    lines = textwrap.fill(
        text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
    return head + lines[len(head) :]


def fit_widths(widths: Sequence[int], columns: int) -> list[int]:
    """Narrow the widest columns of a table until a row fits; the last columns are left out where it cannot."""
    fitted = [*widths]
    # First the columns, judged by their least widths, then the cells.
    while len(fitted) > 1 and _row_width([min(width, _MIN_WIDTH) for width in fitted]) > columns:
        fitted.pop()
    while _row_width(fitted) > columns and max(fitted) > _MIN_WIDTH:
        fitted[fitted.index(max(fitted))] -= 1
    return fitted


def _row_width(widths: Sequence[int]) -> int:
    return sum(widths) + len(_GAP) * (len(widths) - 1)


def terminal_width() -> int | None:
    """Get the columns of standard output; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


_LEFT_OUT: dict[str, Any] = {
    # A presigned URL is a credential.
    "presigned_upload_url": True,
    "presigned_download_url": True,
    # Often the record itself once more, with its README.
    "repository": {"latest_bento", "latest_model"},
}


def _record_as_json(record: ItemSchema) -> dict[str, object]:
    return record.model_dump(mode="json", by_alias=True, exclude={**_LEFT_OUT, "models": {"__all__": _LEFT_OUT}})

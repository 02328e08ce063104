"""What the commands print of results and records: for a person, or as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

from async_bento.cli.table import say_facts, say_table
from async_bento.errors import NotFoundError
from async_bento.progress import is_watched
from async_bento.units import human_size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from async_bento.push import PushResult
    from async_bento.wire.schemas import ItemSchema


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
    from async_bento.wire.shown import HEAD, row_of

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
    from async_bento.wire.shown import facts_of

    say_facts(facts_of(item, tag and f"{tag.partition(':')[0]}:{item.version}"))


def _record(item: ItemSchema) -> dict[str, object]:
    return item.model_dump(mode="json", by_alias=True, exclude={"presigned_upload_url", "presigned_download_url"})

"""`async-bento list` and `get`, and the same commands for models."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, cast

import click

from async_bento._core.garbage import resume_collection
from async_bento.cli.completion import complete_remote_bento, complete_remote_model
from async_bento.cli.options import (
    RegistryOptions,
    asynchronous,
    filter_options,
    registry_options,
    warn_of_unknown_terms,
)
from async_bento.cli.output import print_json, print_record, print_records, terminal_width
from async_bento.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento._core.tag import Tag
    from async_bento.api.records import Records
    from async_bento.rest.schemas import ItemSchema, ListSchema

Word = Literal["bento", "model"]

_COMPLETE = {"bento": complete_remote_bento, "model": complete_remote_model}

_NEWEST = 100
"""Records that a list shows by default: a few screens, which one request returns."""

_LIST_HELP = """List the {word}s in the remote registry, newest first.

{size}`async-bento store list` lists those on this machine.

\b
Examples:
  async-bento {group}list --limit 10
  async-bento {group}list --search iris --label team=nlp
"""

_GET_HELP = """Show the record of the {word} TAG in the remote registry.

Without a version, show the newest version. Without TAG, show the newest {word} that matches --search and --label.

\b
Examples:
  async-bento {group}get iris:v3
  async-bento {group}get --search iris --label team=nlp
"""


_EXISTS_HELP = """Check whether the registry has the complete {word} TAG.

The exit code is 0 if the upload is complete, and 3 otherwise. With 0, the command prints nothing, except with --json.

\b
Examples:
  async-bento {group}exists iris:v3 || async-bento {group}push iris:v3
"""


def _list_command(word: Word) -> click.Command:
    @click.command("list", help=_help(_LIST_HELP, word))
    @click.option("--limit", "-n", type=click.IntRange(min=1), help=f"Maximum number of records.  [default: {_NEWEST}]")
    @click.option("--all", "show_all", is_flag=True, help="List all records.")
    @click.option("--query", metavar="QUERY", help="Registry query, such as 'label:team=nlp sort:size-desc'.")
    @filter_options
    @registry_options
    @asynchronous
    async def list_records(
        registry: RegistryOptions,
        search: str | None,
        labels: tuple[str, ...],
        query: str | None,
        limit: int | None,
        show_all: bool,
    ) -> None:
        if show_all and limit:
            raise click.UsageError("Pass either --limit or --all.")
        warn_of_unknown_terms(query)
        query = _terms(query, labels)
        async with open_records(registry, word) as routes:
            records, total = await _first(routes, None if show_all else limit or _NEWEST, search, query)
        if not records and not registry.as_json:
            matching = " match" if search or query else ""
            click.echo(f"No {word}s in the registry at {routes.session.endpoint}{matching}.", err=True)
            return
        print_records(records, word, routes.session.endpoint, as_json=registry.as_json)
        if total > len(records):
            # Below the table for people; a pipe gets records only.
            is_below = terminal_width() is not None and not registry.as_json
            click.echo(f"{len(records):,} of {total:,}; --all for the rest", err=not is_below)

    return list_records


def _get_command(word: Word) -> click.Command:
    @click.command("get", help=_help(_GET_HELP, word))
    @click.argument("tag", required=False, shell_complete=_COMPLETE[word])
    @filter_options
    @registry_options
    @asynchronous
    async def get(registry: RegistryOptions, tag: str | None, search: str | None, labels: tuple[str, ...]) -> None:
        if (tag is None) == (search is None and not labels):
            raise click.UsageError("Pass either TAG, or --search or --label.")
        async with open_records(registry, word) as routes:
            if tag is not None:
                print_record(await _get(routes, tag), routes.session.endpoint, tag, as_json=registry.as_json)
                return
            records, _ = await _first(routes, 1, search, _terms(None, labels))
        if not records:
            raise NotFoundError(f"no {word} in the registry at {routes.session.endpoint} matches")
        print_record(records[0], routes.session.endpoint, as_json=registry.as_json)

    return get


def _exists_command(word: Word) -> click.Command:
    @click.command("exists", help=_help(_EXISTS_HELP, word))
    @click.argument("tag", shell_complete=_COMPLETE[word])
    @registry_options
    @asynchronous
    async def exists(registry: RegistryOptions, tag: str) -> None:
        from async_bento._core.tag import Tag
        from async_bento.api.records import record_exists

        async with open_records(registry, word) as routes:
            if not await record_exists(routes, Tag.parse(tag)):
                endpoint = routes.session.endpoint
                raise NotFoundError(f"no {word} {tag} with a complete upload in the registry at {endpoint}.")
        if registry.as_json:
            print_json({"tag": tag, "exists": True})

    return exists


def _help(text: str, word: Word) -> str:
    size = "The size of a bento includes its models. " if word == "bento" else ""
    return text.format(word=word, size=size, group="models " if word == "model" else "")


@asynccontextmanager
async def open_records(registry: RegistryOptions, word: Word) -> AsyncGenerator[Records[ItemSchema]]:
    """Connect without an AsyncBentoAPI: its stores and transfers take long to import, and its stores require a home."""
    from async_bento.rest.client import RestApiClient

    resume_collection()
    async with RestApiClient(registry.endpoint, context=registry.context) as client:
        yield cast("Records[ItemSchema]", client.models if word == "model" else client.bentos)


@asynccontextmanager
async def explain_other_kind(routes: Records[ItemSchema], tag: Tag, verb: str) -> AsyncGenerator[None]:
    """Name the right command if a tag is that of a model and not of a bento, or the reverse."""
    try:
        yield
    except NotFoundError as error:
        from async_bento.api.records import wants_newest
        from async_bento.rest.responses import RawRecord
        from async_bento.rest.session import ApiRequest

        other, group = ("model", "models ") if routes.kind == "bento" else ("bento", "")
        path = f"{other}_repositories/{tag.name}" + ("" if wants_newest(tag) else f"/{other}s/{tag.version}")
        if await routes.session.find(ApiRequest("GET", path), RawRecord) is None:
            raise
        raise NotFoundError(
            f"no {routes.kind} {tag}: it is a {other}. Run `async-bento {group}{verb} {tag}`."
        ) from error


async def _first(
    routes: Records[ItemSchema], limit: int | None, search: str | None, query: str | None
) -> tuple[list[ItemSchema], int]:
    """The newest records, and how many there are."""
    from async_bento.api.paging import PAGE_SIZE, read_first

    async def fetch(*, start: int, count: int) -> ListSchema[ItemSchema] | None:
        return await routes.list(start=start, count=count, search=search, query=query)

    return await read_first(fetch, PAGE_SIZE, limit)


async def _get(routes: Records[ItemSchema], tag: str) -> ItemSchema:
    from async_bento._core.tag import Tag
    from async_bento.api.records import get_record

    return await get_record(routes, Tag.parse(tag))


def _terms(query: str | None, labels: tuple[str, ...]) -> str | None:
    from async_bento.api.records import Selector

    pairs = (label.partition("=") for label in labels)
    return Selector(query, tuple((key, value) for key, _, value in pairs)).terms


list_bentos = _list_command("bento")
list_models = _list_command("model")
get_bento = _get_command("bento")
get_model = _get_command("model")
bento_exists = _exists_command("bento")
model_exists = _exists_command("model")

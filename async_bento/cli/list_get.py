"""`async-bento list` and `get`, for bentos and for models: they differ in a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from async_bento.cli.completion import complete_bento, complete_model
from async_bento.cli.options import asynchronous, connection, make_api, matching
from async_bento.cli.output import say_list, say_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento.api.async_api import AsyncBentoAPI, AsyncModelAPI
    from async_bento.rest.schemas import ItemSchema

Word = Literal["bento", "model"]

_LIST = """List the {word}s on the registry, newest first.

\b
Examples:
  async-bento {models}list --limit 10
  async-bento {models}list --search iris --label team=nlp
"""

_GET = """Show the record of the {word} TAG on the registry; without a version, of the newest.

Without a tag, show the newest {word} that matches.

\b
Examples:
  async-bento {models}get iris:v3
  async-bento {models}get --search iris --label team=nlp
"""


def _help(text: str, word: Word) -> str:
    return text.format(word=word, models="models " if word == "model" else "")


def _of(api: AsyncBentoAPI, word: Word) -> AsyncBentoAPI | AsyncModelAPI:
    return api.models if word == "model" else api


def _asked(query: str | None, labels: tuple[str, ...]) -> str | None:
    return " ".join([*([query] if query else []), *(f"label:{label}" for label in labels)]) or None


def _list_command(word: Word) -> click.Command:
    @click.command("list", help=_help(_LIST, word))
    @click.option("--limit", "-n", type=click.IntRange(min=1), help="The newest ones only.")
    @click.option("--query", "-q", metavar="QUERY", help="As in `label:team=nlp sort:size-desc`.")
    @matching
    @connection
    @asynchronous
    async def list_records(
        search: str | None,
        labels: tuple[str, ...],
        query: str | None,
        limit: int | None,
        endpoint: str | None,
        context: str | None,
        as_json: bool,
    ) -> None:
        async with make_api(endpoint, context) as api:
            found = await _of(api, word).list(search=search, query=_asked(query, labels), limit=limit)
        say_list(found.items, as_json)

    return list_records


def _get_command(word: Word) -> click.Command:
    @click.command("get", help=_help(_GET, word))
    @click.argument("tag", required=False, shell_complete=complete_model if word == "model" else complete_bento)
    @matching
    @connection
    @asynchronous
    async def get(
        tag: str | None,
        search: str | None,
        labels: tuple[str, ...],
        endpoint: str | None,
        context: str | None,
        as_json: bool,
    ) -> None:
        if (tag is None) == (search is None and not labels):
            raise click.UsageError("it needs either a tag, or --search or --label")
        async with make_api(endpoint, context) as api:
            found: Sequence[ItemSchema]
            if tag is not None:
                found = [await _of(api, word).get(tag)]
            else:
                found = (await _of(api, word).list(search=search, query=_asked(None, labels), limit=1)).items
        say_record(tag, found, as_json)

    return get


list_bentos = _list_command("bento")
list_models = _list_command("model")
get_bento = _get_command("bento")
get_model = _get_command("model")

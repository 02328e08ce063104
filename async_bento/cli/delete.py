"""`async-bento delete`, and the same command for models: they delete from the registry."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from async_bento._core.text import human_size
from async_bento.cli.completion import complete_remote_bento, complete_remote_model
from async_bento.cli.confirm import confirm
from async_bento.cli.list_get import explain_other_kind, open_records
from async_bento.cli.options import RegistryOptions, asynchronous, registry_options
from async_bento.cli.output import print_json
from async_bento.cli.selection import Selection, is_pattern, is_single, run_each, select
from async_bento.errors import APIStatusError, InvalidTagError, with_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento.api.records import Records
    from async_bento.cli.list_get import Word
    from async_bento.rest.schemas import ItemSchema, ListSchema

_HELP = """Delete the {word}s TAGS from the remote registry.

Each of TAGS is a tag with a version, or a pattern of tags. If the registry lacks one of them, nothing is deleted.
{models}Your local store is not changed: `async-bento store delete` deletes from it.

\b
Examples:
  async-bento {group}delete {name}:v1
  async-bento {group}delete "{name}:2024*" --dry-run
  async-bento {group}delete "{name}:2024*" --yes
"""

_MODELS_OF_BENTO = "The models of a bento are kept. "
_USED_MODELS = "A model that a bento in the registry names is kept, unless you pass --force. "


def _delete_command(word: Word) -> click.Command:
    is_model = word == "model"
    text = _HELP.format(
        word=word,
        name="iris_weights" if is_model else "iris_classifier",
        group="models " if is_model else "",
        models=_USED_MODELS if is_model else _MODELS_OF_BENTO,
    )

    @click.command("delete", help=text)
    @click.argument(
        "tags", nargs=-1, required=True, shell_complete=complete_remote_model if is_model else complete_remote_bento
    )
    @click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
    @click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
    @registry_options
    @asynchronous
    async def delete(
        registry: RegistryOptions, tags: Sequence[str], yes: bool, dry_run: bool, force: bool = False
    ) -> None:
        async with open_records(registry, word) as routes:
            records = await _select(routes, tags)
            place = f"the registry at {routes.session.endpoint}"
            if not (yes or dry_run):
                confirm(f"Delete {', '.join(records)} from {place}?")
            if dry_run:
                _print_plan(records, word, place, as_json=registry.as_json)
                return
            await _delete_each(routes, records, is_single(tags), force=force, as_json=registry.as_json)

    if is_model:
        delete.params.append(
            click.Option(["--force", "-f"], is_flag=True, help="Delete models also if a bento names them.")
        )
    return delete


async def _select(routes: Records[ItemSchema], arguments: Sequence[str]) -> dict[str, ItemSchema]:
    """Find the records that the arguments select, by tag; raise the first error."""
    word, endpoint = routes.kind, routes.session.endpoint
    for argument in arguments:
        if not is_pattern(argument) and argument.partition(":")[2] in {"", "latest"}:
            name = argument.partition(":")[0]
            raise InvalidTagError(
                f"cannot delete {argument}: the tag has no version. "
                f"Write `{name}:VERSION`, or `'{name}:*'` for all versions."
            )
    listed: dict[str, ItemSchema] = {}

    async def list_tags() -> list[str]:
        listed.update({str(record.tag): record for record in await _list_all(routes)})
        return [*listed]

    missing = f"no {word} in the registry at {endpoint}"
    selection = await select(arguments, select_all=False, list_tags=list_tags, missing=missing)
    for failure in selection.failures.values():
        raise failure
    return {tag: listed.get(tag) or await _get(routes, tag) for tag in selection.items}


async def _list_all(routes: Records[ItemSchema]) -> list[ItemSchema]:
    from async_bento.api.paging import PAGE_SIZE, walk

    async def fetch(*, start: int, count: int) -> ListSchema[ItemSchema] | None:
        return await routes.list(start=start, count=count)

    async with aclosing(walk(fetch, PAGE_SIZE)) as pages:
        return [record async for page in pages for record in page]


async def _get(routes: Records[ItemSchema], argument: str) -> ItemSchema:
    """Get a record."""
    from async_bento._core.tag import Tag
    from async_bento.api.records import get_record

    tag = Tag.parse(argument)
    async with explain_other_kind(routes, tag, "delete"):
        return await get_record(routes, tag)


def _print_plan(records: dict[str, ItemSchema], word: Word, place: str, *, as_json: bool) -> None:
    if as_json:
        print_json([_as_json(tag, record) for tag, record in records.items()])
        return
    for tag, record in records.items():
        click.echo(f"Would delete {word} {tag}: {human_size(record.size_bytes)}.")
    if len(records) > 1:
        click.echo(f"Would delete {len(records)} {word}s from {place}.")


async def _delete_each(
    routes: Records[ItemSchema], records: dict[str, ItemSchema], single: bool, *, force: bool, as_json: bool
) -> None:
    from async_bento._core.tag import Tag
    from async_bento.api.deletion import delete_record

    async def delete(tag: str) -> str:
        try:
            await delete_record(routes, Tag.parse(tag), force=force)
        except APIStatusError as error:
            message = str(error).replace("or force the deletion.", "or pass --force.")
            raise with_message(error, message) from error.__cause__
        return tag

    def report(tag: str) -> None:
        if not as_json:
            click.echo(f"Deleted {routes.kind} {tag} from the registry.")

    selection = Selection([*records], is_single=single)
    deleted = await run_each(delete, selection, f"delete {{}} {routes.kind}s", report)
    if as_json:
        print_json([_as_json(tag, records[tag]) for tag in deleted])
    else:
        click.echo("The local store was not changed.", err=True)


def _as_json(tag: str, record: ItemSchema) -> dict[str, object]:
    return {"tag": tag, "size_bytes": record.size_bytes, "upload_status": record.upload_status}


delete_bentos = _delete_command("bento")
delete_models = _delete_command("model")

"""`async-bento store`: list, find and delete local items, and remove the files of interrupted transfers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from async_bento._core.text import human_size
from async_bento.cli.completion import complete_bento, complete_model
from async_bento.cli.confirm import confirm
from async_bento.cli.errors import hint_at_list
from async_bento.cli.groups import Group
from async_bento.cli.options import json_option
from async_bento.cli.output import print_json, print_table
from async_bento.cli.selection import is_pattern, matching_tags
from async_bento.errors import BentoError, InvalidTagError, NotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from click.shell_completion import CompletionItem

    from async_bento.store.items import Item
    from async_bento.store.store import Store


def _complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    complete = complete_model if context.params.get("models") else complete_bento
    return complete(context, parameter, incomplete)


_models_option: Callable[[Any], Any] = click.option("--models", is_flag=True, help="Models instead of bentos.")


@click.group(cls=Group)
def store() -> None:
    """List, find and delete bentos and models on this machine."""


@store.command("list")
@click.argument("name", required=False, shell_complete=_complete)
@_models_option
@json_option
def list_items(name: str | None, models: bool, as_json: bool) -> None:
    """List the bentos in the local store.

    The size of a bento is that of its own files, without its models.

    \b
    Examples:
      async-bento store list
      async-bento store list iris_classifier --json
      async-bento store list --models
    """
    found = _open(models)
    try:
        items = _matching(found, name) if name and is_pattern(name) else found.list(name)
    except NotFoundError as error:
        raise _explain_missing(error, found, str(name), "list") from error
    if as_json:
        print_json([_as_json(item) for item in items])
    elif not items:
        word = found.item_type.TYPE_NAME
        nothing = (
            f"No {word} in the local store {found.path} matches {name!r}."
            if name
            else (f"No {word}s in the local store {found.path}.")
        )
        click.echo(nothing, err=True)
    else:
        rows = [(str(item.tag), human_size(item.size()), f"{item.creation_time:%Y-%m-%d %H:%M}") for item in items]
        print_table(("TAG", "SIZE", "BUILT (UTC)"), rows)


@store.command()
@click.argument("tags", nargs=-1, required=True, shell_complete=_complete)
@_models_option
@click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation.")
def delete(tags: Sequence[str], models: bool, yes: bool) -> None:
    """Delete the bentos TAGS from the local store.

    Each of TAGS is a tag with a version, or a pattern of tags. The registry is not changed.

    \b
    Examples:
      async-bento store delete iris_classifier:v1
      async-bento store delete "iris_classifier:*" --yes
      async-bento store delete iris_weights:w1 --models
    """
    found = _open(models)
    selected = list(dict.fromkeys(tag for argument in tags for tag in _tags_to_delete(found, argument)))
    if not yes:
        confirm(f"Delete {', '.join(selected)} from {found.path}?")
    for tag in selected:
        found.delete(tag)
        click.echo(f"Deleted {found.item_type.TYPE_NAME} {tag}.")


@store.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@json_option
def prune(dry_run: bool, as_json: bool) -> None:
    """Remove the files of interrupted pushes and pulls.

    An interrupted transfer can be resumed for a week: after a prune, it starts again. Files that a running process
    uses are kept, and so are all bentos and models.

    \b
    Examples:
      async-bento store prune --dry-run
      async-bento store prune
    """
    removed = {path: size for models in (False, True) for path, size in _open(models).prune(dry_run=dry_run).items()}
    if as_json:
        print_json([{"path": str(path), "size_bytes": size} for path, size in sorted(removed.items())])
        return
    verb = "Would remove" if dry_run else "Removed"
    for path, size in sorted(removed.items()):
        click.echo(f"{verb} {path} ({human_size(size)})")
    click.echo(f"{verb} {human_size(sum(removed.values()))}." if removed else "Nothing to remove.", err=True)


@store.command()
@click.argument("tag", required=False, shell_complete=_complete)
@_models_option
def path(tag: str | None, models: bool) -> None:
    """Print the directory of the bento TAG.

    Without TAG, print the directory of the local store.

    \b
    Examples:
      async-bento store path iris_classifier:v1
      cd "$(async-bento store path iris_weights --models)"
    """
    found = _open(models)
    try:
        click.echo(str(found.path if tag is None else found.get(tag).path))
    except NotFoundError as error:
        raise _explain_missing(error, found, str(tag), "path") from error


def _open(models: bool) -> Store[Any]:
    from async_bento.store.store import BentoStore, ModelStore

    return ModelStore() if models else BentoStore()


def _matching(found: Store[Any], pattern: str) -> list[Item]:
    items: Sequence[Item] = found.list()
    tags = {*matching_tags([str(item.tag) for item in items], pattern)}
    return [item for item in items if str(item.tag) in tags]


def _tags_to_delete(found: Store[Any], argument: str) -> list[str]:
    """The exact tags that an argument selects; they exist."""
    word = found.item_type.TYPE_NAME
    if is_pattern(argument):
        if matching := _matching(found, argument):
            return [str(item.tag) for item in matching]
        raise NotFoundError(f"no {word} in {found.path} matches {argument!r}.")
    if ":" not in argument:
        raise InvalidTagError(
            f"cannot delete {argument}: the tag has no version. "
            f"Write `{argument}:VERSION`, or `'{argument}:*'` for all versions."
        )
    try:
        # The whole version, not a prefix of it: a deletion must not guess.
        return [str(found.get(argument, prefix=False).tag)]
    except StoreError:  # a broken item can be deleted, too
        return [argument]
    except NotFoundError as error:
        raise _explain_missing(hint_at_list(error, word), found, argument, "delete") from error


def _explain_missing(error: NotFoundError, found: Store[Any], tag: str, command: str) -> NotFoundError:
    """Name the right command if a tag is that of a model and not of a bento, or the reverse."""
    word = found.item_type.TYPE_NAME
    other = _open(word == "bento")
    with suppress(BentoError):
        other.get(tag, prefix=False)
        option = " --models" if word == "bento" else ""
        named = other.item_type.TYPE_NAME
        return NotFoundError(f"no {word} {tag}: it is a {named}. Run `async-bento store {command} {tag}{option}`.")
    return error


def _as_json(item: Item) -> dict[str, object]:
    return {
        "tag": str(item.tag),
        "size_bytes": item.size(),
        "creation_time": item.creation_time.isoformat(),
        "path": str(item.path),
    }

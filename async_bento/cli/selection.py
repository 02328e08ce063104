"""Select the items of a command by tags, patterns or --all, and run the command for each of them."""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from async_bento._core.tag import is_path
from async_bento.cli.errors import ItemsError, print_error
from async_bento.cli.output import print_json
from async_bento.errors import (
    APIConnectionError,
    AuthenticationError,
    BentoError,
    ConfigError,
    NotFoundError,
    with_message,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.async_models import AsyncModelAPI
    from async_bento.store.items import Item
    from async_bento.store.store import Store

T = TypeVar("T")

_FATAL_ERRORS = (APIConnectionError, AuthenticationError, ConfigError)  # every further item would fail with them, too


@dataclass
class Selection:
    """Tags and directories, and the errors of patterns that match nothing; `is_single` if there can be one at most."""

    items: list[str]
    is_single: bool
    failures: dict[str, BentoError] = field(default_factory=dict[str, BentoError])


def is_pattern(argument: str) -> bool:
    """Whether an argument is a pattern of tags, and not a tag or a path."""
    return not {"*", "?", "["}.isdisjoint(argument) and not is_path(argument)


def is_single(arguments: Sequence[str]) -> bool:
    """Whether arguments select one item at most; none stand for --all."""
    return len(arguments) == 1 and not is_pattern(arguments[0])


def matching_tags(tags: Iterable[str], pattern: str) -> list[str]:
    """The tags that match a pattern."""
    return [tag for tag in tags if fnmatch.fnmatchcase(tag, pattern)]


async def select(
    arguments: Sequence[str], *, select_all: bool, list_tags: Callable[[], Awaitable[list[str]]], missing: str
) -> Selection:
    """Expand patterns and --all; keep other arguments. `missing` begins the error of a pattern without a match."""
    if not select_all and not any(map(is_pattern, arguments)):
        return Selection(list(dict.fromkeys(arguments)), is_single=is_single(arguments))
    tags = await list_tags()
    if select_all and not tags:
        raise NotFoundError(f"{missing}.")
    selection = Selection([], is_single=False)
    for argument in ["*"] if select_all else arguments:
        matching = matching_tags(tags, argument) if is_pattern(argument) else [argument]
        if not matching:
            selection.failures[argument] = NotFoundError(f"{missing} matches {argument!r}.")
        selection.items += matching
    selection.items = list(dict.fromkeys(selection.items))
    return selection


async def select_stored(store: Store[Any], arguments: Sequence[str], *, select_all: bool) -> Selection:
    """Expand patterns and --all to the tags in the local store."""
    import anyio.to_thread

    async def list_tags() -> list[str]:
        stored: Sequence[Item] = await anyio.to_thread.run_sync(store.list)
        return [str(item.tag) for item in stored]

    arguments = [await anyio.to_thread.run_sync(_as_path_of_archive, argument) for argument in arguments]
    missing = f"no {store.item_type.TYPE_NAME} in {store.path}"
    return await select(arguments, select_all=select_all, list_tags=list_tags, missing=missing)


async def select_remote(
    api: AsyncBentoAPI | AsyncModelAPI, arguments: tuple[str, ...], word: Literal["bento", "model"], select_all: bool
) -> Selection:
    """Expand patterns and --all to the tags in the registry whose upload is complete."""

    async def list_tags() -> list[str]:
        from async_bento.rest.schemas import UNFINISHED

        return [str(record.tag) async for record in api.iter() if record.upload_status not in UNFINISHED]

    missing = f"no {word} in the registry"
    return await select(arguments, select_all=select_all, list_tags=list_tags, missing=missing)


def check_arguments(arguments: Sequence[str], word: str, verb: str, *, select_all: bool) -> None:
    """Raise UsageError unless there are arguments or --all."""
    if select_all == bool(arguments):
        raise click.UsageError(f"Name at least one {word} to {verb}, or use --all (not both).")


async def run_each(
    run: Callable[[str], Awaitable[T]], selection: Selection, action: str, report: Callable[[T], None]
) -> list[T]:
    """Run for the selected items in order and report each result; raise `ItemsError` at the end if some failed.

    A fault that concerns every item, and the failure of a single item, are raised at once. `action` is like
    `push {} bentos`.
    """
    results: list[T] = []
    failures = dict(selection.failures)
    for item, failure in failures.items():
        print_error(failure, item)
    for item in selection.items:
        try:
            result = await run(item)
        except BentoError as error:
            # An error that names the item needs no prefix.
            if isinstance(error, _FATAL_ERRORS) or (selection.is_single and item in str(error)):
                raise
            if selection.is_single:
                raise with_message(error, f"{item}: {error}") from error.__cause__
            failures[item] = error
            print_error(error, item)
            continue
        results.append(result)
        report(result)
    if failures:
        count = len(selection.items) + len(selection.failures)
        raise ItemsError(
            f"cannot {action.format(f'{len(failures)} of {count}')}: {', '.join(failures)}",
            failures=failures,
            results=results,
        )
    return results


async def run_and_print(
    run_one: Callable[[str], Awaitable[T]],
    selection: Selection,
    action: str,
    report: Callable[[T], None],
    as_json: Callable[[T], dict[str, object]] | None,
) -> None:
    """Run for each item; with `as_json`, print the results as JSON, also if some items failed."""
    results: list[T] = []

    def keep(result: T) -> None:
        results.append(result)
        report(result)

    try:
        await run_each(run_one, selection, action, keep)
    except ItemsError:
        if as_json:
            print_json([as_json(result) for result in results])
        raise
    if as_json:
        records = [as_json(result) for result in results]
        print_json(records[0] if selection.is_single else records)


def _as_path_of_archive(argument: str) -> str:
    """Make the name of an archive in the working directory a path, which a push refuses with a remedy."""
    is_archive = argument.endswith((".bento", ".bentomodel")) and os.path.isfile(argument)  # noqa: PTH113 - a str
    return os.path.abspath(argument) if is_archive else argument  # noqa: PTH100

"""Pushes of several bentos or models by one command."""

from __future__ import annotations

import fnmatch
import json
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from async_bento.cli.said import pushed, say_pushed
from async_bento.errors import APIConnectionError, AuthenticationError, BentoError, ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from async_bento.push import PushResult
    from async_bento.store.items import Item
    from async_bento.store.store import Store

_HOPELESS = (APIConnectionError, AuthenticationError, ConfigError)
"""What the next push would fail with as well."""


class Chosen(NamedTuple):
    """What is to be pushed.

    Attributes:
        tags: Tags and directories.
        many: Whether more than one may have been meant.
    """

    tags: list[str]
    many: bool


async def choose(make_store: Callable[[], Store[Any]], wanted: Sequence[str], everything: bool) -> Chosen:
    """Find what is to be pushed: patterns and `--all` are looked up in the store, all else is taken as it is.

    Args:
        make_store: Makes the store; it may block.
        wanted: Tags, patterns of tags, directories.
        everything: Whether `--all` was given.

    Returns:
        Each once, in the order in which it was asked for.

    Raises:
        UsageError: Nothing is wanted, or both everything and something.
        NotFoundError: Nothing in the store matches a pattern.
    """
    if everything == bool(wanted):
        raise click.UsageError("it needs what to push, or --all")
    if not everything and not any(map(_is_pattern, wanted)):
        return Chosen(list(dict.fromkeys(wanted)), many=len(wanted) > 1)
    import anyio.to_thread

    store = make_store()
    items: Sequence[Item] = await anyio.to_thread.run_sync(store.list)
    tags = [str(item.tag) for item in items]
    chosen: list[str] = []
    for one in ["*"] if everything else wanted:
        found = fnmatch.filter(tags, one) if _is_pattern(one) else [one]
        if not found:
            raise NotFoundError(f"no {store.item_type.WORD} in {store.path} matches {one!r}")
        chosen += found
    return Chosen(list(dict.fromkeys(chosen)), many=True)


def _is_pattern(wanted: str) -> bool:
    return any(character in wanted for character in "*?[") and "/" not in wanted


async def push_each(
    push: Callable[[str], Awaitable[PushResult]], chosen: Chosen, word: Literal["bento", "model"], as_json: bool
) -> None:
    """Push one after the other; what fails is told at once, and all of it in the end.

    Args:
        push: Pushes one.
        chosen: What to push.
        word: What it is.
        as_json: Whether a machine reads.

    Raises:
        BentoError: What failed first.
    """
    results: list[PushResult] = []
    failures: dict[str, BentoError] = {}
    for tag in chosen.tags:
        try:
            result = await push(tag)
        except BentoError as error:
            if not chosen.many or isinstance(error, _HOPELESS):
                raise
            failures[tag] = error
            click.secho(f"Error: {tag}: {error}", err=True, fg="red")
            continue
        results.append(result)
        if not as_json:
            say_pushed(result, word)
    if as_json:
        told = [pushed(result) for result in results]
        click.echo(json.dumps(told if chosen.many else told[0]))
    if failures:
        first = next(iter(failures.values()))
        first.args = (f"{len(failures)} of {len(chosen.tags)} {word}s were not pushed: {', '.join(failures)}",)
        raise first

"""`async-bento push` and `pull`, for bentos and for models."""

from __future__ import annotations

import fnmatch
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from async_bento.cli.completion import complete_bento, complete_model
from async_bento.cli.options import asynchronous, connection, make_api, moves_bytes
from async_bento.cli.output import pushed, say_pulled, say_pushed
from async_bento.errors import APIConnectionError, AuthenticationError, BentoError, ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from async_bento.api.push import PushResult
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
            raise NotFoundError(f"no {store.item_type.TYPE_NAME} in {store.path} matches {one!r}")
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


_force_push = click.option("--force", "-f", is_flag=True, help="Push it also when the registry has it already.")
_force_pull = click.option("--force", "-f", is_flag=True, help="Replace the local copy, once the new one is whole.")
_threads = click.option(
    "--threads", "-t", type=click.IntRange(min=1), default=10, show_default=True, help="Parts in flight at once."
)
_everything = click.option("--all", "everything", is_flag=True, help="Push all there are.")


@click.command()
@click.argument("bentos", nargs=-1, shell_complete=complete_bento)
@_everything
@_force_push
@click.option("--bare", is_flag=True, help="Push its record alone, without its files, for development.")
@_threads
@connection
@moves_bytes
@asynchronous
async def push(
    bentos: tuple[str, ...],
    everything: bool,
    force: bool,
    bare: bool,
    threads: int,
    endpoint: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """Push BENTOS and their models: tags, patterns of tags, or directories.

    One that fails does not stop the others.

    \b
    Examples:
      async-bento push iris_classifier:latest
      async-bento push ./bentos/iris_classifier/v3 --force
      async-bento push iris_classifier:v1 "fraud_*:v2"
      async-bento push --all
    """
    from async_bento.store.store import BentoStore

    chosen = await choose(BentoStore, bentos, everything)
    async with make_api(endpoint, context) as api:
        await push_each(partial(api.push, force=force, bare=bare, threads=threads), chosen, "bento", as_json)


@click.command("push")
@click.argument("models", nargs=-1, shell_complete=complete_model)
@_everything
@_force_push
@_threads
@connection
@moves_bytes
@asynchronous
async def push_models(
    models: tuple[str, ...],
    everything: bool,
    force: bool,
    threads: int,
    endpoint: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """Push MODELS: tags, patterns of tags, or directories.

    One that fails does not stop the others.

    \b
    Examples:
      async-bento models push iris_weights:latest
      async-bento models push "iris_*"
    """
    from async_bento.store.store import ModelStore

    chosen = await choose(ModelStore, models, everything)
    async with make_api(endpoint, context) as api:
        await push_each(partial(api.models.push, force=force, threads=threads), chosen, "model", as_json)


@click.command()
@click.argument("tag", shell_complete=complete_bento)
@_force_pull
@click.option("--with-models", "-m", is_flag=True, help="Pull its models too.")
@connection
@moves_bytes
@asynchronous
async def pull(
    tag: str, force: bool, with_models: bool, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """Pull the bento TAG; without a version, the newest.

    \b
    Examples:
      async-bento pull iris_classifier --with-models
      async-bento pull iris_classifier:v3 --force
    """
    async with make_api(endpoint, context) as api:
        bento = await api.pull(tag, force=force, with_models=with_models)
    say_pulled(str(bento.tag), bento.path, as_json)


@click.command("pull")
@click.argument("tag", shell_complete=complete_model)
@_force_pull
@click.option("--query", "-q", metavar="QUERY", help="What the newest must match, like `label:stage=prod`.")
@connection
@moves_bytes
@asynchronous
async def pull_model(
    tag: str, force: bool, query: str | None, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """Pull the model TAG; without a version, the newest.

    \b
    Examples:
      async-bento models pull iris_weights:v3
      async-bento models pull iris_weights --query label:stage=prod
    """
    async with make_api(endpoint, context) as api:
        model = await api.models.pull(tag, force=force, query=query)
    say_pulled(tag if model is None else str(model.tag), None if model is None else model.path, as_json)

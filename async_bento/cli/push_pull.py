"""`async-bento push` and `pull`, and the same commands for models."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import click

from async_bento.cli.completion import complete_bento, complete_model
from async_bento.cli.errors import PushesError
from async_bento.cli.options import RegistryOptions, asynchronous, registry_options
from async_bento.cli.output import print_json, print_pull, print_push, push_as_json
from async_bento.cli.selection import is_pattern, matching_tags
from async_bento.errors import APIConnectionError, AuthenticationError, BentoError, ConfigError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from async_bento.api.push import PushResult
    from async_bento.store.items import Item
    from async_bento.store.store import Store

T = TypeVar("T")

_FATAL_ERRORS = (APIConnectionError, AuthenticationError, ConfigError)  # every further push would fail with them, too


def _push_options(command: Callable[..., T]) -> Callable[..., T]:
    command = click.option(
        "--threads",
        "-t",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Maximum number of parts to upload at once.",
    )(command)
    command = click.option("--force", "-f", is_flag=True, help="Push even if the registry has this version.")(command)
    return click.option("--all", "select_all", is_flag=True, help="Push everything in the local store.")(command)


_pull_force = click.option("--force", "-f", is_flag=True, help="Download again and replace the local copy.")


@click.command()
@click.argument("bentos", nargs=-1, shell_complete=complete_bento)
@_push_options
@click.option("--bare", is_flag=True, help="Push only the record, without files (for development).")
@registry_options
@asynchronous
async def push(
    registry: RegistryOptions, bentos: tuple[str, ...], select_all: bool, force: bool, threads: int, bare: bool
) -> None:
    """Push BENTOS and their models to the registry.

    Each of BENTOS is a tag, a pattern of tags or a directory. If one cannot be
    pushed, the others still are, unless the fault concerns them all: the connection, the token or a setting.

    \b
    Examples:
      async-bento push iris_classifier:latest
      async-bento push ./bentos/iris_classifier/v3 --force
      async-bento push iris_classifier:v1 "fraud_*:v2"
      async-bento push --all
    """
    from async_bento.store.store import BentoStore

    selection = await _select(BentoStore(), bentos, select_all=select_all)
    async with registry.make_transfer_api() as api:
        push_one = partial(api.push, force=force, bare=bare, threads=threads)
        await _push_each(push_one, selection, "bento", as_json=registry.as_json)


@click.command("push")
@click.argument("models", nargs=-1, shell_complete=complete_model)
@_push_options
@registry_options
@asynchronous
async def push_models(
    registry: RegistryOptions, models: tuple[str, ...], select_all: bool, force: bool, threads: int
) -> None:
    """Push MODELS to the registry.

    Each of MODELS is a tag, a pattern of tags or a directory. If one cannot be
    pushed, the others still are, unless the fault concerns them all: the connection, the token or a setting.

    \b
    Examples:
      async-bento models push iris_weights:latest
      async-bento models push "iris_*"
    """
    from async_bento.store.store import ModelStore

    selection = await _select(ModelStore(), models, select_all=select_all)
    async with registry.make_transfer_api() as api:
        push_one = partial(api.models.push, force=force, threads=threads)
        await _push_each(push_one, selection, "model", as_json=registry.as_json)


@click.command()
@click.argument("tag", shell_complete=complete_bento)
@_pull_force
@click.option("--with-models", "-m", is_flag=True, help="Also pull the models of the bento.")
@registry_options
@asynchronous
async def pull(registry: RegistryOptions, tag: str, force: bool, with_models: bool) -> None:
    """Pull the bento TAG into the local store.

    Without a version, pull the newest version.

    \b
    Examples:
      async-bento pull iris_classifier --with-models
      async-bento pull iris_classifier:v3 --force
    """
    async with registry.make_transfer_api() as api:
        bento = await api.pull(tag, force=force, with_models=with_models)
    print_pull(str(bento.tag), bento.path, as_json=registry.as_json)


@click.command("pull")
@click.argument("tag", shell_complete=complete_model)
@_pull_force
@click.option("--query", "-q", metavar="QUERY", help="Pull the newest version that matches, such as label:stage=prod.")
@registry_options
@asynchronous
async def pull_model(registry: RegistryOptions, tag: str, force: bool, query: str | None) -> None:
    """Pull the model TAG into the local store.

    Without a version, pull the newest version.

    \b
    Examples:
      async-bento models pull iris_weights:v3
      async-bento models pull iris_weights --query label:stage=prod
    """
    async with registry.make_transfer_api() as api:
        model = await api.models.pull(tag, force=force, query=query)
    if model is None:
        print_pull(tag, None, as_json=registry.as_json)
    else:
        print_pull(str(model.tag), model.path, as_json=registry.as_json)


class _Selection(NamedTuple):
    """Tags and directories to push; `is_single` if the arguments cannot select more than one."""

    items: list[str]
    is_single: bool


async def _select(store: Store[Any], arguments: Sequence[str], *, select_all: bool) -> _Selection:
    """Expand patterns and --all to the tags in the store; keep other arguments, without duplicates."""
    word = store.item_type.TYPE_NAME
    if select_all == bool(arguments):
        raise click.UsageError(f"Name at least one {word} to push, or use --all (not both).")
    import anyio.to_thread

    arguments = [await anyio.to_thread.run_sync(_as_path_of_archive, argument) for argument in arguments]
    if not select_all and not any(map(is_pattern, arguments)):
        return _Selection(list(dict.fromkeys(arguments)), is_single=len(arguments) == 1)
    stored: Sequence[Item] = await anyio.to_thread.run_sync(store.list)
    tags = [str(item.tag) for item in stored]
    if select_all and not tags:
        raise NotFoundError(f"no {word}s in {store.path}")
    selected: list[str] = []
    for argument in ["*"] if select_all else arguments:
        matching = matching_tags(tags, argument) if is_pattern(argument) else [argument]
        if not matching:
            raise NotFoundError(f"no {word} in {store.path} matches {argument!r}")
        selected += matching
    return _Selection(list(dict.fromkeys(selected)), is_single=False)


def _as_path_of_archive(argument: str) -> str:
    """Make the name of an archive in the working directory a path, which a push refuses with a remedy."""
    is_archive = argument.endswith((".bento", ".bentomodel")) and os.path.isfile(argument)  # noqa: PTH113 - a str
    return os.path.abspath(argument) if is_archive else argument  # noqa: PTH100


async def _push_each(
    push_one: Callable[[str], Awaitable[PushResult]],
    selection: _Selection,
    word: Literal["bento", "model"],
    *,
    as_json: bool,
) -> None:
    """Push the selected items in order, and raise `PushesError` at the end if some of them failed."""
    results: list[PushResult] = []
    failures: dict[str, BentoError] = {}
    for item in selection.items:
        try:
            result = await push_one(item)
        except BentoError as error:
            if selection.is_single or isinstance(error, _FATAL_ERRORS):
                raise
            failures[item] = error
            click.secho(f"Error: {item}: {error}", err=True, fg="red")
            continue
        results.append(result)
        if not as_json:
            print_push(result, word)
    if as_json:
        records = [push_as_json(result) for result in results]
        print_json(records[0] if selection.is_single else records)
    if failures:
        raise PushesError(
            f"cannot push {len(failures)} of {len(selection.items)} {word}s: {', '.join(failures)}",
            failures=failures,
        )

"""`async-bento copy`, and the same for models."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, ParamSpec, TypeVar

import click

from async_bento.cli.completion import complete_context, complete_remote_bento, complete_remote_model
from async_bento.cli.options import (
    RegistryOptions,
    asynchronous,
    dry_run_option,
    json_option,
    rate_option,
    transfer_config,
)
from async_bento.cli.progress import progress_options
from async_bento.cli.push_pull import push_each
from async_bento.cli.selection import check_arguments, is_single, select_remote

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.push import PushResult
    from async_bento.cli.dry_run import Planned

P = ParamSpec("P")
T = TypeVar("T")


class _Options(NamedTuple):
    """The options that bentos and models share."""

    source: RegistryOptions
    target: str
    select_all: bool
    dry_run: bool


def _copy_options(command: Callable[P, T]) -> Callable[P, T]:
    """Add --from, --to and the options of a push."""
    for option in (
        json_option,
        progress_options,
        dry_run_option,
        rate_option,
        click.option(
            "--threads",
            "-t",
            type=click.IntRange(min=1),
            default=10,
            show_default=True,
            help="Maximum number of parts to copy at once.",
        ),
        click.option("--keep-labels", is_flag=True, help="With --force, keep the labels that only the target has."),
        click.option("--force", "-f", is_flag=True, help="Copy even if the target has this version."),
        click.option("--all", "select_all", is_flag=True, help="Copy every version whose upload is complete."),
        click.option(
            "--to",
            "target",
            metavar="CONTEXT",
            required=True,
            shell_complete=complete_context,
            help="Context of the registry to copy to.",
        ),
        click.option(
            "--from",
            "context",
            metavar="CONTEXT",
            shell_complete=complete_context,
            help="Context of the registry to copy from; the current one by default.",
        ),
    ):
        command = option(command)
    return command


@click.command("copy")
@click.argument("bentos", nargs=-1, shell_complete=complete_remote_bento)
@click.option(
    "--with-models/--without-models", default=True, show_default=True, help="Copy the models of the bentos, too."
)
@_copy_options
@asynchronous
async def copy_bentos(
    bentos: tuple[str, ...],
    context: str | None,
    target: str,
    select_all: bool,
    force: bool,
    keep_labels: bool,
    threads: int,
    with_models: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy BENTOS and their models to another registry.

    Each of BENTOS is a tag, a name for its newest version, or a pattern of tags. The bytes go through the memory of
    this machine, and not to its disk. An interrupted copy is resumed by the same command.

    The registries are contexts of `async-bento login`. Items that the target already has are skipped. If one of
    BENTOS cannot be copied, the command continues with the others. An error of the connection, the token or a setting
    ends the command.

    \b
    Examples:
      async-bento copy iris_classifier:v3 --from staging --to production
      async-bento copy "iris*:*" --to backup
      async-bento copy --all --to backup --dry-run
    """
    from async_bento.cli.dry_run import plan_copy

    options = _Options(RegistryOptions(None, context, as_json), target, select_all, dry_run)

    async def copy(api: AsyncBentoAPI, to: AsyncBentoAPI, tag: str) -> PushResult:
        return await api.copy(tag, to, force=force, keep_labels=keep_labels, with_models=with_models, threads=threads)

    await _copy(bentos, "bento", options, copy, partial(plan_copy, force=force, with_models=with_models))


@click.command("copy")
@click.argument("models", nargs=-1, shell_complete=complete_remote_model)
@_copy_options
@asynchronous
async def copy_models(
    models: tuple[str, ...],
    context: str | None,
    target: str,
    select_all: bool,
    force: bool,
    keep_labels: bool,
    threads: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy MODELS to another registry.

    Each of MODELS is a tag, a name for its newest version, or a pattern of tags. The bytes go through the memory of
    this machine, and not to its disk. An interrupted copy is resumed by the same command.

    The registries are contexts of `async-bento login`. Items that the target already has are skipped. If one of
    MODELS cannot be copied, the command continues with the others. An error of the connection, the token or a setting
    ends the command.

    \b
    Examples:
      async-bento models copy iris_weights:w1 --from staging --to production
      async-bento models copy "iris*:*" --to backup
    """
    from async_bento.cli.dry_run import plan_copy_model

    options = _Options(RegistryOptions(None, context, as_json), target, select_all, dry_run)

    async def copy(api: AsyncBentoAPI, to: AsyncBentoAPI, tag: str) -> PushResult:
        return await api.models.copy(tag, to, force=force, keep_labels=keep_labels, threads=threads)

    async def plan(api: AsyncBentoAPI, to: AsyncBentoAPI, tag: str) -> list[Planned]:
        return await plan_copy_model(api.models, to.models, tag, force=force)

    await _copy(models, "model", options, copy, plan)


async def _copy(
    arguments: tuple[str, ...],
    word: Literal["bento", "model"],
    options: _Options,
    copy: Callable[[AsyncBentoAPI, AsyncBentoAPI, str], Awaitable[PushResult]],
    plan: Callable[[AsyncBentoAPI, AsyncBentoAPI, str], Awaitable[list[Planned]]],
) -> None:
    """Copy the selected items in order, or print the plan."""
    from async_bento.api.async_api import AsyncBentoAPI

    check_arguments(arguments, word, "copy", select_all=options.select_all)
    source = options.source
    async with (
        source.make_transfer_api(is_single=is_single(arguments)) as api,
        AsyncBentoAPI(context=options.target, config=transfer_config(), progress=False) as to,
    ):
        selection = await select_remote(api if word == "bento" else api.models, arguments, word, options.select_all)
        if options.dry_run:
            from async_bento.cli.dry_run import plan_each

            await plan_each(partial(plan, api, to), selection, f"copy {{}} {word}s", as_json=source.as_json)
            return
        await push_each(partial(copy, api, to), selection, word, source.as_json, "copy")

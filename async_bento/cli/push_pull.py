"""`async-bento push` and `pull`, and the same commands for models."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import click

from async_bento.cli.completion import (
    complete_bento_to_push,
    complete_model_to_push,
    complete_remote_bento,
    complete_remote_model,
)
from async_bento.cli.errors import hint_at_list
from async_bento.cli.files import check_selection, pull_files, selection_options
from async_bento.cli.labels import find_labelled, parse_selection, pull_label_option, push_label_options
from async_bento.cli.options import (
    RegistryOptions,
    asynchronous,
    dry_run_option,
    pull_options,
    push_options,
    registry_options,
    warn_of_unknown_terms,
)
from async_bento.cli.output import print_pull, print_push, print_skipped, pull_as_json, push_as_json
from async_bento.cli.progress import is_skipped
from async_bento.cli.selection import (
    check_arguments,
    is_pattern,
    is_single,
    run_and_print,
    select_remote,
    select_stored,
)
from async_bento.errors import BentoError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.async_models import AsyncModelAPI
    from async_bento.api.push import PushResult
    from async_bento.cli.dry_run import Planned
    from async_bento.cli.selection import Selection
    from async_bento.store.store import BentoStore, ModelStore

T = TypeVar("T")

_OTHER_WORD = {"bento": "model", "model": "bento"}
_GROUP = {"bento": "", "model": "models "}


class Pulled(NamedTuple):
    """A pulled item."""

    tag: str
    path: Path


@click.command()
@click.argument("bentos", nargs=-1, shell_complete=complete_bento_to_push)
@push_options
@push_label_options
@dry_run_option
@click.option("--bare", is_flag=True, help="Push only the record, without files (for development).")
@registry_options
@asynchronous
async def push(
    registry: RegistryOptions,
    bentos: tuple[str, ...],
    select_all: bool,
    force: bool,
    threads: int,
    bare: bool,
    dry_run: bool,
    labels: dict[str, str],
    keep_labels: bool,
) -> None:
    """Push BENTOS and their models to the registry.

    Each of BENTOS is a tag, a pattern of tags or a directory. If one cannot be pushed, the command continues with the
    others. An error of the connection, the token or a setting ends the command.

    --label also labels BENTOS that the registry has already, and not their models. --force replaces the labels in
    the registry by those of BENTOS, and warns of the ones that it drops.

    \b
    Examples:
      async-bento push iris_classifier:latest
      async-bento push ./bentos/iris_classifier/v3 --force
      async-bento push iris_classifier:v3 --label stage=prod
      async-bento push iris_classifier:v1 "fraud_*:v2"
      async-bento push --all
    """
    from async_bento.store.store import BentoStore

    check_arguments(bentos, "bento", "push", select_all=select_all)
    selection = await select_stored(BentoStore(), bentos, select_all=select_all)
    async with registry.make_transfer_api(is_single=is_single(bentos)) as api:

        async def push_one(item: str) -> PushResult:
            return await api.push(item, force=force, bare=bare, threads=threads, labels=labels, keep_labels=keep_labels)

        if dry_run:
            from async_bento.cli.dry_run import PushPlan, plan_each, plan_push

            plan = partial(plan_push, api, options=PushPlan(force, bare, labels, keep_labels))
            plan_one = _explain_unstored(plan, "bento")
            await plan_each(plan_one, selection, "push {} bentos", as_json=registry.as_json)
            return
        await push_each(_explain_unstored(push_one, "bento"), selection, "bento", registry.as_json)


@click.command("push")
@click.argument("models", nargs=-1, shell_complete=complete_model_to_push)
@push_options
@push_label_options
@dry_run_option
@registry_options
@asynchronous
async def push_models(
    registry: RegistryOptions,
    models: tuple[str, ...],
    select_all: bool,
    force: bool,
    threads: int,
    dry_run: bool,
    labels: dict[str, str],
    keep_labels: bool,
) -> None:
    """Push MODELS to the registry.

    Each of MODELS is a tag, a pattern of tags or a directory. If one cannot be pushed, the command continues with the
    others. An error of the connection, the token or a setting ends the command.

    \b
    Examples:
      async-bento models push iris_weights:latest
      async-bento models push "iris_*"
    """
    from async_bento.store.store import ModelStore

    check_arguments(models, "model", "push", select_all=select_all)
    selection = await select_stored(ModelStore(), models, select_all=select_all)
    async with registry.make_transfer_api(is_single=is_single(models)) as api:

        async def push_one(item: str) -> PushResult:
            return await api.models.push(item, force=force, threads=threads, labels=labels, keep_labels=keep_labels)

        if dry_run:
            from async_bento.cli.dry_run import PushPlan, plan_each, plan_push_model

            options = PushPlan(force, labels=labels, keep_labels=keep_labels)
            plan = partial(plan_push_model, api.models, options=options)
            plan_one = _explain_unstored(plan, "model")
            await plan_each(plan_one, selection, "push {} models", as_json=registry.as_json)
            return
        await push_each(_explain_unstored(push_one, "model"), selection, "model", registry.as_json)


@click.command()
@click.argument("bentos", nargs=-1, shell_complete=complete_remote_bento)
@pull_options
@pull_label_option
@selection_options
@dry_run_option
@click.option("--with-models", "-m", is_flag=True, help="Also pull the models of the bentos.")
@registry_options
@asynchronous
async def pull(
    registry: RegistryOptions,
    bentos: tuple[str, ...],
    select_all: bool,
    force: bool,
    with_models: bool,
    output: Path | None,
    dry_run: bool,
    labels: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Pull BENTOS into the local store or a directory.

    Each of BENTOS is a tag, a name for its newest version, or a pattern of tags. If one cannot be pulled, the
    command continues with the others. An error of the connection, the token or a setting ends the command.

    With --output DIR, the file bento.yaml is at the top of DIR, and --with-models puts the models into DIR/models.
    Until the download is complete, DIR does not change. An interrupted pull into DIR starts again.

    \b
    Examples:
      async-bento pull iris_classifier --with-models
      async-bento pull iris_classifier:v3 fraud_detector --force
      async-bento pull iris_classifier --label stage=prod
      async-bento pull "iris*:*"
      async-bento pull iris_classifier:v3 --output ./iris_classifier
      async-bento pull iris_classifier:v3 --output ./sources --include "src/*.py"
    """
    check_arguments(bentos, "bento", "pull", select_all=select_all)
    label = parse_selection(labels, bentos, select_all=select_all)
    find = partial(find_labelled, registry, "bento", labels=label)
    _check_output(output, bentos, "bento", select_all)
    if include or exclude:
        check_selection(output, {"--with-models": with_models, "--dry-run": dry_run})
    async with registry.make_transfer_api(is_single=is_single(bentos), resumable=output is None) as api:
        if output and (include or exclude):
            await pull_files(registry, api.files(await find(bentos[0])), output, (include, exclude), force=force)
            return

        async def pull_one(tag: str) -> Pulled:
            try:
                bento = await api.pull(tag, force=force, with_models=with_models, path=output, label=label)
            except NotFoundError as error:
                raise await _explain_missing(error, tag, "bento", "pull", _is_remote(api.models, api, tag)) from error
            return Pulled(str(bento.tag), bento.path)

        selection = await select_remote(api, bentos, "bento", select_all)
        if dry_run:
            from async_bento.cli.dry_run import plan_each, plan_pull

            async def plan(tag: str) -> list[Planned]:
                return await plan_pull(api, await find(tag), force=force, with_models=with_models, output=output)

            await plan_each(plan, selection, "pull {} bentos", as_json=registry.as_json)
            return
        await _pull_each(pull_one, selection, "bento", registry.as_json)


@click.command("pull")
@click.argument("models", nargs=-1, shell_complete=complete_remote_model)
@pull_options
@pull_label_option
@selection_options
@dry_run_option
@click.option(
    "--query", metavar="QUERY", help="Pull the newest version that matches, such as label:stage=prod,stage=beta."
)
@registry_options
@asynchronous
async def pull_models(
    registry: RegistryOptions,
    models: tuple[str, ...],
    select_all: bool,
    force: bool,
    query: str | None,
    output: Path | None,
    dry_run: bool,
    labels: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> None:
    """Pull MODELS into the local store or a directory.

    Each of MODELS is a tag, a name for its newest version, or a pattern of tags. If one cannot be pulled, the
    command continues with the others. An error of the connection, the token or a setting ends the command.

    With --output DIR, the file model.yaml is at the top of DIR. Until the download is complete, DIR does not
    change. An interrupted pull into DIR starts again.

    \b
    Examples:
      async-bento models pull iris_weights:v3
      async-bento models pull iris_weights --label stage=prod
      async-bento models pull "iris*:*"
      async-bento models pull iris_weights --output /models/iris
    """
    warn_of_unknown_terms(query)
    check_arguments(models, "model", "pull", select_all=select_all)
    label = parse_selection(labels, models, select_all=select_all)
    find = partial(find_labelled, registry, "model", labels=label)
    _check_output(output, models, "model", select_all)
    if include or exclude:
        check_selection(output, {"--query": query, "--dry-run": dry_run})
    if dry_run and query:
        raise click.UsageError("--dry-run does not support --query.")
    async with registry.make_transfer_api(is_single=is_single(models), resumable=output is None) as api:
        if output and (include or exclude):
            await pull_files(registry, api.models.files(await find(models[0])), output, (include, exclude), force=force)
            return

        async def pull_one(tag: str) -> Pulled:
            try:
                model = await api.models.pull(tag, force=force, query=query, path=output, label=label)
            except NotFoundError as error:
                raise await _explain_missing(error, tag, "model", "pull", _is_remote(api, api.models, tag)) from error
            return Pulled(str(model.tag), model.path)

        selection = await select_remote(api.models, models, "model", select_all)
        if dry_run:
            from async_bento.cli.dry_run import plan_each, plan_pull_model

            async def plan(tag: str) -> list[Planned]:
                return await plan_pull_model(api.models, await find(tag), force=force, output=output)

            await plan_each(plan, selection, "pull {} models", as_json=registry.as_json)
            return
        await _pull_each(pull_one, selection, "model", registry.as_json)


def _check_output(output: Path | None, arguments: tuple[str, ...], word: str, select_all: bool) -> None:
    """Raise UsageError if several items would go into one directory."""
    if output and (select_all or len(arguments) > 1 or any(map(is_pattern, arguments))):
        raise click.UsageError(f"--output takes one {word}. Name one tag, or run the command once per {word}.")


async def push_each(
    push_one: Callable[[str], Awaitable[PushResult]],
    selection: Selection,
    word: Literal["bento", "model"],
    as_json: bool,
    verb: Literal["push", "copy"] = "push",
) -> None:
    """Push or copy the selected items in order."""
    skipped: list[str] = []

    def report(result: PushResult) -> None:
        if result.skipped:
            skipped.append(str(result.tag))
        if not as_json:
            print_push(result, word, verb)

    try:
        await run_and_print(push_one, selection, f"{verb} {{}} {word}s", report, push_as_json if as_json else None)
    finally:
        # Also after an error or Ctrl-C: the items were skipped all the same.
        print_skipped(skipped, word, verb)


async def _pull_each(
    pull_one: Callable[[str], Awaitable[Pulled]], selection: Selection, word: Literal["bento", "model"], as_json: bool
) -> None:
    """Pull the selected items in order."""
    skipped: list[str] = []

    def report(result: Pulled) -> None:
        if not selection.is_single and is_skipped(word, result.tag):
            skipped.append(result.tag)
        elif not as_json:
            print_pull(*result)

    try:
        await run_and_print(pull_one, selection, f"pull {{}} {word}s", report, pull_as_json if as_json else None)
    finally:
        print_skipped(skipped, word, "pull")


async def _explain_missing(
    error: NotFoundError, tag: str, word: Literal["bento", "model"], verb: str, is_other: Awaitable[bool]
) -> NotFoundError:
    """Name the right command if a tag is that of a model and not of a bento, or the reverse."""
    with suppress(BentoError):
        if await is_other:
            other = _OTHER_WORD[word]
            return NotFoundError(f"no {word} {tag}: it is a {other}. Run `async-bento {_GROUP[other]}{verb} {tag}`.")
    return error


def _explain_unstored(
    push_one: Callable[[str], Awaitable[T]], word: Literal["bento", "model"]
) -> Callable[[str], Awaitable[T]]:
    """Let a push name the right command for an item that is not in its local store."""
    from async_bento.store.store import BentoStore, ModelStore

    async def run(tag: str) -> T:
        try:
            return await push_one(tag)
        except NotFoundError as error:
            other = ModelStore() if word == "bento" else BentoStore()
            explained = _explain_missing(hint_at_list(error, word), tag, word, "push", _is_stored(other, tag))
            raise await explained from error

    return run


async def _is_stored(store: BentoStore | ModelStore, tag: str) -> bool:
    import anyio.to_thread

    return bool(await anyio.to_thread.run_sync(store.get, tag))


async def _is_remote(other: AsyncBentoAPI | AsyncModelAPI, own: AsyncBentoAPI | AsyncModelAPI, tag: str) -> bool:
    return await other.exists(tag) and not await own.exists(tag)

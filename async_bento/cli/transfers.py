"""`async-bento push` and `pull`, for bentos and for models."""

from __future__ import annotations

from functools import partial

import click

from async_bento.cli.completion import complete_bento, complete_model
from async_bento.cli.options import asynchronous, connection, make_api, moves_bytes
from async_bento.cli.said import say_pulled
from async_bento.cli.several import choose, push_each

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

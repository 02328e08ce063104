"""The `async-bento` command."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
from functools import partial, wraps
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from async_bento._version import __version__
from async_bento.errors import (
    APIConnectionError,
    AuthenticationError,
    BentoError,
    ConfigError,
    InvalidTagError,
    ModelsError,
    NotFoundError,
)
from async_bento.login import context as context_commands, login
from async_bento.progress import is_watched
from async_bento.table import say_table
from async_bento.units import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from pathlib import Path

    from typing_extensions import ParamSpec

    from async_bento.api import AsyncBentoAPI
    from async_bento.push import PushResult
    from async_bento.wire.schemas import ItemSchema

    P = ParamSpec("P")

T = TypeVar("T")

EPILOG = """\b
Exit codes:
  0    done, or nothing to do
  1    failed
  2    wrong usage, or a setting that does not fit
  3    no such bento or model
  4    the registry does not accept the token
  5    the registry cannot be reached
  130  interrupted
"""

_EXIT_CODES: Sequence[tuple[type[BentoError], int]] = (
    (ConfigError, 2),
    (InvalidTagError, 2),
    (NotFoundError, 3),
    (AuthenticationError, 4),
    (APIConnectionError, 5),
    (BentoError, 1),
)

_INTERRUPTED = 130
_GOING_ON = "async_bento.going_on"
"""What a command that moves bytes leaves in click's `meta`: what the same command does when it is given again."""


class PlainErrors(click.Group):
    """A group of commands whose errors are a line for a person and an exit code for a script."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command.

        Args:
            ctx: Its invocation.

        Returns:
            What it returned.
        """
        try:
            return super().invoke(ctx)
        except BentoError as error:
            click.secho(f"Error: {error}", err=True, fg="red")
            if isinstance(error, ModelsError):
                error = next(iter(error.failures.values()))  # they mostly fail for the same reason
            ctx.exit(next(code for kind, code in _EXIT_CODES if isinstance(error, kind)))
        except (KeyboardInterrupt, click.Abort):  # the latter is Ctrl-C, or the end of the input, at a prompt
            click.echo(f"Interrupted; {ctx.meta.get(_GOING_ON, 'the same command starts it again')}.", err=True)
            ctx.exit(_INTERRUPTED)


@click.group(cls=PlainErrors, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="async-bento")
@click.option("-v", "--verbose", count=True, help="Say more: -v what is tried again, -vv everything.")
def main(verbose: int) -> None:
    """Push and pull bentos and models: to BentoCloud, Yatai, or a registry of your own.

    The registry and its token are those of BENTO_CLOUD_API_ENDPOINT and BENTO_CLOUD_API_KEY, or of a context that
    `async-bento login` or `bentoml cloud login` stored: the one that BENTOML_CLOUD_CONTEXT names, or the current one.
    """
    logging.basicConfig(
        level=(logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)], format="%(levelname)s: %(message)s"
    )
    if not verbose:
        logging.getLogger("stamina").setLevel(logging.ERROR)  # it warns of every try


main.add_command(login)
main.add_command(context_commands)


@main.group()
def models() -> None:
    """Push and pull models."""


@main.group()
def registry() -> None:
    """Run a registry of your own."""


def _asynchronous(
    command: Callable[P, Coroutine[object, object, T]],
) -> Callable[P, T]:
    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        import asyncio

        import anyio

        # As asyncio.run, but that Ctrl-C cancels the command on Python 3.10 too, where it would strike anywhere.
        try:
            return anyio.run(partial(command, *args, **kwargs))
        except asyncio.CancelledError as error:  # what 3.10 makes of it
            raise KeyboardInterrupt from error

    return run


def _connection(command: Callable[P, T]) -> Callable[P, T]:
    """The options of every command that speaks to a registry."""
    command = click.option("--endpoint", metavar="URL", help="The registry, instead of the configured one.")(command)
    command = click.option("--context", metavar="NAME", help="A context, instead of the current one.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Write JSON, for a machine to read.")(command)


def _moves_bytes(command: Callable[P, T]) -> Callable[P, T]:
    """Let Ctrl-C say what is true of pushes and pulls alone."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        click.get_current_context().meta[_GOING_ON] = (
            "nothing is half-done. The same command goes on with the parts that have arrived, "
            "or starts again if none has"
        )
        return command(*args, **kwargs)

    return run


def _filters(command: Callable[P, T]) -> Callable[P, T]:
    """The options of every command that lists."""
    command = click.option("--search", metavar="TEXT", help="Only names that hold this.")(command)
    command = click.option("--query", "-q", metavar="QUERY", help="As in `label:team=nlp sort:size-desc`.")(command)
    return click.option("--limit", "-n", type=click.IntRange(min=1), help="The newest ones only.")(command)


_force_push = click.option("--force", "-f", is_flag=True, help="Push it also when the registry has it already.")
_force_pull = click.option("--force", "-f", is_flag=True, help="Replace the local copy, once the new one is whole.")
_threads = click.option(
    "--threads", "-t", type=click.IntRange(min=1), default=10, show_default=True, help="Parts in flight at once."
)


@main.command()
@click.argument("bento")
@_force_push
@click.option("--bare", is_flag=True, help="Push its record alone, without its files, for development.")
@_threads
@_connection
@_moves_bytes
@_asynchronous
async def push(
    bento: str, force: bool, bare: bool, threads: int, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """Push BENTO, a tag or a directory, and its models.

    \b
    Examples:
      async-bento push iris_classifier:latest
      async-bento push ./bentos/iris_classifier/v3 --force
    """
    async with _api(endpoint, context) as api:
        _say_pushed(await api.push(bento, force=force, bare=bare, threads=threads), "bento", as_json)


@models.command("push")
@click.argument("model")
@_force_push
@_threads
@_connection
@_moves_bytes
@_asynchronous
async def push_model(
    model: str, force: bool, threads: int, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """Push MODEL, a tag or a directory."""
    async with _api(endpoint, context) as api:
        _say_pushed(await api.models.push(model, force=force, threads=threads), "model", as_json)


@main.command()
@click.argument("tag")
@_force_pull
@click.option("--with-models", "-m", is_flag=True, help="Pull its models too.")
@_connection
@_moves_bytes
@_asynchronous
async def pull(
    tag: str, force: bool, with_models: bool, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """Pull the bento TAG; without a version, the newest.

    \b
    Examples:
      async-bento pull iris_classifier --with-models
      async-bento pull iris_classifier:v3 --force
    """
    async with _api(endpoint, context) as api:
        bento = await api.pull(tag, force=force, with_models=with_models)
    _say_pulled(str(bento.tag), bento.path, as_json)


@models.command("pull")
@click.argument("tag")
@_force_pull
@click.option("--query", "-q", metavar="QUERY", help="What the newest must match, like `label:stage=prod`.")
@_connection
@_moves_bytes
@_asynchronous
async def pull_model(
    tag: str, force: bool, query: str | None, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """Pull the model TAG; without a version, the newest."""
    async with _api(endpoint, context) as api:
        model = await api.models.pull(tag, force=force, query=query)
    _say_pulled(tag if model is None else str(model.tag), None if model is None else model.path, as_json)


@main.command("list")
@_filters
@_connection
@_asynchronous
async def list_bentos(
    search: str | None, query: str | None, limit: int | None, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """List the bentos on the registry, newest first."""
    async with _api(endpoint, context) as api:
        found = await api.list(search=search, query=query, limit=limit)
    _say_list(found.items, as_json)


@models.command("list")
@_filters
@_connection
@_asynchronous
async def list_models(
    search: str | None, query: str | None, limit: int | None, endpoint: str | None, context: str | None, as_json: bool
) -> None:
    """List the models on the registry, newest first."""
    async with _api(endpoint, context) as api:
        found = await api.models.list(search=search, query=query, limit=limit)
    _say_list(found.items, as_json)


@main.command()
@click.argument("tag")
@_connection
@_asynchronous
async def get(tag: str, endpoint: str | None, context: str | None, as_json: bool) -> None:
    """Show the record of the bento TAG on the registry; without a version, of the newest."""
    async with _api(endpoint, context) as api:
        _say_record(tag, await api.get(tag), as_json)


@models.command("get")
@click.argument("tag")
@_connection
@_asynchronous
async def get_model(tag: str, endpoint: str | None, context: str | None, as_json: bool) -> None:
    """Show the record of the model TAG on the registry; without a version, of the newest."""
    async with _api(endpoint, context) as api:
        _say_record(tag, await api.models.get(tag), as_json)


@registry.command()
@click.option("--root", type=click.Path(file_okay=False), help="A directory where everything is kept.")
@click.option("--s3", "bucket", metavar="BUCKET", help="A bucket where everything is kept, instead of a directory.")
@click.option("--s3-endpoint", metavar="URL", help="Where the bucket is, when it is not at AWS.")
@click.option("--s3-public-endpoint", metavar="URL", help="Where clients find the bucket, when that is elsewhere.")
@click.option("--s3-prefix", metavar="PREFIX", help="What all keys in the bucket begin with.")
@click.option("--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="0 for any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; this machine alone by default.")
@click.option(
    "--transmission",
    type=click.Choice(["presigned_url", "proxy", "auto"]),
    default="presigned_url",
    show_default=True,
    help="Which way the bytes go: in presigned parts, through the registry's API, or in one presigned PUT.",
)
@_asynchronous
async def serve(
    root: str | None,
    bucket: str | None,
    s3_endpoint: str | None,
    s3_public_endpoint: str | None,
    s3_prefix: str | None,
    port: int,
    host: str,
    transmission: Literal["presigned_url", "proxy", "auto"],
) -> None:
    """Run a registry in the foreground, until Ctrl-C.

    \b
    Examples:
      async-bento registry serve --root /srv/bentos
      async-bento registry serve --s3 my-bucket --s3-endpoint http://127.0.0.1:9000
    """
    import asyncio

    from async_bento.registry import LocalRegistry, S3Bucket

    if (root is None) == (bucket is None):
        raise click.UsageError("it needs either --root or --s3")
    if bucket is None and (s3_endpoint or s3_public_endpoint or s3_prefix):
        raise click.UsageError("--s3-endpoint, --s3-public-endpoint and --s3-prefix go with --s3")
    where: str | S3Bucket = root or ""
    if bucket is not None:
        where = S3Bucket(bucket, endpoint=s3_endpoint, public_endpoint=s3_public_endpoint, prefix=s3_prefix or "")
        logging.getLogger("botocore").setLevel(logging.INFO)  # what it would say at -vv holds session tokens
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with LocalRegistry(where, transmission=transmission, host=host, port=port) as local:
        click.echo(f"The registry in {where} listens on {local.endpoint}. Ctrl-C stops it. Clients need:", err=True)
        click.echo(f"export BENTO_CLOUD_API_ENDPOINT={local.endpoint}")
        click.echo(f"export BENTO_CLOUD_API_KEY={local.api_token}")
        await stop.wait()
    click.echo("The registry has stopped.", err=True)


def _api(endpoint: str | None, context: str | None) -> AsyncBentoAPI:
    from async_bento.api import AsyncBentoAPI

    return AsyncBentoAPI(endpoint=endpoint, context=context)


def _say_pushed(result: PushResult, word: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_pushed(result)))
    elif is_watched():
        return  # the bars have said it
    elif result.skipped:
        click.echo(f"The registry has the {word} {result.tag} already; --force pushes it anew.")
    elif result.parts == 0:
        click.echo(f"Pushed the record of the {word} {result.tag}.")
    else:
        parts = "" if result.parts == 1 else f" in {result.parts} parts"
        click.echo(f"Pushed the {word} {result.tag}: {human_size(result.bytes_sent)}{parts}, {result.seconds:.1f} s.")


def _pushed(result: PushResult) -> dict[str, object]:
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {**fields, "tag": str(result.tag), "models": [_pushed(model) for model in result.models]}


def _say_pulled(tag: str, path: Path | None, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"tag": tag, "path": None if path is None else str(path)}))
    elif path is None:
        click.echo(f"{tag} has no files on the registry: they live on the Hugging Face Hub.")
    else:
        click.echo(f"{tag} is in {path}")


def _say_list(items: Sequence[ItemSchema], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([_record(item) for item in items]))
        return
    if not items:
        click.echo("The registry has none.", err=True)
        return
    from async_bento.wire.shown import HEAD, row_of

    say_table(HEAD, [row_of(item) for item in items])


def _say_record(tag: str, item: ItemSchema, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_record(item)))
        return
    from async_bento.wire.shown import facts_of

    for name, fact in facts_of(item, f"{tag.partition(':')[0]}:{item.version}"):
        if fact:
            click.echo(f"{name + ':':13}{fact}")


def _record(item: ItemSchema) -> dict[str, object]:
    return item.model_dump(mode="json", by_alias=True, exclude={"presigned_upload_url", "presigned_download_url"})

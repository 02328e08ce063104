"""The `async-bento` command."""

from __future__ import annotations

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
from async_bento.said import say_list, say_pulled, say_record
from async_bento.several import choose, push_each

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from typing_extensions import ParamSpec

    from async_bento.api import AsyncBentoAPI
    from async_bento.doctor import Finding

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


def _exit_code(error: BentoError) -> int:
    return next(code for kind, code in _EXIT_CODES if isinstance(error, kind))


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
            ctx.exit(_exit_code(error))
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


def _label(_context: click.Context, _parameter: click.Parameter, labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        key, _, value = label.partition("=")
        if not key or not value or len(label.split()) > 1:
            raise click.BadParameter(f"{label!r} is no KEY=VALUE without spaces")
    return labels


def _matching(command: Callable[P, T]) -> Callable[P, T]:
    """The options of every command that looks for records."""
    command = click.option("--search", "-s", metavar="TEXT", help="Only names that hold this.")(command)
    return click.option(
        "--label", "-l", "labels", multiple=True, metavar="KEY=VALUE", callback=_label, help="Only with this label."
    )(command)


def _filters(command: Callable[P, T]) -> Callable[P, T]:
    """The options of every command that lists."""
    command = _matching(command)
    command = click.option("--query", "-q", metavar="QUERY", help="As in `label:team=nlp sort:size-desc`.")(command)
    return click.option("--limit", "-n", type=click.IntRange(min=1), help="The newest ones only.")(command)


def _asked(query: str | None, labels: tuple[str, ...]) -> str | None:
    return " ".join([*([query] if query else []), *(f"label:{label}" for label in labels)]) or None


_force_push = click.option("--force", "-f", is_flag=True, help="Push it also when the registry has it already.")
_force_pull = click.option("--force", "-f", is_flag=True, help="Replace the local copy, once the new one is whole.")
_threads = click.option(
    "--threads", "-t", type=click.IntRange(min=1), default=10, show_default=True, help="Parts in flight at once."
)


_everything = click.option("--all", "everything", is_flag=True, help="Push all there are.")


@main.command()
@click.argument("bentos", nargs=-1)
@_everything
@_force_push
@click.option("--bare", is_flag=True, help="Push its record alone, without its files, for development.")
@_threads
@_connection
@_moves_bytes
@_asynchronous
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
    async with _api(endpoint, context) as api:
        await push_each(partial(api.push, force=force, bare=bare, threads=threads), chosen, "bento", as_json)


@models.command("push")
@click.argument("models", nargs=-1)
@_everything
@_force_push
@_threads
@_connection
@_moves_bytes
@_asynchronous
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
    async with _api(endpoint, context) as api:
        await push_each(partial(api.models.push, force=force, threads=threads), chosen, "model", as_json)


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
    say_pulled(str(bento.tag), bento.path, as_json)


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
    """Pull the model TAG; without a version, the newest.

    \b
    Examples:
      async-bento models pull iris_weights:v3
      async-bento models pull iris_weights --query label:stage=prod
    """
    async with _api(endpoint, context) as api:
        model = await api.models.pull(tag, force=force, query=query)
    say_pulled(tag if model is None else str(model.tag), None if model is None else model.path, as_json)


@main.command("list")
@_filters
@_connection
@_asynchronous
async def list_bentos(
    search: str | None,
    labels: tuple[str, ...],
    query: str | None,
    limit: int | None,
    endpoint: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """List the bentos on the registry, newest first.

    \b
    Examples:
      async-bento list --limit 10
      async-bento list --search iris --label team=nlp
    """
    async with _api(endpoint, context) as api:
        found = await api.list(search=search, query=_asked(query, labels), limit=limit)
    say_list(found.items, as_json)


@models.command("list")
@_filters
@_connection
@_asynchronous
async def list_models(
    search: str | None,
    labels: tuple[str, ...],
    query: str | None,
    limit: int | None,
    endpoint: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """List the models on the registry, newest first.

    \b
    Examples:
      async-bento models list --limit 10
      async-bento models list --search iris --label team=nlp
    """
    async with _api(endpoint, context) as api:
        found = await api.models.list(search=search, query=_asked(query, labels), limit=limit)
    say_list(found.items, as_json)


@main.command()
@click.argument("tag", required=False)
@_matching
@_connection
@_asynchronous
async def get(
    tag: str | None,
    search: str | None,
    labels: tuple[str, ...],
    endpoint: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """Show the record of the bento TAG on the registry; without a version, of the newest.

    Without a tag, show the newest bento that matches.

    \b
    Examples:
      async-bento get iris:v3
      async-bento get --search iris --label team=nlp
    """
    _tag_or_filters(tag, search, labels)
    async with _api(endpoint, context) as api:
        if tag is not None:
            found = [await api.get(tag)]
        else:
            found = (await api.list(search=search, query=_asked(None, labels), limit=1)).items
    say_record(tag, found, as_json)


@models.command("get")
@click.argument("tag", required=False)
@_matching
@_connection
@_asynchronous
async def get_model(
    tag: str | None,
    search: str | None,
    labels: tuple[str, ...],
    endpoint: str | None,
    context: str | None,
    as_json: bool,
) -> None:
    """Show the record of the model TAG on the registry; without a version, of the newest.

    Without a tag, show the newest model that matches.

    \b
    Examples:
      async-bento models get iris:v3
      async-bento models get --search iris --label team=nlp
    """
    _tag_or_filters(tag, search, labels)
    async with _api(endpoint, context) as api:
        if tag is not None:
            found = [await api.models.get(tag)]
        else:
            found = (await api.models.list(search=search, query=_asked(None, labels), limit=1)).items
    say_record(tag, found, as_json)


@main.command()
@_connection
@_asynchronous
async def doctor(endpoint: str | None, context: str | None, as_json: bool) -> None:
    """Look at all that a push and a pull need, and say what to do about what is wrong.

    These are the registry, the token, this machine's clock, the local store, the room on its disk, and the versions at
    work. The exit code is that of the first fault.

    \b
    Examples:
      async-bento doctor
      async-bento doctor --context staging
    """
    from async_bento.doctor import examine

    findings: list[Finding] = []
    async for finding in examine(endpoint, context):
        findings.append(finding)
        if not as_json:
            word = click.style("ok  ", fg="green") if finding.error is None else click.style("FAIL", fg="red")
            click.echo(f"{word}  {finding.name + ':':10}{finding.said}")
    if as_json:
        looked_at = [{"name": one.name, "ok": one.error is None, "said": one.said} for one in findings]
        click.echo(json.dumps(looked_at))
    wrong = next((one.error for one in findings if one.error is not None), None)
    if wrong is not None:
        click.get_current_context().exit(_exit_code(wrong))


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


def _tag_or_filters(tag: str | None, search: str | None, labels: tuple[str, ...]) -> None:
    if (tag is None) == (search is None and not labels):
        raise click.UsageError("it needs either a tag, or --search or --label")

"""`async-bento login` and `async-bento context`: which registry, and the token for it, kept in `.yatai.yaml`."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import click

from async_bento._core.urls import check_endpoint
from async_bento.cli.completion import complete_context
from async_bento.cli.options import as_json as _json
from async_bento.cli.output import say_table
from async_bento.errors import AuthenticationError, ConfigError
from async_bento.rest.contexts import Context, contexts_path, read_contexts, store_context, use_context
from async_bento.rest.credentials import (
    DEFAULT_ENDPOINT,
    Credentials,
    context_of_environment,
    find_credentials,
    needs_contexts,
    overriding_variables,
)

if TYPE_CHECKING:
    from async_bento.rest.schemas import UserSchema


@click.command()
@click.option("--endpoint", metavar="URL", help=f"The registry; asked for, or {DEFAULT_ENDPOINT}.")
@click.option("--api-token-stdin", is_flag=True, help="Read the token from standard input.")
@click.option(
    "--name", metavar="NAME", help="The context to store it as; by default $BENTOML_CLOUD_CONTEXT, or the current one."
)
def login(endpoint: str | None, api_token_stdin: bool, name: str | None) -> None:
    """Check an API token, and store it as a context, which becomes the current one.

    The token is that of standard input, or of BENTO_CLOUD_API_KEY, or is asked for. There is no option for it: what
    stands on a command line, every user of the machine can read. BentoML reads the same contexts.

    \b
    Examples:
      async-bento login
      async-bento login --endpoint https://registry.example.com --name staging
      async-bento login --api-token-stdin < token
    """
    path = contexts_path()
    known = read_contexts(path)  # a file that is broken is told before anything is asked
    stored_as = (context_of_environment() or known.current_context_name) if name is None else name
    if not stored_as.strip():
        raise ConfigError("a context needs a name")
    earlier = known.find(stored_as)
    credentials = _credentials(endpoint, api_token_stdin, earlier)
    if name is None and earlier and earlier.endpoint.rstrip("/") != credentials.endpoint:
        raise ConfigError(
            f"the context {stored_as!r} is for {earlier.endpoint}, not for {credentials.endpoint}: give the new one a "
            f"name by --name, or replace that one by --name {stored_as}"
        )
    import anyio  # when it is needed

    user = anyio.run(_whose, credentials)
    context = Context(
        name=stored_as, endpoint=credentials.endpoint, api_token=credentials.api_token, email=user.email or None
    )
    store_context(path, context)
    who = f"{user.name} ({user.email})" if user.email else user.name
    click.echo(f"Logged in to {credentials.endpoint} as {who}.")
    click.echo(f"Stored as the context {stored_as!r}, which is the current one now, in {path}")
    _warn_of_variables(stored_as)


@click.group()
def context() -> None:
    """Choose among the registries one has logged in to."""


@context.command("list")
@_json
def list_contexts(as_json: bool) -> None:
    """List the contexts; a star marks the current one.

    \b
    Examples:
      async-bento context list
    """
    path = contexts_path()
    known = read_contexts(path)
    if as_json:
        click.echo(json.dumps([_record(one, known.current_context_name) for one in known.contexts]))
    elif not known.contexts:
        click.echo(f"There are no contexts in {path}; `async-bento login` stores one.", err=True)
    else:
        stars = ["*" if one.name == known.current_context_name else "" for one in known.contexts]
        rows = [
            (star, one.name, one.endpoint, one.email or "") for star, one in zip(stars, known.contexts, strict=True)
        ]
        say_table(("", "NAME", "ENDPOINT", "EMAIL"), rows)
    _warn_of_variables(known.current_context_name)


@context.command()
@click.argument("name", shell_complete=complete_context)
def use(name: str) -> None:
    """Make the context NAME the current one.

    \b
    Examples:
      async-bento context use staging
    """
    chosen = use_context(contexts_path(), name)
    click.echo(f"The current context is {chosen.name!r} now: {chosen.endpoint}")
    _warn_of_variables(chosen.name)


@context.command()
@_json
def current(as_json: bool) -> None:
    """Show the current context's name.

    \b
    Examples:
      async-bento context current
      async-bento context current --json
    """
    path = contexts_path()
    known = read_contexts(path)
    found = known.find(known.current_context_name)
    if found is None:
        raise ConfigError(f"no context is the current one in {path}: `async-bento login` stores one")
    click.echo(json.dumps(_record(found, found.name)) if as_json else found.name)
    _warn_of_variables(found.name)


def _credentials(endpoint: str | None, from_stdin: bool, earlier: Context | None) -> Credentials:
    variable_has_token = not needs_contexts()
    if variable_has_token and not from_stdin:
        return find_credentials(endpoint)  # which holds a token to the endpoint that was set with it
    if not from_stdin and not _can_ask():
        raise ConfigError("no API token: pipe it in with --api-token-stdin, or set BENTO_CLOUD_API_KEY")
    endpoint = endpoint or os.environ.get("ASYNC_BENTO_ENDPOINT") or os.environ.get("BENTO_CLOUD_API_ENDPOINT")
    if not endpoint:
        endpoint = earlier.endpoint if earlier else DEFAULT_ENDPOINT
        if not from_stdin:
            endpoint = click.prompt("Endpoint", default=endpoint, type=str)
    endpoint = check_endpoint(endpoint)
    token = sys.stdin.readline() if from_stdin else click.prompt("API token (not shown)", hide_input=True, type=str)
    if not token.strip():
        raise ConfigError("no API token came by standard input")
    return find_credentials(endpoint, token.strip())


def _can_ask() -> bool:
    return sys.stdin.isatty()


async def _whose(credentials: Credentials) -> UserSchema:
    from async_bento.rest.client import RestApiClient

    async with RestApiClient(credentials.endpoint, credentials.api_token) as client:
        try:
            return await client.current_user()
        except AuthenticationError as error:
            raise AuthenticationError(
                f"the registry at {credentials.endpoint} does not accept this API token; nothing was stored",
                status=error.status,
                server_message=error.server_message,
                trace_id=error.trace_id,
            ) from error


def _record(one: Context, current_name: str) -> dict[str, object]:
    return {"name": one.name, "endpoint": one.endpoint, "email": one.email, "current": one.name == current_name}


def _warn_of_variables(current: str) -> None:
    if stronger := overriding_variables(current):
        verb = "is" if len(stronger) == 1 else "are"
        click.echo(
            f"Note: {' and '.join(stronger)} {verb} set, and stronger than the current context; unset to use it.",
            err=True,
        )

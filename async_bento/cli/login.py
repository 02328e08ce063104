"""`async-bento login` and `async-bento context`: store registries and their tokens in `.yatai.yaml`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from async_bento._core.urls import check_endpoint
from async_bento.cli.completion import complete_context
from async_bento.cli.groups import Group
from async_bento.cli.options import RegistryOptions, asynchronous, json_option, registry_options
from async_bento.cli.output import print_json, print_table
from async_bento.errors import AuthenticationError, ConfigError, with_message
from async_bento.rest.contexts import (
    Context,
    contexts_path,
    read_contexts,
    remove_context,
    rename_context,
    store_context,
    use_context,
)
from async_bento.rest.credentials import (
    ARGUMENT,
    DEFAULT_ENDPOINT,
    Credentials,
    context_of_environment,
    endpoint_of_environment,
    find_credentials,
    needs_contexts,
    overriding_variables,
)

if TYPE_CHECKING:
    from async_bento.rest.contexts import Contexts
    from async_bento.rest.schemas import UserSchema


@click.command()
@click.option("--endpoint", metavar="URL", help=f"Registry to log in to.  [default: prompt, or {DEFAULT_ENDPOINT}]")
@click.option("--api-token-stdin", is_flag=True, help="Read the token from standard input.")
@click.option(
    "--name", metavar="NAME", help="Name of the context.  [default: $BENTOML_CLOUD_CONTEXT, or the current context]"
)
def login(endpoint: str | None, api_token_stdin: bool, name: str | None) -> None:
    """Verify an API token, and store it as the current context.

    The token comes from standard input, from BENTO_CLOUD_API_KEY or from a prompt. There is no --api-token option,
    because other users can see command lines. BentoML uses the same contexts.

    \b
    Examples:
      async-bento login
      async-bento login --endpoint https://registry.example.com --name staging
      async-bento login --api-token-stdin < token
    """
    path = contexts_path()
    known = read_contexts(path)  # before the prompts, so that a broken file is reported first
    stored_as = (context_of_environment() or known.current_context_name) if name is None else name
    if not stored_as.strip():
        raise ConfigError("cannot store the context: its name is empty. Pass a name with --name.")
    earlier = known.find(stored_as)
    credentials = _find_credentials(endpoint, api_token_stdin, earlier)
    if name is None and earlier and earlier.endpoint.rstrip("/") != credentials.endpoint:
        raise ConfigError(
            f"the context {stored_as!r} is for {earlier.endpoint}, not for {credentials.endpoint}. "
            f"Name a new context with --name, or replace this one with --name {stored_as}."
        )
    import anyio  # after the prompts, which appear sooner without it

    user = anyio.run(_fetch_user, credentials)
    context = Context(
        name=stored_as, endpoint=credentials.endpoint, api_token=credentials.api_token, email=user.email or None
    )
    store_context(path, context)
    click.echo(f"Logged in to {credentials.endpoint} as {user.name}{f' ({user.email})' if user.email else ''}.")
    click.echo(f"Stored as the current context {stored_as!r} in {path}")
    _warn_of_overrides(stored_as)


@click.command()
@click.option(
    "--name", metavar="NAME", shell_complete=complete_context, help="Context to remove.  [default: the current one]"
)
def logout(name: str | None) -> None:
    """Remove a stored API token.

    The token stays valid: revoke it in the registry if others may know it.

    \b
    Examples:
      async-bento logout
      async-bento logout --name staging
    """
    path = contexts_path()
    known = read_contexts(path)
    if name is None:
        name = context_of_environment() or known.current_context_name
        if not known.find(name):
            raise ConfigError(f"not logged in: no current context in {path}. `async-bento context list` shows all.")
    removed = remove_context(path, name)
    click.echo(f"Logged out of {removed.endpoint}: removed the context {name!r} from {path}")
    _report_remaining(removed, known)


@click.command()
@registry_options
@asynchronous
async def whoami(registry: RegistryOptions) -> None:
    """Show the user, the registry and the source of the API token.

    \b
    Examples:
      async-bento whoami
      async-bento whoami --context staging --json
    """
    from async_bento.rest.client import RestApiClient

    async with RestApiClient(registry.endpoint, context=registry.context) as client:
        user = await client.current_user()
        credentials = client.credentials
    if registry.as_json:
        facts = {"name": user.name, "email": user.email, "endpoint": credentials.endpoint, "token": credentials.source}
        print_json(facts)
    else:
        email = f" ({user.email})" if user.email else ""
        click.echo(f"{user.name}{email} at {credentials.endpoint}, with the token from {credentials.source}")


@click.group(cls=Group)
def context() -> None:
    """Switch between registries you have logged in to."""


@context.command("list")
@json_option
def list_contexts(as_json: bool) -> None:
    """List the contexts; an asterisk marks the current one.

    \b
    Examples:
      async-bento context list
    """
    path = contexts_path()
    known = read_contexts(path)
    current = known.current_context_name
    if as_json:
        print_json([_context_as_json(each, current) for each in known.contexts])
    elif not known.contexts:
        click.echo(f"No contexts in {path}. Run `async-bento login` to add one.", err=True)
    else:
        rows = [
            ("*" if each.name == current else "", each.name, each.endpoint, each.email or "") for each in known.contexts
        ]
        print_table(("", "NAME", "ENDPOINT", "EMAIL"), rows)
    _warn_of_overrides(current)


@context.command()
@click.argument("name", shell_complete=complete_context)
def use(name: str) -> None:
    """Make NAME the current context.

    \b
    Examples:
      async-bento context use staging
    """
    selected = use_context(contexts_path(), name)
    click.echo(f"Switched to the context {selected.name!r} for {selected.endpoint}")
    _warn_of_overrides(selected.name)


@context.command()
@click.argument("name", shell_complete=complete_context)
def remove(name: str) -> None:
    """Remove the context NAME and its API token.

    \b
    Examples:
      async-bento context remove staging
    """
    path = contexts_path()
    known = read_contexts(path)
    removed = remove_context(path, name)
    click.echo(f"Removed the context {name!r} for {removed.endpoint}")
    _report_remaining(removed, known)


@context.command()
@click.argument("old", shell_complete=complete_context)
@click.argument("new")
def rename(old: str, new: str) -> None:
    """Rename the context OLD to NEW.

    \b
    Examples:
      async-bento context rename default staging
    """
    rename_context(contexts_path(), old, new)
    click.echo(f"Renamed the context {old!r} to {new!r}")


@context.command("current")
@json_option
def show_current_context(as_json: bool) -> None:
    """Show the name of the current context.

    \b
    Examples:
      async-bento context current
      async-bento context current --json
    """
    path = contexts_path()
    known = read_contexts(path)
    current = known.find(known.current_context_name)
    if current is None:
        raise ConfigError(f"no current context in {path}. Run `async-bento login` to add one.")
    if as_json:
        print_json(_context_as_json(current, current.name))
    else:
        click.echo(current.name)
    _warn_of_overrides(current.name)


def _find_credentials(endpoint: str | None, from_stdin: bool, earlier: Context | None) -> Credentials:
    """Find the endpoint and the token in the options, in the environment or by prompts."""
    has_token_variable = not needs_contexts()
    if has_token_variable and not from_stdin:
        return find_credentials(endpoint)  # which sends the variable's token only to the variable's endpoint
    if not from_stdin and not _can_prompt():
        raise ConfigError(
            "no API token: standard input is not a terminal. "
            "Pipe the token in with --api-token-stdin, or set BENTO_CLOUD_API_KEY."
        )
    endpoint = endpoint or endpoint_of_environment()
    # The prompts are on standard error: standard output may be redirected.
    if not endpoint:
        endpoint = earlier.endpoint if earlier else DEFAULT_ENDPOINT
        if not from_stdin:
            endpoint = click.prompt("Endpoint", default=endpoint, err=True, type=str)
    endpoint = check_endpoint(endpoint.strip())
    token = _read_line() if from_stdin else click.prompt("API token (hidden)", hide_input=True, err=True, type=str)
    if not token.strip():
        raise ConfigError("no API token: the input is empty. Enter or pipe in a token.")
    try:
        return find_credentials(endpoint, token.strip())
    except ConfigError as error:
        raise with_message(error, str(error).replace(ARGUMENT, "the input")) from None


def _can_prompt() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _read_line() -> str:
    return "" if sys.stdin is None else sys.stdin.readline()  # None if standard input is closed


async def _fetch_user(credentials: Credentials) -> UserSchema:
    from async_bento.rest.client import RestApiClient

    async with RestApiClient(credentials.endpoint, credentials.api_token) as client:
        try:
            return await client.current_user()
        except AuthenticationError as error:
            raise AuthenticationError(
                f"cannot log in: the registry at {credentials.endpoint} does not accept this API token. "
                "Check the token; nothing was stored.",
                status=error.status,
                server_message=error.server_message,
                trace_id=error.trace_id,
            ) from error


def _context_as_json(context: Context, current: str) -> dict[str, object]:
    return {
        "name": context.name,
        "endpoint": context.endpoint,
        "email": context.email,
        "current": context.name == current,
    }


def _report_remaining(removed: Context, known: Contexts) -> None:
    """Name what selects a registry after a context was removed: another context, or variables."""
    if removed.name == known.current_context_name:
        others = [each.name for each in known.contexts if each.name != removed.name]
        remedy = f"Select {' or '.join(others)} with `async-bento context use NAME`" if others else ""
        click.echo(f"No context is current now. {remedy or 'Run `async-bento login` to add one'}.", err=True)
    variables = overriding_variables(known.current_context_name)
    if variables:
        verb, pronoun = ("selects", "it") if len(variables) == 1 else ("select", "them")
        click.echo(f"Note: {' and '.join(variables)} still {verb} a registry. Unset {pronoun} to log out.", err=True)


def _warn_of_overrides(current: str) -> None:
    variables = overriding_variables(current)
    if not variables:
        return
    verb, pronoun = ("overrides", "it") if len(variables) == 1 else ("override", "them")
    click.echo(
        f"Note: {' and '.join(variables)} {verb} the current context. Unset {pronoun} to use the context.", err=True
    )

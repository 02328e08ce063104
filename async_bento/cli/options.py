"""What several commands have in common: their options, and how they are run."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, TypeVar

import click

from async_bento.cli.completion import complete_context
from async_bento.cli.errors import noting, will_go_on

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from typing_extensions import ParamSpec

    from async_bento.api.async_api import AsyncBentoAPI

    P = ParamSpec("P")

T = TypeVar("T")


def asynchronous(command: Callable[P, Coroutine[object, object, T]]) -> Callable[P, T]:
    """Run a command on an event loop of its own.

    Args:
        command: The command.

    Returns:
        What click can call.
    """

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


def moves_bytes(command: Callable[P, T]) -> Callable[P, T]:
    """Let Ctrl-C say what is true of pushes and pulls alone.

    Args:
        command: A push or a pull.

    Returns:
        The same.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        will_go_on()
        return command(*args, **kwargs)

    return run


as_json = click.option("--json", "as_json", is_flag=True, help="Write JSON, for a machine to read.")


def connection(command: Callable[P, T]) -> Callable[P, T]:
    """Add the options of every command that speaks to a registry.

    Args:
        command: The command.

    Returns:
        The same.
    """
    command = click.option("--endpoint", metavar="URL", help="The registry, instead of the configured one.")(command)
    command = click.option(
        "--context", metavar="NAME", shell_complete=complete_context, help="A context, instead of the current one."
    )(command)
    return as_json(command)


def matching(command: Callable[P, T]) -> Callable[P, T]:
    """Add the options of every command that looks for records.

    Args:
        command: The command.

    Returns:
        The same.
    """
    command = click.option("--search", "-s", metavar="TEXT", help="Only names that hold this.")(command)
    return click.option(
        "--label", "-l", "labels", multiple=True, metavar="KEY=VALUE", callback=_label, help="Only with this label."
    )(command)


def _label(_context: click.Context, _parameter: click.Parameter, labels: tuple[str, ...]) -> tuple[str, ...]:
    for label in labels:
        key, _, value = label.partition("=")
        if not key or not value or len(label.split()) > 1:
            raise click.BadParameter(f"{label!r} is no KEY=VALUE without spaces")
    return labels


def make_api(endpoint: str | None, context: str | None) -> AsyncBentoAPI:
    """Make the client of a command.

    Args:
        endpoint: The registry, instead of the configured one.
        context: A context, instead of the current one.

    Returns:
        The client.
    """
    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.progress.listeners import choose_listener

    listener = choose_listener(None)
    return AsyncBentoAPI(endpoint=endpoint, context=context, progress=noting(listener) if listener else False)

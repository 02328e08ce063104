"""The options --progress and --quiet, accepted before and after the name of a command."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_bento.progress.events import ProgressListener

CommandT = TypeVar("CommandT", bound="Callable[..., Any]")

Mode = Literal["bars", "lines", "json", "none"]
_MODES = ("auto", "bars", "lines", "json", "none")

# Keys of click's `Context.meta`, which a group shares with its commands.
_MODE = "async_bento.progress"
_QUIET = "async_bento.quiet"


def progress_options(command: CommandT) -> CommandT:
    """Add --progress and --quiet; the values of the last ones on the line count."""
    command = click.option(
        "--progress",
        type=click.Choice(_MODES),
        envvar="ASYNC_BENTO_PROGRESS",
        show_envvar=True,
        expose_value=False,
        callback=_set_mode,
        help="Progress on standard error: bars on a terminal and lines elsewhere (auto), JSON lines, or none.",
    )(command)
    return click.option(
        "--quiet", "-q", is_flag=True, expose_value=False, callback=_set_quiet, help="Print errors only."
    )(command)


def _set_mode(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    is_from_environment = ctx.get_parameter_source("progress") is ParameterSource.ENVIRONMENT
    if value is not None and not (is_from_environment and _MODE in ctx.meta):  # the group has set it
        ctx.meta[_MODE] = value


def _set_quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_QUIET] = True
        logging.disable(logging.WARNING)
        ctx.call_on_close(lambda: logging.disable(logging.NOTSET))


def is_quiet() -> bool:
    """Whether the running command prints errors only."""
    return _QUIET in click.get_current_context().meta


def progress_mode() -> Mode:
    """How the running command shows progress."""
    mode: Literal["auto"] | Mode = click.get_current_context().meta.get(_MODE, "auto")
    if is_quiet():
        return "none"
    if mode == "auto":
        from async_bento.progress.events import is_watched

        return "bars" if is_watched() else "lines"
    return mode


def make_listener() -> ProgressListener | Literal[False]:
    """Make the progress listener of the running command; False for none."""
    from async_bento.progress.listeners import JsonListener, LineListener, TqdmListener

    mode = progress_mode()
    if mode == "bars":
        return TqdmListener()
    if mode == "lines":
        return LineListener(results=False)  # the command prints them on standard output
    return JsonListener() if mode == "json" else False

"""The options --progress and --quiet, accepted before and after the name of a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click
from click.core import ParameterSource

from async_bento.cli.errors import expects_json
from async_bento.cli.logs import CommandT, is_quiet, quiet_option

if TYPE_CHECKING:
    from async_bento.progress.events import ProgressEvent, ProgressListener

Mode = Literal["bars", "lines", "json", "none"]
_MODES = ("auto", "bars", "lines", "json", "none")

_MODE = "async_bento.progress"  # a key of click's `Context.meta`, which a group shares with its commands
_SKIPPED = "async_bento.skipped"


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
    return quiet_option(command)


def _set_mode(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    is_from_environment = ctx.get_parameter_source("progress") is ParameterSource.ENVIRONMENT
    if value is not None and not (is_from_environment and _MODE in ctx.meta):  # the group has set it
        ctx.meta[_MODE] = value


def progress_mode() -> Mode:
    """How the running command shows progress; with --json, only as it is asked to."""
    ctx = click.get_current_context()
    mode: Literal["auto"] | Mode = ctx.meta.get(_MODE, "auto")
    if is_quiet() or (mode == "auto" and expects_json(ctx)):
        return "none"
    if mode == "auto":
        from async_bento.progress.events import is_watched

        return "bars" if is_watched() else "lines"
    return mode


def make_listener(*, is_single: bool) -> ProgressListener:
    """Make the progress listener of the running command, which transfers one item or several."""
    from async_bento.progress.listeners import CommandBars, JsonListener, LineListener, TqdmListener

    mode, ctx = progress_mode(), click.get_current_context()
    listener: ProgressListener | None = None
    if mode == "bars" and is_single:
        listener = TqdmListener()
    elif mode == "bars":
        listener = bars = CommandBars()
        ctx.call_on_close(bars.close)
    elif mode == "lines":
        listener = LineListener(results=False)  # the command prints them on standard output
    elif mode == "json":
        listener = JsonListener()
    skipped = ctx.meta[_SKIPPED] = set[tuple[str, str]]()

    def record(event: ProgressEvent) -> None:
        if event.phase == "skipped":
            skipped.add((event.kind, event.tag))
        if listener is not None:
            listener(event)

    return record


def is_skipped(word: str, tag: str) -> bool:
    """Whether the running command has skipped a bento or model, since it is already pushed or pulled."""
    return (word, tag) in click.get_current_context().meta[_SKIPPED]

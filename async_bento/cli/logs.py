"""The log of a command, on standard error, and the options --verbose and --quiet."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from async_bento.cli.errors import expects_json

if TYPE_CHECKING:
    from collections.abc import Callable

    StreamHandler = logging.StreamHandler[TextIO]
else:
    StreamHandler = logging.StreamHandler  # not generic at runtime before Python 3.11

CommandT = TypeVar("CommandT", bound="Callable[..., Any]")

_REPEAT_AFTER = 5.0  # seconds until the same line is written again

# Keys of click's `Context.meta`, which a group shares with its commands.
_VERBOSE = "async_bento.verbose"
_QUIET = "async_bento.quiet"


def set_up_logging(ctx: click.Context) -> None:
    """Log warnings and waits for the registry, and what --verbose asks for, until the command ends."""
    handler = _Handler()
    handler.addFilter(_RepetitionFilter())
    logging.basicConfig(format="%(levelname)s: %(message)s", handlers=[handler])
    ctx.call_on_close(lambda: logging.disable(logging.NOTSET))


def accept_verbose(command: click.Command, *, hidden: bool = True) -> None:
    """Add --verbose to a command, once; the help of the root alone shows it. All of those on a line count."""
    if any("-v" in parameter.opts for parameter in command.params):
        return
    text = "Log more, before or after the command (-v: every retry, -vv: every request)."
    option = ["-v", "--verbose"]
    command.params.append(
        click.Option(option, count=True, expose_value=False, callback=_add_verbose, hidden=hidden, help=text)
    )


def quiet_option(command: CommandT) -> CommandT:
    """Add --quiet."""
    return click.option(
        "--quiet", "-q", is_flag=True, expose_value=False, callback=_set_quiet, help="Print errors only."
    )(command)


def is_quiet() -> bool:
    """Whether the running command prints errors only."""
    return _QUIET in click.get_current_context().meta


def _add_verbose(ctx: click.Context, _parameter: click.Parameter, count: int) -> None:
    ctx.meta[_VERBOSE] = ctx.meta.get(_VERBOSE, 0) + count
    _set_levels(ctx)


def _set_quiet(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_QUIET] = True
        _set_levels(ctx)


def _set_levels(ctx: click.Context) -> None:
    """Set what is logged: only errors with --quiet; nothing with --json, whose error is the only output."""
    verbose: int = ctx.meta.get(_VERBOSE, 0)
    logging.getLogger("async_bento").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    # Retries of requests to the registry, which the command waits for without any other sign of progress.
    logging.getLogger("async_bento.rest").setLevel(logging.NOTSET if verbose else logging.INFO)
    if expects_json(ctx) and not verbose:
        logging.disable(logging.CRITICAL)
    else:
        logging.disable(logging.WARNING if _QUIET in ctx.meta else logging.NOTSET)


class _Handler(StreamHandler):
    """Writes above progress bars, if there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with its traceback only for -vv."""
        if record.exc_info and not logging.getLogger("async_bento").isEnabledFor(logging.DEBUG):
            _, reason, _ = record.exc_info
            record = copy(record)
            record.exc_info = record.exc_text = None
            return f"{super().format(record)} ({reason})"
        return super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
        if tqdm is None:
            super().emit(record)
        else:
            with suppress(OSError):  # after SIGHUP, the terminal is gone
                tqdm.write(self.format(record), file=self.stream)


class _RepetitionFilter(logging.Filter):
    """Drops retries that thirty models of a bento have for the same reason."""

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[tuple[object, ...], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        # The handler is the root's: a line may be of any library, and an error here would end the call that logs it.
        arguments = record.args if isinstance(record.args, tuple) else ()
        if str(record.msg).startswith("retrying") and len(arguments) == 4:  # noqa: PLR2004 - as `Retries` logs them
            attempt, _, _, error = arguments
            key, now = (attempt, str(error)), time.monotonic()
            if now - self._written.get(key, -_REPEAT_AFTER) < _REPEAT_AFTER:
                return False
            self._written[key] = now
        return True

"""Exit codes, and the errors that the command reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from async_bento.errors import (
    APIConnectionError,
    AuthenticationError,
    BentoError,
    ConfigError,
    InvalidTagError,
    ModelsError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from async_bento.progress.events import ProgressEvent, ProgressListener

_EXIT_CODES: Sequence[tuple[type[BentoError], int]] = (
    (ConfigError, 2),
    (InvalidTagError, 2),
    (NotFoundError, 3),
    (AuthenticationError, 4),
    (APIConnectionError, 5),
    (BentoError, 1),
)

# Keys of click's `Context.meta`.
_RESUMABLE = "async_bento.resumable"
_REPORTED = "async_bento.reported"


class PushesError(BentoError):
    """Some of several pushes failed; `failures` has the error of each tag."""

    def __init__(self, message: str, *, failures: Mapping[str, BentoError]) -> None:
        super().__init__(message)
        self.failures = failures


def exit_code(error: BentoError) -> int:
    """Map an error to an exit code; of several errors, the first one decides."""
    while isinstance(error, (ModelsError, PushesError)):
        error = next(iter(error.failures.values()))
    return next(code for error_type, code in _EXIT_CODES if isinstance(error, error_type))


def mark_resumable() -> None:
    """Record that the running command resumes after an interruption."""
    click.get_current_context().meta[_RESUMABLE] = True


def interruption_message(ctx: click.Context) -> str:
    """Write the message for Ctrl-C."""
    return "Interrupted." + (" Run the same command again to resume." if ctx.meta.get(_RESUMABLE) else "")


def recording_failures(listener: ProgressListener) -> Callable[[ProgressEvent], None]:
    """Wrap a progress listener to record the failures it has shown, for `is_reported`."""
    reported: set[str] = click.get_current_context().meta.setdefault(_REPORTED, set())

    def record(event: ProgressEvent) -> None:
        listener(event)
        if event.phase == "failed":
            reported.add(event.message)

    return record


def is_reported(ctx: click.Context, error: BentoError) -> bool:
    """Check whether a progress listener has shown this error."""
    return str(error) in ctx.meta.get(_REPORTED, ())

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
    from collections.abc import Mapping, Sequence

_EXIT_CODES: Sequence[tuple[type[BentoError], int]] = (
    (ConfigError, 2),
    (InvalidTagError, 2),
    (NotFoundError, 3),
    (AuthenticationError, 4),
    (APIConnectionError, 5),
    (BentoError, 1),
)

_RESUMABLE = "async_bento.resumable"  # a key of click's `Context.meta`


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

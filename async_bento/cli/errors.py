"""How the command ends: with which exit code, and what it says when it is interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from async_bento.errors import (
    APIConnectionError,
    AuthenticationError,
    BentoError,
    ConfigError,
    InvalidTagError,
    NotFoundError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from async_bento.progress.events import ProgressEvent, ProgressListener

INTERRUPTED = 130

_CODES: Sequence[tuple[type[BentoError], int]] = (
    (ConfigError, 2),
    (InvalidTagError, 2),
    (NotFoundError, 3),
    (AuthenticationError, 4),
    (APIConnectionError, 5),
    (BentoError, 1),
)

_GOING_ON = "async_bento.going_on"
_TOLD = "async_bento.told"


def exit_code(error: BentoError) -> int:
    """Find the exit code of a failure.

    Args:
        error: What a command failed with.

    Returns:
        The code.
    """
    return next(code for kind, code in _CODES if isinstance(error, kind))


def will_go_on() -> None:
    """Note that the command that runs moves bytes, so that the same command goes on with them."""
    click.get_current_context().meta[_GOING_ON] = (
        "nothing is half-done. The same command goes on with the parts that have arrived, or starts again if none has"
    )


def going_on(ctx: click.Context) -> str:
    """Say what becomes of a command that was interrupted.

    Args:
        ctx: Its invocation.

    Returns:
        What the same command does when it is given again.
    """
    return str(ctx.meta.get(_GOING_ON, "the same command starts it again"))


def noting(listener: ProgressListener) -> Callable[[ProgressEvent], None]:
    """Let it be known which failures the bars have told.

    Args:
        listener: Who draws them.

    Returns:
        The same, with a memory.
    """
    told: set[str] = click.get_current_context().meta.setdefault(_TOLD, set())

    def note(event: ProgressEvent) -> None:
        listener(event)
        if event.phase == "failed":
            told.add(event.message)

    return note


def is_told(ctx: click.Context, error: BentoError) -> bool:
    """Whether the bars have told of a failure, so that it need not be said once more.

    Args:
        ctx: The invocation.
        error: What the command failed with.

    Returns:
        True where they have, in the same words.
    """
    return str(error) in ctx.meta.get(_TOLD, ())

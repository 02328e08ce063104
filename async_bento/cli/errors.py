"""Exit codes, and the errors that the command reports."""

from __future__ import annotations

import json
import re
import sys
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
    with_message,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The first match counts, so subclasses come first. The epilog of `cli/main.py` and `docs/guides/ci.md` list them, too.
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
_JSON = "async_bento.json"


class ItemsError(BentoError):
    """Some of several items failed; `failures` has the error of each, and `results` what the others returned."""

    def __init__(self, message: str, *, failures: Mapping[str, BentoError], results: Sequence[object]) -> None:
        super().__init__(message)
        self.failures = failures
        self.results = results


def exit_code(error: BentoError) -> int:
    """Map an error to an exit code: of several items, 1 unless all of them failed alike; of models, the first one's."""
    if isinstance(error, ItemsError):
        codes = {exit_code(failure) for failure in error.failures.values()}
        return codes.pop() if len(codes) == 1 and not error.results else 1
    while isinstance(error, ModelsError):
        error = next(iter(error.failures.values()))
    return next(code for error_type, code in _EXIT_CODES if isinstance(error, error_type))


def expect_json(ctx: click.Context) -> None:
    """Record that the command line has --json, also if the rest of it is wrong."""
    ctx.meta[_JSON] = True


def expects_json(ctx: click.Context) -> bool:
    """Whether the command line has --json."""
    return bool(ctx.meta.get(_JSON))


def print_error(error: Exception, item: str = "") -> None:
    """Print an error of the command, or of one of several items, to standard error.

    With --json, the error of the command is a JSON object, and has those of the items.
    """
    ctx = click.get_current_context()
    if not expects_json(ctx):
        click.secho(f"Error: {f'{item}: ' if item else ''}{error}", err=True, fg="red")
    elif not item:
        _print_json(_as_json(error))


def print_message(message: str, error_type: type[Exception], *, as_json: bool) -> None:
    """Print an error that has ended the command, and its context."""
    if as_json:
        _print_json(_describe(message, error_type))
    else:
        click.secho(f"Error: {message}", err=True, fg="red")


def print_interruption(ctx: click.Context) -> None:
    """Print that the command was interrupted, with --json as an error."""
    text = "Interrupted." + (" Run the same command again to resume." if ctx.meta.get(_RESUMABLE) else "")
    if expects_json(ctx):
        _print_json(_describe(text, KeyboardInterrupt))
    else:
        click.echo(text, err=True)


def _print_json(described: dict[str, object]) -> None:
    terminal = sys.stderr is not None and sys.stderr.isatty()
    click.echo(json.dumps({"error": described}, indent=2 if terminal else None), err=True)


def _as_json(error: Exception) -> dict[str, object]:
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    described = _describe(text, type(error))
    if isinstance(error, (ItemsError, ModelsError)):
        described["failures"] = {item: _as_json(failure) for item, failure in error.failures.items()}
    return described


def _describe(text: str, error_type: type[BaseException]) -> dict[str, object]:
    message, hint = _split_hint(text)
    return {"message": message, "type": error_type.__name__, "hint": hint or None}


def _split_hint(message: str) -> tuple[str, str]:
    """Split a message at the end of what failed and why; the rest is what to do."""
    parts = re.split(r"\. (?=[A-Z`])", message, maxsplit=1)
    return parts[0].rstrip("."), parts[1] if len(parts) > 1 else ""


def hint_at_list(error: NotFoundError, word: str) -> NotFoundError:
    """Name the command that lists the local items, where an error names the one that downloads a missing item."""
    failed, hint = _split_hint(str(error))
    if not hint.startswith("To download"):
        return error
    option = " --models" if word == "model" else ""
    return with_message(error, f"{failed}. `async-bento store list{option}` shows the local {word}s.")


def mark_resumable() -> None:
    """Record that the running command resumes after an interruption."""
    click.get_current_context().meta[_RESUMABLE] = True

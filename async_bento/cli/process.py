"""What the command needs from its process: standard output, memory and threads."""

from __future__ import annotations

import codecs
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_ESCAPE = "async-bento-escape"
_FIRST_ESCAPED, _LAST_ESCAPED = 0xDC80, 0xDCFF  # the surrogates that stand for bytes (PEP 383)


@contextmanager
def process_errors() -> Generator[None]:
    """Escape characters that standard output lacks; end with one line where the system refuses resources."""
    codecs.register_error(_ESCAPE, _escape)
    reconfigure: Callable[..., None] | None = getattr(sys.stdout, "reconfigure", None)  # a program may replace stdout
    if reconfigure is not None:
        reconfigure(errors=_ESCAPE)
    try:
        yield
    except OSError as error:
        if not _is_of_click(error):
            raise
        _discard_unwritable(sys.stdout)
        _discard_unwritable(sys.stderr)
        _fail(f"cannot write the output: {error.strerror}. Check the disk or the program that reads it.")
    except MemoryError:
        _fail("not enough memory. Raise the limit of this process (ulimit -v), or free some memory.")
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        _fail("cannot start a thread: too many processes. Raise the limit of this user (ulimit -u).")


def _is_of_click(error: OSError) -> bool:
    """Whether click raised an error, which it does when it writes."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("click.")


def _escape(error: UnicodeError) -> tuple[bytes, int]:
    """Encode surrogates as the bytes they stand for, so that paths stay exact, and other characters as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    encoded = [
        bytes([ord(character) - 0xDC00])
        if _FIRST_ESCAPED <= ord(character) <= _LAST_ESCAPED
        else character.encode("ascii", "backslashreplace")
        for character in error.object[error.start : error.end]
    ]
    return b"".join(encoded), error.end


def _discard_unwritable(stream: TextIO | None) -> None:
    """Redirect a stream whose buffer cannot be written to the null device, or the exit would fail again."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _fail(message: str) -> None:
    with suppress(OSError):  # standard error may be unwritable, too
        click.secho(f"Error: {message}", err=True, fg="red")
    sys.exit(1)

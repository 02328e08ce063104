"""What the command needs from its process: standard output, memory and threads."""

from __future__ import annotations

import codecs
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from async_bento.cli.errors import print_message

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_ESCAPE = "async-bento-escape"
_FIRST_ESCAPED, _LAST_ESCAPED = 0xDC80, 0xDCFF  # the surrogates that stand for bytes (PEP 383)


@contextmanager
def process_errors(*, as_json: bool) -> Generator[None]:
    """Escape characters that standard output lacks; end with one line where the system refuses resources.

    With `as_json`, the line is a JSON object.
    """
    codecs.register_error(_ESCAPE, _escape)
    reconfigure: Callable[..., None] | None = getattr(sys.stdout, "reconfigure", None)  # a program may replace stdout
    if reconfigure is not None:
        # A name in a tar may have characters that the encoding of the terminal lacks.
        reconfigure(errors=_ESCAPE)
    try:
        with _refused_resources(as_json=as_json):
            yield
    except SystemExit as error:
        if error.code:  # which Python would replace by 120
            _discard_unwritable(sys.stdout)
            _discard_unwritable(sys.stderr)
        raise


@contextmanager
def _refused_resources(*, as_json: bool) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if not _is_of_output(error):
            raise
        _fail(
            error, f"cannot write the output: {error.strerror}. Check the disk or the program that reads it.", as_json
        )
    except MemoryError as error:
        _fail(error, "not enough memory. Raise the limit of this process (ulimit -v), or free some memory.", as_json)
    except RuntimeError as error:
        if str(error) != "can't start new thread":
            raise
        text = "cannot start a thread: too many processes. Raise the limit of this user (ulimit -u)."
        _fail(error, text, as_json)


def _is_of_output(error: OSError) -> bool:
    """Whether an error was raised where something is printed; click raises none elsewhere."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(("click.", f"{__package__}.output"))


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
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), stream.fileno())


def _fail(error: Exception, message: str, as_json: bool) -> None:
    with suppress(OSError):  # standard error may be unwritable, too
        print_message(message, type(error), as_json=as_json)
    sys.exit(1)

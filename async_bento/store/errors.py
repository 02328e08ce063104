"""The one place where errors of the operating system become errors of the store."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento._core.files import REFUSED
from async_bento.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def as_store_error(action: str, *, if_refused: str = "") -> Generator[None]:
    """Raise an OSError of the block as a StoreError: `cannot {action}`, the reason, and the path.

    `if_refused` is the remedy where this user, or every user, may not write.
    """
    try:
        yield
    except StoreError:  # also one that is an OSError
        raise
    except OSError as error:
        path = str(error.filename or "")
        where = f": {path}" if path not in action else ""
        remedy = if_refused if error.errno in REFUSED else ""
        if platform.is_in_use(error):
            remedy = "Another program may have a file of it open: end that program."
        raise StoreError(f"cannot {action}: {error.strerror or error}{where}{remedy and f'. {remedy}'}") from error

"""A body on its way to the disk. Everything here blocks: it belongs into a thread."""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import FileIO
    from pathlib import Path


class Spool:
    """A body on its way to the disk: under a name of its own until it is whole, gone when it never is.

    Args:
        directory: Where its file goes.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / f".{secrets.token_hex(16)}"
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._file: FileIO | None = None

    @property
    def md5(self) -> str:
        """The MD5 of what has been written."""
        return self._md5.hexdigest()

    def write(self, chunks: Iterable[bytes]) -> None:
        """Append, and hash in the same breath.

        Args:
            chunks: What to append.
        """
        if self._file is None:
            self._file = self.path.open("xb", buffering=0)
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._md5.update(chunk)
            self.size += len(chunk)

    def seal(self) -> None:
        """Have all of it on the disk."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it has been given another name."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)

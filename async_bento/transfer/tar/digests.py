"""Digests of the files of a tar, and of files on disk, to compare contents without a copy of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from async_bento._core.concurrency import check_cancelled
from async_bento._core.files import open_regular
from async_bento.config import MiB
from async_bento.transfer.tar.selection import Piece

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from async_bento.transfer.tar.index import IndexEntry, TarIndex

_digest = hashlib.blake2b  # as strong as SHA-256, and faster where the processor has no instructions for that


class FileDigests:
    """Hashes the files of whole members, whose `pieces` arrive in order; `digests` are by the position of the content.

    Directories and links between the files are read too, so that files that follow one another share a request.
    """

    def __init__(self, index: TarIndex, files: Iterable[IndexEntry]) -> None:
        others = (entry for entry in index.entries.values() if entry.member.type != "file")
        self._members = sorted({*files, *others}, key=lambda entry: entry.start)
        self.pieces = [Piece(b"", entry.start, entry.end, entry) for entry in self._members]
        self.restart()

    def restart(self) -> None:
        """Drop all digests: the bytes come again from the first."""
        self.digests: dict[int, bytes] = {}
        self._number = 0  # of the next member
        self._position = 0  # in that member
        self._hash = _digest()

    def feed(self, data: bytes | memoryview) -> None:
        """Hash what the next bytes have of files."""
        rest = memoryview(data)
        while rest:
            entry = self._members[self._number]
            position = entry.start + self._position
            taken, rest = rest[: entry.end - position], rest[entry.end - position :]
            self._hash.update(taken[max(0, entry.content - position) : max(0, entry.stop - position)])
            self._position += len(taken)
            if position + len(taken) == entry.end:
                self.digests[entry.content] = self._hash.digest()
                self._number, self._position, self._hash = self._number + 1, 0, _digest()


def digest_files(root: Path, paths: Iterable[str]) -> dict[str, bytes]:
    """Hash files below a directory. Blocks; raises OSError."""
    digests: dict[str, bytes] = {}
    buffer = bytearray(MiB)
    for path in paths:
        digest = _digest()
        with open_regular(root / path) as file:
            while count := file.readinto(buffer):
                check_cancelled()
                digest.update(memoryview(buffer)[:count])
        digests[path] = digest.digest()
    return digests

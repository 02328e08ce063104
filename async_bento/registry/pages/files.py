"""The files in a stored tar: only its headers are read, also from a bucket."""

from __future__ import annotations

import asyncio
import io
import tarfile
from typing import TYPE_CHECKING, NamedTuple

import anyio

from async_bento._core.concurrency import run_in_new_thread
from async_bento.config import KiB, MiB
from async_bento.registry.errors import RegistryError

if TYPE_CHECKING:
    from async_bento.registry.blobs.base import OpenBlob

_MAX_FILES = 1_000
"""On a page."""

_WINDOW = 64 * KiB
"""Bytes that one read gets: many headers, where files are small."""

_MAX_WINDOWS = 200
"""Read for one page: 12.5 MiB, or the headers of so many large files."""

_MAX_READ = MiB
"""A header that claims more is no header of a bento or model."""

_TIMEOUT = 30.0
"""Seconds for one read of a bucket."""


class StoredFile(NamedTuple):
    """A file or link in a tar: its path, its size in bytes, and the target of a link."""

    path: str
    size: int
    target: str


class Listing(NamedTuple):
    """The first files of a tar; `is_whole` is False if there are more, or if the tar cannot be read further."""

    files: list[StoredFile]
    is_whole: bool


class _TooLargeError(OSError):
    """The list would cost more reads than a page is worth."""


async def list_files(blob: OpenBlob) -> Listing:
    """List the files of a tar; empty for one that is compressed."""
    return await run_in_new_thread(_list_files, _RangeFile(blob, asyncio.get_running_loop()))


def _list_files(file: _RangeFile) -> Listing:
    found: list[StoredFile] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:  # the buffer would read ahead
            for member in tar:
                if len(found) == _MAX_FILES:
                    return Listing(found, is_whole=False)
                if not member.isdir():
                    target = member.linkname if member.issym() or member.islnk() else ""
                    found.append(StoredFile(member.name.removeprefix("./"), member.size, target))
    except (tarfile.TarError, RegistryError, OSError, ValueError, OverflowError):
        return Listing(found, is_whole=False)
    return Listing(found, is_whole=True)


class _RangeFile(io.RawIOBase):
    """A file of a worker thread, whose bytes an event loop reads."""

    def __init__(self, blob: OpenBlob, loop: asyncio.AbstractEventLoop) -> None:
        self._blob = blob
        self._loop = loop
        self._position = 0
        self._window_start = 0
        self._window = b""
        self._n_windows = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size}[whence]
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise _TooLargeError
        start, stop = self._position, min(self._position + size, self._blob.size)
        if start >= stop:
            return b""
        if not self._window_start <= start <= stop <= self._window_start + len(self._window):
            self._n_windows += 1
            if self._n_windows > _MAX_WINDOWS:
                raise _TooLargeError
            end = min(max(start + _WINDOW, stop), self._blob.size)
            self._window_start, self._window = start, self._fetch(start, end)
        self._position = stop
        return self._window[start - self._window_start : stop - self._window_start]

    def _fetch(self, start: int, stop: int) -> bytes:
        async def read() -> bytes:
            with anyio.fail_after(_TIMEOUT):  # a timeout of `result` would leave the read running
                return b"".join([chunk async for chunk in self._blob.read(start, stop)])

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result()

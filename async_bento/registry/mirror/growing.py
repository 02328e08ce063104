"""A file that grows while it is downloaded, and that any number of requests read meanwhile."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento.registry.blobs.base import IO_CHUNK
from async_bento.registry.blobs.disk_files import StagedFile
from async_bento.registry.downloads import SourceLostError
from async_bento.transfer.resumable_extract import ResumePoint

if TYPE_CHECKING:
    from _hashlib import HASH
    from collections.abc import AsyncGenerator, Callable, Sequence
    from io import FileIO
    from pathlib import Path

    from async_bento._core.concurrency import Threads
    from async_bento.transfer.download_source import DownloadSource


class Growing:
    """The bytes of one object as they arrive; `size` is None if the upstream does not state it.

    Bytes become readable when the next ones arrive, so those of a damaged last part never complete a response.
    """

    def __init__(self, size: int | None, etag: str, file: FileIO, available: int) -> None:
        self.size = size
        self.etag = etag
        self._file = file
        self._available = available
        self._is_complete = False
        self._is_ended = False
        self._n_readers = 1  # the download itself
        self._changed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether requests can read it."""
        return self._n_readers > 0 and (self._is_complete or not self._is_ended)

    def grow(self, available: int) -> None:
        """Let requests read up to a position."""
        self._available = max(self._available, available)
        self._notify()

    def end(self, complete: int | None = None) -> None:
        """End the download: all bytes up to `complete` are there; or, for None, readers fail."""
        if not self._is_ended:
            self._is_ended = True
            self._is_complete = complete is not None
            self.grow(complete or 0)

    def close(self) -> None:
        """Close the file, once its last reader is done."""
        self._n_readers -= 1
        if not self._n_readers:
            self._file.close()

    @asynccontextmanager
    async def reader(self, threads: Threads) -> AsyncGenerator[GrowingReader]:
        """Read the bytes in the block, whatever happens to the file meanwhile."""
        self._n_readers += 1
        try:
            yield GrowingReader(self, threads)
        finally:
            self.close()

    async def read(self, threads: Threads, start: int, stop: int | None) -> AsyncGenerator[bytes]:
        """Yield the bytes from `start` to before `stop`, or to the end, as they arrive.

        Raise `SourceLostError` if the download ends without them.
        """
        position = start
        while stop is None or position < stop:
            while position >= self._available and not self._is_ended:
                await self._changed.wait()
            if self._is_ended and not self._is_complete:
                raise SourceLostError
            end = self._available if stop is None else min(stop, self._available)
            if position >= end:
                return
            chunk = await threads.run(platform.read_at, self._file.fileno(), min(IO_CHUNK, end - position), position)
            position += len(chunk)
            yield chunk

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class GrowingReader:
    """An `OpenBlob` whose bytes are still arriving."""

    def __init__(self, growing: Growing, threads: Threads) -> None:
        self.size = growing.size or 0
        self.etag = growing.etag
        self._growing = growing
        self._threads = threads

    def read(self, start: int, stop: int | None) -> AsyncGenerator[bytes]:
        """See `OpenBlob`; `stop` is None for all bytes of an object of unknown size."""
        return self._growing.read(self._threads, start, stop)


class GrowingFile(StagedFile):
    """A staged file that can be cut back to its last checkpoint."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.checkpoint()

    def checkpoint(self) -> None:
        """Remember the size and the MD5 so far: all bytes until here are verified."""
        self._verified: tuple[int, HASH] = (self.size, self._md5.copy())

    def rewind(self) -> None:
        """Drop the bytes after the last checkpoint."""
        self.write(())  # which creates the file
        assert self._file is not None
        self.size, self._md5 = self._verified[0], self._verified[1].copy()
        self._file.truncate(self.size)
        self._file.seek(self.size)

    def open_reader(self) -> FileIO:
        """Open the file once more, to read from it."""
        self.write(())
        return platform.open_shared(self.path)  # which gets another name meanwhile


class GrowingSink:
    """The `Sink` of a download; `opened` gets each object, one after the other, on the event loop.

    Every method blocks, and runs in a worker thread. A download that failed is resumed by another one with this sink.
    """

    def __init__(self, directory: Path, opened: Callable[[Growing], None], check: Callable[[int], None]) -> None:
        self.resume_point: ResumePoint | None = None
        self.file = GrowingFile(directory)
        self.growing: Growing | None = None
        self.source: DownloadSource | None = None
        self._directory = directory
        self._opened = opened
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._next_checkpoint: Callable[[int], int] | None = None
        self._etag: str | None = None

    def start(self, total: int | None, etag: str | None, next_checkpoint: Callable[[int], int] | None = None) -> None:
        """See `Sink`."""
        if total is not None:
            self._check(total)
        self._next_checkpoint = next_checkpoint
        self._etag = None if etag is None or etag.startswith("W/") else etag
        checksums = None if self.source is None else self.source.checksums
        known = self._etag or (checksums and checksums.etag) or f'"{secrets.token_hex(16)}"'
        self.growing = Growing(total, known, self.file.open_reader(), self.file.size)
        self._call(self._opened, self.growing)

    def feed(self, data: Sequence[bytes | memoryview]) -> None:
        """See `Sink`."""
        assert self.growing is not None
        position = self.file.size
        self._call(self.growing.grow, position)
        if self._next_checkpoint is None or self._next_checkpoint(position) == position:
            self.file.checkpoint()
        self.file.write(data)

    def restart(self) -> None:
        """See `Sink`: readers keep the bytes that they have, which may be those of another object."""
        self.file.discard()
        self.file = GrowingFile(self._directory)
        self.resume_point = None

    def prepare(self) -> None:
        """Keep what is verified of an earlier download."""
        self.file.rewind()
        self.resume_point = None
        if self.growing is not None and self._etag is not None and self.growing.size is not None and self.file.size:
            is_verified = self._next_checkpoint is not None
            self.resume_point = ResumePoint(self.file.size, self.growing.size, self._etag, is_verified)
        elif self.file.size:
            self.restart()

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

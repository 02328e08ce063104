"""One range of a directory's tar: read, hashed and checked by worker threads, or sent by the kernel.

`TarBody` sends the range as a part of an upload.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tarfile
from bisect import bisect_right
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from aiofiles.base import AsyncBase
from aiofiles.threadpool.utils import delegate_to_executor

from async_bento._core import platform
from async_bento.config import KiB
from async_bento.errors import ClosedError
from async_bento.transfer.tar.plan import header, padded
from async_bento.transfer.tar.unchanged import changed, check_file, check_path, read_error

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Executor

    from async_bento.transfer.tar.plan import TarPlan
    from async_bento.transfer.tar.scan import Entry

UNSENT = 128 * KiB
"""The last bytes of a file, which `TarReader.send` leaves to `read`: they are sent once the whole file was checked."""

_OPEN_FLAGS = os.O_RDONLY | platform.OPEN | platform.NOFOLLOW | platform.NONBLOCK
# sendfile(2) fails with these for the connection, with others for the file. ECONNRESET and EPIPE are ConnectionErrors.
_NETWORK_ERRORS = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENOTCONN}
_HASH_SIZE = 256 * KiB  # fits in the cache of a core


class TarReader:
    """Reads the bytes `[start, stop)` of a plan's tar in chunks of at most `io_chunk` bytes; `md5` is their hash.

    Files are checked after they are read, and directories and links at the end of the tar, so a SourceChangedError may
    follow the bytes: they are valid only once the whole range was read.

    The methods block, and run one at a time: `close` waits for a `read` that a cancelled call left to its thread.
    """

    def __init__(self, plan: TarPlan, start: int, stop: int, *, io_chunk: int, digest: bool = False) -> None:
        if not 0 <= start <= stop <= plan.size:
            raise ValueError(f"no range {start} to {stop} in a tar of {plan.size} bytes")
        self.position = start
        self.md5 = hashlib.md5(usedforsecurity=False) if digest else None
        self._plan = plan
        self._stop = stop
        self._io_chunk = io_chunk
        self._hashed = start
        self._file: _LargeFile | None = None
        self._can_send = True
        self.sent: dict[str, Entry] = {}  # the files of which the kernel has sent bytes, by path
        self._is_closed = False
        self._lock = Lock()

    def read(self, limit: int | None = None) -> bytes:
        """The next bytes, at most `limit`; empty at the end of the range."""
        with self._lock:
            self._check_open()
            size = min(limit or self._io_chunk, self._io_chunk, self._stop - self.position)
            if not size:
                return b""
            if self._file is None:
                self._file = self._open_large()
            if self._file is None:
                chunk = self._read_small(self.position + size)
            else:
                chunk = self._file.read(self.position, min(size, self._file.stop - self.position))
            self._hash(chunk)
            self._advance(len(chunk))
            return chunk

    @property
    def sendable(self) -> int:
        """How many of the next bytes `send` can send: those of a large file that `read` has opened."""
        return max(0, self._file.stop - UNSENT - self.position) if self._file and self._can_send else 0

    def send(self, connection: int, limit: int) -> bool:
        """Let the kernel send up to `limit` of the sendable bytes; whether the connection takes no more for now.

        The bytes are hashed first. If the file changes between the two, the storage's MD5 differs. The connection has
        references to the pages of the file, not copies, until the peer has received them: see `check_sent`.
        """
        with self._lock:
            self._check_open()
            stop = self.position + min(limit, self.sendable)
            while self._file is not None and self.position < stop:
                if self.md5 is not None and self._hashed == self.position:
                    self._hash_ahead(self._file, stop)
                until = stop if self.md5 is None else self._hashed
                self.sent[self._file.path] = self._file.entry  # before the call, which may send a part and fail later
                try:
                    self._advance(self._file.send(connection, self.position, until - self.position))
                except BlockingIOError:
                    # The connection is full: hash meanwhile, but no more than a chunk ahead.
                    if self.md5 is not None and self._hashed - self.position < self._io_chunk:
                        self._hash_ahead(self._file, stop)
                    return True
                except _NoSendfileError:
                    self._can_send = False
                    break
            return False

    def check_sent(self) -> None:
        """Raise a SourceChangedError if a file that the kernel has sent has changed; call it after the response."""
        for path, entry in self.sent.items():
            try:
                check_path(path, entry)
            except OSError as error:
                raise read_error(path, error) from error

    def close(self) -> None:
        """Close the open file."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                os.close(self._file.descriptor)
                self._file = None

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the tar is no longer read: its request has ended")

    def _advance(self, count: int) -> None:
        self.position += count
        if self._file is not None and self.position == self._file.stop:
            self._file.check()
            os.close(self._file.descriptor)
            self._file = None
        if self.position == self._plan.size:  # in the reader of the last part alone
            self._plan.check_tree()

    def _hash(self, chunk: bytes) -> None:
        """Hash the bytes at the position, but for those that `send` has hashed already."""
        if self.md5 is not None:
            self.md5.update(memoryview(chunk)[self._hashed - self.position :])
            self._hashed = max(self._hashed, self.position + len(chunk))

    def _hash_ahead(self, file: _LargeFile, stop: int) -> None:
        assert self.md5 is not None
        stop = min(stop, self._hashed + self._io_chunk)
        while self._hashed < stop:
            piece = file.read(self._hashed, min(_HASH_SIZE, stop - self._hashed))
            self.md5.update(piece)
            self._hashed += len(piece)

    def _open_large(self) -> _LargeFile | None:
        """Open the file whose content is at the position, if it is larger than a chunk."""
        plan = self._plan
        index = bisect_right(plan.offsets, self.position) - 1
        if index == plan.members:
            return None
        entry = plan.entries[index]
        start = plan.offsets[index + 1] - padded(entry.size)
        if entry.size <= self._io_chunk or not start <= self.position < start + entry.size:
            return None
        path = plan.path(entry)
        try:
            descriptor = os.open(path, _OPEN_FLAGS)
            try:
                check_file(descriptor, path, entry)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise read_error(path, error) from error
        return _LargeFile(descriptor, path, entry, start, min(self._stop, start + entry.size))

    def _read_small(self, stop: int) -> bytes:
        """Read headers, small files and padding; end at `stop` or at the content of a file larger than a chunk."""
        plan, position = self._plan, self.position
        pieces: list[bytes] = []
        index = bisect_right(plan.offsets, position) - 1
        while position < stop and index < plan.members:
            entry, start, end = plan.entries[index], plan.offsets[index], plan.offsets[index + 1]
            content_start = end - padded(entry.size)
            content_end = content_start + entry.size
            if position < content_start:
                until = min(stop, content_start)
                pieces.append(header(entry)[position - start : until - start])
                position = until
                if position == content_start == end and entry.type == tarfile.REGTYPE:
                    _read_slice(plan.path(entry), entry, 0, 0)  # only checks: an empty file may have grown
            if content_start <= position < min(stop, content_end):
                if entry.size > self._io_chunk:
                    break
                until = min(stop, content_end)
                pieces.append(_read_slice(plan.path(entry), entry, position - content_start, until - position))
                position = until
            if content_end <= position < end:
                until = min(stop, end)
                pieces.append(bytes(until - position))
                position = until
            index += 1
        if index == plan.members:
            pieces.append(bytes(stop - position))
        return b"".join(pieces)


@delegate_to_executor("read", "send", "close")
class AsyncTarReader(AsyncBase):  # type: ignore[type-arg]  # not generic at runtime
    """A TarReader whose methods run in worker threads, as those of any file of aiofiles."""

    if TYPE_CHECKING:  # the decorator makes them

        def __init__(self, file: TarReader, loop: AbstractEventLoop, executor: Executor) -> None: ...
        async def read(self, limit: int | None = None) -> bytes: ...
        async def send(self, connection: int, limit: int) -> bool: ...
        async def close(self) -> None: ...


class _NoSendfileError(Exception):
    """The kernel does not send this file; if the file has changed, `read` raises the error."""


class _LargeFile(NamedTuple):
    """A file that is read in several chunks; `start` and `stop` are where its content and the range end in the tar."""

    descriptor: int
    path: str
    entry: Entry
    start: int
    stop: int

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes of the tar from a position."""
        try:
            chunk = platform.read_at(self.descriptor, size, position - self.start)
        except OSError as error:
            raise read_error(self.path, error) from error
        if not chunk:
            raise changed(self.path, "the file became shorter")
        return chunk

    def send(self, connection: int, position: int, size: int) -> int:
        """Send up to `size` bytes of the tar from a position, and return how many; may raise BlockingIOError."""
        try:
            sent = platform.send_file(connection, self.descriptor, position - self.start, size)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError as error:
            if error.errno in _NETWORK_ERRORS:
                raise ConnectionError(error.errno, error.strerror) from error
            raise _NoSendfileError from error
        if not sent:
            raise changed(self.path, "the file became shorter")
        return sent

    def check(self) -> None:
        """Raise a SourceChangedError if the file has changed."""
        try:
            check_file(self.descriptor, self.path, self.entry)
        except OSError as error:
            raise read_error(self.path, error) from error


def _read_slice(path: str, entry: Entry, offset: int, length: int) -> bytes:
    """Read a part of a small file by one call each of open, read, fstat and close."""
    try:
        # O_NONBLOCK: the file may have been replaced by a FIFO, and opening one waits for a writer.
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            data = _read_fully(descriptor, offset, length) if length else b""
        finally:
            try:
                check_file(descriptor, path, entry)  # its reason is better than that of a failed read
            finally:
                os.close(descriptor)
    except OSError as error:
        raise read_error(path, error) from error
    if len(data) != length:
        raise changed(path, "the file became shorter")
    return data


def _read_fully(descriptor: int, offset: int, length: int) -> bytes:
    data = platform.read_at(descriptor, length, offset)
    # read(2) may return less than is left, as on a network filesystem or after a signal.
    while 0 < len(data) < length and (more := platform.read_at(descriptor, length - len(data), offset + len(data))):
        data += more
    return data

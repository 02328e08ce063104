"""A directory → the layout of its tar → any range of that tar's bytes, and no tar is written.

The bytes are those `tarfile` would write for the same members in PAX format: whole seconds, no owners, sorted. They
depend on the tree alone, so a part that failed is read again and is the same.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
import struct
import tarfile
from array import array
from bisect import bisect_right
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import aiofiles

from async_bento._core.concurrency import shielded
from async_bento.config import MiB
from async_bento.errors import ArchiveError, SourceChangedError
from async_bento.transfer.tar.scan import Entry, walk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection
    from pathlib import Path

    from async_bento._core.concurrency import Threads

_USTAR_NAME = 100
_USTAR_LIMIT = 8**11
_USTAR = struct.Struct("100s 8s 8s 8s 12s 12s 8s c 100s 8s 247x")
_CHECKSUM = 148  # where it stands, in that header
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO}
_NS = 1_000_000_000


class _Slice(NamedTuple):
    """A part of one file's content.

    Attributes:
        entry: The file.
        offset: Where in the file it begins, in bytes.
        length: How many bytes.
    """

    entry: Entry
    offset: int
    length: int


class TarPlan:
    """The tar of a directory, as arithmetic: which byte is whose.

    It holds about 300 bytes per member, and no content.

    Args:
        root: The directory.
        entries: Its members, in order.

    Attributes:
        root: The directory.
        size: The size of the tar, in bytes, with its end and padding.
        members: How many members there are, the root among them.
        content_size: The size of all files' contents, in bytes.
    """

    def __init__(self, root: Path, entries: list[Entry]) -> None:
        self.root = root
        self.members = len(entries)
        self.content_size = sum(entry.size for entry in entries)
        self._root = os.fspath(root)
        self._entries = entries
        self._offsets = array("q", [0])
        offset = 0
        for entry in entries:
            offset += _header_size(entry) + _padded(entry.size)
            self._offsets.append(offset)
        self.size = _padded(offset + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)

    @classmethod
    def scan(cls, root: Path, *, exclude: Collection[str] = ()) -> TarPlan:
        """Plan the tar of a directory; blocks, so call it in a thread.

        Args:
            root: The directory.
            exclude: Names directly in it that are left out, like a bento's `models`.

        Returns:
            The plan.

        Raises:
            ArchiveError: Something in the directory is unreadable, of a kind no tar should hold, or could not be pulled
                again; the message names it.
        """
        return cls(root, walk(root, exclude))

    def fingerprint(self) -> str:
        """What tells this tar from another, without reading contents: names, types, sizes, times, modes, links.

        Returns:
            A SHA-256 in hex. It changes with any nanosecond of any member's mtime.
        """
        digest = hashlib.sha256()
        for entry in self._entries:
            # No name and no target holds a NUL, so nothing runs into its neighbour.
            text = f"{entry.name}\0{entry.link}\0{entry.mode}\0{entry.size}\0{entry.mtime_ns}\0"
            digest.update(entry.type + text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    async def read(
        self, start: int, stop: int, *, threads: Threads, io_chunk: int = MiB
    ) -> AsyncGenerator[bytes, None]:
        """Read a range of the tar; any range, in any order, again, by many tasks at once.

        Each file is checked before and after it is read. A change that falls between is told after the bytes, so what
        was read is good only when the range has come to its end.

        Args:
            start: The first byte.
            stop: The byte after the last.
            threads: Where the disk is read.
            io_chunk: The most to read in one hop, in bytes.

        Yields:
            The bytes, at most `io_chunk` at once.

        Raises:
            SourceChangedError: A file is not as it was planned.
            ArchiveError: A file cannot be read.
            ValueError: The tar has no such range.
        """
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"no bytes {start} to {stop} in a tar of {self.size}")
        position = start
        while position < stop:
            large = self._large_slice(position, stop, io_chunk)
            if large is None:
                chunk = await threads.run(self._gather, position, min(stop, position + io_chunk), io_chunk)
                position += len(chunk)
                yield chunk
            else:
                position += large.length
                async with aclosing(self._stream(large, threads, io_chunk)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    def _large_slice(self, position: int, stop: int, io_chunk: int) -> _Slice | None:
        index = bisect_right(self._offsets, position) - 1
        if index == self.members:
            return None
        entry = self._entries[index]
        offset = position - (self._offsets[index + 1] - _padded(entry.size))
        if entry.size <= io_chunk or not 0 <= offset < entry.size:
            return None
        return _Slice(entry, offset, min(stop - position, entry.size - offset))

    async def _stream(self, part: _Slice, threads: Threads, io_chunk: int) -> AsyncGenerator[bytes, None]:
        entry, offset, left = part
        path = self._path(entry)
        opening = asyncio.ensure_future(
            aiofiles.open(
                path, "rb", buffering=0, opener=partial(_open, entry=entry, offset=offset), executor=threads.executor
            )
        )
        try:
            file = await shielded(opening)
            while left:
                chunk = await shielded(file.read(min(io_chunk, left)))
                if not chunk:
                    raise _changed(path, "it is shorter than it was")
                left -= len(chunk)
                yield chunk
            await threads.run(_check_unchanged, file.fileno(), path, entry)
        except OSError as error:
            raise _cannot_read(path, error) from error
        finally:
            # Here and not by `async with`: cancelled while it opens, the file is open when the cancellation arrives.
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                await shielded(opening.result().close())

    def _gather(self, start: int, stop: int, large: int) -> bytes:
        """Headers, small files and padding from `start` on; ends at `stop` or where a large file's content begins."""
        pieces: list[bytes] = []
        position = start
        index = bisect_right(self._offsets, start) - 1
        while position < stop and index < self.members:
            entry, begin, end = self._entries[index], self._offsets[index], self._offsets[index + 1]
            content = end - _padded(entry.size)
            content_end = content + entry.size
            if position < content:
                upto = min(stop, content)
                pieces.append(_header(entry)[position - begin : upto - begin])
                position = upto
                if position == content == end and entry.type == tarfile.REGTYPE:
                    self._read_slice(_Slice(entry, 0, 0))  # an empty file may have grown
            if content <= position < min(stop, content_end):
                if entry.size > large:
                    break
                upto = min(stop, content_end)
                pieces.append(self._read_slice(_Slice(entry, position - content, upto - position)))
                position = upto
            if content_end <= position < end:
                upto = min(stop, end)
                pieces.append(bytes(upto - position))
                position = upto
            index += 1
        if index == self.members:
            pieces.append(bytes(stop - position))
        return b"".join(pieces)

    def _read_slice(self, part: _Slice) -> bytes:
        path = self._path(part.entry)
        pieces: list[bytes] = []
        left = part.length
        try:
            descriptor = _open(path, entry=part.entry, offset=part.offset)
            try:
                while left:
                    piece = os.read(descriptor, left)
                    if not piece:
                        raise _changed(path, "it is shorter than it was")
                    left -= len(piece)
                    pieces.append(piece)
                _check_unchanged(descriptor, path, part.entry)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _cannot_read(path, error) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _path(self, entry: Entry) -> str:
        return f"{self._root}/{entry.name}"


def _open(path: str, flags: int = 0, *, entry: Entry, offset: int) -> int:
    # O_NONBLOCK: what was a file may be a FIFO by now, and opening that would wait for a writer.
    descriptor = os.open(path, _OPEN_FLAGS | flags)
    try:
        _check_unchanged(descriptor, path, entry)
        if offset:
            os.lseek(descriptor, offset, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_unchanged(descriptor: int, path: str, entry: Entry) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise _changed(path, "it is no file any more")
    if status.st_size != entry.size:
        raise _changed(path, f"it had {entry.size} bytes and has {status.st_size}")
    if status.st_mtime_ns != entry.mtime_ns:
        raise _changed(path, "it was written to")


def _changed(path: str, how: str) -> SourceChangedError:
    return SourceChangedError(f"{path} changed while it was being sent: {how}", path=path)


def _cannot_read(path: str, error: OSError) -> ArchiveError:
    if error.errno in _GONE:
        return _changed(path, "it is gone or is a link now")
    return ArchiveError(f"cannot read {path}: {error.strerror}")


def _header(entry: Entry) -> bytes:
    if _fits_ustar(entry):
        return _ustar(entry)
    info = tarfile.TarInfo(f"./{entry.name}")
    info.type = entry.type
    info.mode = entry.mode
    info.size = entry.size
    info.mtime = entry.mtime_ns // _NS
    info.linkname = f"./{entry.link}" if entry.type == tarfile.LNKTYPE else entry.link
    # Not the locale's encoding: the bytes must not depend on who pushes. Bytes that are no UTF-8 go out as they are.
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _ustar(entry: Entry) -> bytes:
    """A header of POSIX.1-1988, as `tarfile` writes it where nothing needs another one, in a third of its time."""
    fields = [
        f"./{entry.name}/" if entry.type == tarfile.DIRTYPE and entry.name else f"./{entry.name}",
        f"{entry.mode & 0o7777:07o}",
        f"{0:07o}",  # the owner, and the group
        f"{0:07o}",
        f"{entry.size:011o}",
        f"{entry.mtime_ns // _NS:011o}",
        "        ",
        entry.type.decode(),
        f"./{entry.link}" if entry.type == tarfile.LNKTYPE else entry.link,
    ]
    block = _USTAR.pack(*(field.encode() for field in fields), tarfile.POSIX_MAGIC)
    return b"%b%06o\0%b" % (block[:_CHECKSUM], sum(block), block[_CHECKSUM + 7 :])


def _fits_ustar(entry: Entry) -> bool:
    # Two characters for "./", one for the slash behind a directory's name, which tarfile adds.
    return (
        len(entry.name) <= _USTAR_NAME - 3
        and len(entry.link) <= _USTAR_NAME - 2
        and entry.name.isascii()
        and entry.link.isascii()
        and entry.size < _USTAR_LIMIT
        and 0 <= entry.mtime_ns < _USTAR_LIMIT * _NS
    )


def _header_size(entry: Entry) -> int:
    return tarfile.BLOCKSIZE if _fits_ustar(entry) else len(_header(entry))


def _padded(size: int, block: int = tarfile.BLOCKSIZE) -> int:
    return -(-size // block) * block

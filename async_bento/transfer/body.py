"""Request bodies that can be sent again: any range of a tar, as it is read from a directory."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiohttp import ClientError, Payload

from async_bento._core.concurrency import shielded
from async_bento.config import KiB
from async_bento.errors import IntegrityError
from async_bento.transfer import sendfile
from async_bento.transfer.tar.reader import AsyncTarReader, TarReader
from async_bento.transfer.watchdog import unacknowledged

if TYPE_CHECKING:
    from collections.abc import Generator

    from aiohttp.abc import AbstractStreamWriter

    from async_bento._core.rate_limit import RateLimit
    from async_bento.progress.events import Progress
    from async_bento.transfer.http import ByteRange, TransferPool
    from async_bento.transfer.tar.plan import TarPlan

WRITE_SIZE = 128 * KiB
"""Bytes per write to the socket; larger writes would hold up the event loop, over TLS above all."""


class UploadBody(Payload):
    """A body of known size that can be sent again; subclasses write the bytes.

    The body states its size, since S3 refuses chunked bodies. Every write starts from the first byte: aiohttp resends a
    PUT on a stale connection by itself, and a body that was used up would go out empty. `failure` holds an error of
    reading the bytes, which aiohttp would turn into a lost connection.
    """

    def __init__(self, source: object, byte_range: ByteRange, progress: Progress) -> None:
        super().__init__(source, content_type="application/octet-stream")
        self._size = byte_range.size
        self._range = byte_range
        self._progress = progress
        self._is_writing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.rate_limit: RateLimit | None = None
        self.may_have_arrived = False  # whether all bytes were sent by any attempt
        self._writer: AbstractStreamWriter | None
        self._transport: asyncio.WriteTransport | None  # which the writer forgets once it is being closed
        self.md5: str | None
        self.failure: Exception | None
        self._sent = 0
        self.rewind()

    @abstractmethod
    async def _write(self, writer: AbstractStreamWriter) -> None:
        """Write the bytes by `_send_chunk`, set `md5` if it is known, and write the last bytes by `_send_last`."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """A description: aiohttp asks for the text only to show a body."""
        return f"<bytes {self._range.start}-{self._range.stop} of a tar>"

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all bytes, from the first."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write all bytes, from the first; `content_length` is always the size of this body."""
        self.rewind()
        self._writer = writer
        self._transport = getattr(writer, "transport", None)  # None once the connection is lost
        self._idle.clear()
        try:
            await self._write(writer)
        except (ClientError, ConnectionError):
            raise  # the connection failed, which aiohttp reports itself
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._idle.set()

    async def _send_last(self, writer: AbstractStreamWriter, held: memoryview) -> None:
        """Write the last piece, once all is read, checked and hashed: a storage that has all bytes responds at once."""
        if self._sent + len(held) != self._size:
            raise IntegrityError(f"cannot send a part of {self._size} bytes: {self._sent + len(held)} bytes were read")
        self.may_have_arrived = True
        await self._send(writer, held)

    async def _send_chunk(
        self, writer: AbstractStreamWriter, held: memoryview, chunk: bytes | memoryview, *, holds_back: bool = True
    ) -> memoryview:
        """Write what was held back, then a chunk, and return its last bytes, which are held back in turn."""
        await self._send(writer, held)
        rest = memoryview(bytes(chunk[-WRITE_SIZE:]) if holds_back else b"")  # a copy, which frees the chunk
        view, stop = memoryview(chunk), len(chunk) - len(rest)
        for offset in range(0, stop, WRITE_SIZE):
            await self._send(writer, view[offset : min(offset + WRITE_SIZE, stop)])
        return rest

    async def _send(self, writer: AbstractStreamWriter, piece: memoryview) -> None:
        step = len(piece) if self.rate_limit is None else self.rate_limit.step
        for offset in range(0, len(piece), step or 1):  # a step of 0, of an empty piece, is an error
            part = piece[offset : offset + step]
            if self.rate_limit is not None:
                await self.rate_limit.acquire(len(part))
            # Counted before the write, which waits for the socket: `acknowledged` subtracts what is buffered.
            self._count(len(part))
            with self._writing():
                await writer.write(part)

    @contextmanager
    def _writing(self) -> Generator[None]:
        """Wait for the peer in this block."""
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False

    def _count(self, sent: int) -> None:
        self._sent += sent
        self._progress.advance(sent)

    @property
    def is_sent(self) -> bool:
        """Whether all bytes went out; a response before that does not answer this body."""
        return self._sent == self._size

    @property
    def is_waiting(self) -> bool:
        """Whether the body waits for the peer, and not for the disk or the digest."""
        return self._writer is None or self._is_writing or self.is_sent

    @property
    def acknowledged(self) -> int | None:
        """Bytes that the peer has acknowledged, as far as the system knows; None while there is no connection."""
        if self._writer is None:
            return None
        transport: asyncio.WriteTransport | None = getattr(self._writer, "transport", None)
        return self._sent - (
            0 if transport is None else transport.get_write_buffer_size() + (unacknowledged(transport) or 0)
        )

    @property
    def is_followed(self) -> bool:
        """Whether the system reports how many bytes the peer has acknowledged."""
        transport: asyncio.WriteTransport | None = getattr(self._writer, "transport", None)
        return transport is None or unacknowledged(transport) is not None

    async def check_sent(self) -> None:
        """Raise an error if the bytes that were sent are not those of the tar."""

    def rewind(self) -> None:
        """Take the sent bytes back from the progress: they will be sent again."""
        if self._sent:
            self._progress.advance(-self._sent)
        self._sent = 0
        self._writer = self._transport = None  # of the last attempt: nothing is sent before the next connection
        self.md5 = None
        self.failure = None

    def abort(self) -> None:
        """Drop the connection at once; `close` would keep it open until the peer has read what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_idle(self) -> None:
        """Wait until no byte of this body is being written."""
        await self._idle.wait()


class TarBody(UploadBody):
    """A range of the tar of a directory; what the kernel can send from its files never reaches this process."""

    def __init__(
        self, plan: TarPlan, byte_range: ByteRange, pool: TransferPool, progress: Progress, *, digest: bool
    ) -> None:
        super().__init__(plan, byte_range, progress)
        self._plan = plan
        self._threads = pool.threads
        self._reads = pool.reads
        self._io_chunk = pool.config.transfer.io_chunk
        self._digest = digest
        self._reader: TarReader | None = None

    async def check_sent(self) -> None:
        """Raise a SourceChangedError if a file changed before the peer had received its bytes from the kernel."""
        assert self._reader is not None, "all bytes were read"
        if self._reader.sent:
            await self._threads.run(self._reader.check_sent)

    async def _write(self, writer: AbstractStreamWriter) -> None:
        self._reader = reader = TarReader(self._plan, *self._range, io_chunk=self._io_chunk, digest=self._digest)
        tar = AsyncTarReader(reader, asyncio.get_running_loop(), self._threads.executor)
        by_kernel, connection = self.rate_limit is None and sendfile.is_possible(writer), None
        held = memoryview(b"")
        # Reads one chunk ahead of the socket. A short first read opens the file that the kernel may send.
        ahead = asyncio.ensure_future(self._read(tar, WRITE_SIZE if by_kernel else None))
        try:
            while chunk := await ahead:
                sends_file = by_kernel and reader.sendable >= self._io_chunk
                if not sends_file:  # `send` moves the position, from which the next read starts
                    ahead = asyncio.ensure_future(self._read(tar))
                held = await self._send_chunk(writer, held, chunk, holds_back=not sends_file)
                if sends_file:
                    connection = sendfile.duplicate(writer) if connection is None else connection
                    by_kernel = connection is not None
                    if connection is not None:
                        await self._send_file(writer, tar, reader, connection)
                    ahead = asyncio.ensure_future(self._read(tar))
        finally:
            ahead.cancel()
            # The descriptor last: a thread may be sending to it, and its number may be reused at once.
            try:
                await shielded(asyncio.gather(tar.close(), ahead, return_exceptions=True))
            finally:
                if connection is not None:
                    os.close(connection)
        self.md5 = reader.md5.hexdigest() if reader.md5 else None
        await self._send_last(writer, held)

    async def _read(self, tar: AsyncTarReader, limit: int | None = None) -> bytes:
        async with self._reads:
            return await tar.read(limit)

    async def _send_file(
        self, writer: AbstractStreamWriter, tar: AsyncTarReader, reader: TarReader, connection: int
    ) -> None:
        """Let the kernel send the open file, but for its last bytes, after what was written before."""
        with self._writing():
            await sendfile.flush(writer)
        while reader.sendable:
            position = reader.position
            async with self._reads:
                is_full = await tar.send(connection, sendfile.STEP)
            self._count(reader.position - position)
            if is_full:
                with self._writing():
                    await sendfile.writable(connection)

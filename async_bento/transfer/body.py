"""A request body that can be sent again: a byte range of a tar that is never written."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import sys
import termios
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from aiohttp import ClientError, Payload

from async_bento.config import KiB
from async_bento.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.abc import AbstractStreamWriter

    from async_bento.archive.plan import TarPlan
    from async_bento.concurrency import Threads

WRITE_SIZE = 128 * KiB
"""Bytes handed to the socket at once, so that the loop is not held up by one that takes much."""


class TarBody(Payload):
    """The bytes `[start, stop)` of a tar plan, as a request body.

    It knows its size, so that nothing goes out chunked (S3 refuses that), and it starts over whenever it is written
    again: aiohttp resends a PUT on a stale connection by itself, and a body that is used up would go out empty.

    Args:
        plan: The tar.
        start: The first byte.
        stop: The byte after the last.
        threads: Where files are read and hashes are computed.
        io_chunk: Bytes a hop to a thread.
        digest: Whether to compute the MD5.
        moved: Told of each write's bytes, and of the negative of all of them when they are to be sent again.

    Attributes:
        md5: The MD5 of the bytes in hexadecimal, once all of them went through and where it was wanted.
        failure: What reading the tar failed with, as it was raised: aiohttp makes a lost connection of it.
    """

    def __init__(
        self,
        plan: TarPlan,
        start: int,
        stop: int,
        *,
        threads: Threads,
        io_chunk: int,
        digest: bool,
        moved: Callable[[int], None],
    ) -> None:
        super().__init__(plan, content_type="application/octet-stream")
        self._size = stop - start
        self._plan = plan
        self._start = start
        self._stop = stop
        self._threads = threads
        self._io_chunk = io_chunk
        self._digest = digest
        self._moved = moved
        self._sent = 0
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._writer: AbstractStreamWriter | None = None
        self.md5: str | None = None
        self.failure: Exception | None = None

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Not for bytes that do not fit into memory; aiohttp asks for it only to show a body.

        Args:
            encoding: Unused.
            errors: Unused.

        Returns:
            What this body is.
        """
        return f"<bytes {self._start}-{self._stop} of a tar>"

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all bytes, from the first.

        Args:
            writer: The connection.
        """
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Write all bytes, from the first.

        Args:
            writer: The connection.
            content_length: What the request announced; always the size of this body.

        Raises:
            BentoError: A file cannot be read, or is not what the plan says.
        """
        self.rewind()
        self._writer = writer
        self._at_rest.clear()
        try:
            await self._write(writer)
        except (ClientError, ConnectionError):
            raise  # the connection's fault, and aiohttp's to tell
        except Exception as error:
            self.failure = error
            raise
        finally:
            self._at_rest.set()

    async def _write(self, writer: AbstractStreamWriter) -> None:
        md5 = hashlib.md5(usedforsecurity=False) if self._digest else None
        # The last piece goes when all is read, checked and hashed: a storage that has everything answers at once.
        held = b""
        chunks = self._plan.read(self._start, self._stop, threads=self._threads, io_chunk=self._io_chunk)
        async with aclosing(chunks):
            async for chunk in chunks:
                hashed = asyncio.ensure_future(self._threads.run(md5.update, chunk)) if md5 else None
                try:
                    await self._send(writer, held)
                    held = chunk[-WRITE_SIZE:]
                    for offset in range(0, len(chunk) - len(held), WRITE_SIZE):
                        await self._send(writer, chunk[offset : min(offset + WRITE_SIZE, len(chunk) - len(held))])
                finally:
                    if hashed is not None:
                        await hashed
        if self._sent + len(held) != self._size:
            raise IntegrityError(f"read {self._sent + len(held)} bytes of a part of {self._size}")
        self.md5 = md5.hexdigest() if md5 else None
        await self._send(writer, held)

    async def _send(self, writer: AbstractStreamWriter, piece: bytes) -> None:
        self._sent += len(piece)
        self._moved(len(piece))
        await writer.write(piece)

    @property
    def is_sent(self) -> bool:
        """Whether all of it went out: an answer before that is an answer to something else."""
        return self._sent == self._size

    @property
    def arrived(self) -> int | None:
        """Bytes that have reached the other side, or None before the first is sent. It may lag, and never leads."""
        transport: asyncio.WriteTransport | None = getattr(self._writer, "transport", None)
        if transport is None:
            return None if self._writer is None else self._sent
        return self._sent - _waiting(transport)

    def rewind(self) -> None:
        """Take back what was sent, since it is to be sent again."""
        if self._sent:
            self._moved(-self._sent)
        self._sent = 0
        self.md5 = None
        self.failure = None

    async def at_rest(self) -> None:
        """Wait until nothing of this body is being written any more."""
        await self._at_rest.wait()


def _waiting(transport: asyncio.WriteTransport) -> int:
    """Bytes that were handed to a connection and have not arrived: in its buffer, and in the kernel's (tcp(7))."""
    unacknowledged = bytearray(4)
    with suppress(OSError, AttributeError):  # not every system tells, and a closed socket has none
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, unacknowledged)
    return transport.get_write_buffer_size() + int.from_bytes(unacknowledged, sys.byteorder)

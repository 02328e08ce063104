"""The bodies of a copy: a part that is sent while it arrives, and a whole tar that is read while it is sent."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

from async_bento._core.concurrency import shielded
from async_bento.errors import BentoError, TransferError
from async_bento.transfer.body import UploadBody

if TYPE_CHECKING:
    from _hashlib import HASH
    from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence

    from aiohttp.abc import AbstractStreamWriter

    from async_bento._core.concurrency import Threads
    from async_bento.progress.events import Progress
    from async_bento.transfer.copy import CopySource
    from async_bento.transfer.http import ByteRange, TransferPool


_HASHED_AT_ONCE = 1024 * 1024  # bytes: a call of a thread for less would take longer than the hashing


class SourceReadError(TransferError):
    """The source of a copy could not be read, because of `error`. A retry of the upload would not help."""

    def __init__(self, error: BentoError) -> None:
        super().__init__(f"cannot read the source: {error}")
        self.error = error


@contextmanager
def reading() -> Generator[None]:
    """Mark the errors of reading, which are none of the upload."""
    try:
        yield
    except SourceReadError:
        raise
    except BentoError as error:
        raise SourceReadError(error) from error


class PartRead:
    """A part that a task of its own reads and verifies; what has arrived is kept, so that it can be sent again."""

    def __init__(
        self, chunks: AsyncGenerator[bytes], verify: Callable[[Sequence[bytes]], Awaitable[str | None]]
    ) -> None:
        self._pieces: list[bytes] = []
        self._has_news = asyncio.Event()
        self._is_read = False
        self._task = asyncio.create_task(self._read(chunks, verify))

    async def wait_started(self) -> None:
        """Wait for the first bytes; raises the error of reading them."""
        while not (self._pieces or self._is_read):
            await self._wait_for_news()

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The pieces as they arrive, from the first; raises the error of reading them."""
        position = 0
        while True:
            for piece in self._pieces[position:]:
                position += 1
                yield piece
            if self._is_read and position == len(self._pieces):
                return
            if position == len(self._pieces):
                await self._wait_for_news()

    async def _wait_for_news(self) -> None:
        if self._task.done():
            self._task.result()  # raises its error: a task that succeeded has all pieces
        self._has_news.clear()
        await self._has_news.wait()

    async def verified(self) -> str | None:
        """Wait until the part is verified, and return its MD5 if one is needed."""
        return await asyncio.shield(self._task)  # one attempt may be cancelled, and the next needs the task

    async def aclose(self) -> None:
        """End the task."""
        self._task.cancel()
        await shielded(asyncio.gather(self._task, return_exceptions=True))

    async def _read(
        self, chunks: AsyncGenerator[bytes], verify: Callable[[Sequence[bytes]], Awaitable[str | None]]
    ) -> str | None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._pieces.append(chunk)
                    self._has_news.set()
            self._is_read = True
            return await verify(self._pieces)
        finally:
            self._has_news.set()  # also if the read failed


class PartBody(UploadBody):
    """A part that is sent while it arrives; the last bytes once it is verified."""

    def __init__(self, part: PartRead, byte_range: ByteRange, progress: Progress) -> None:
        super().__init__(part, byte_range, progress)
        self._part = part

    async def _write(self, writer: AbstractStreamWriter) -> None:
        held = memoryview(b"")
        with reading():
            async with aclosing(self._part.pieces()) as pieces:
                async for piece in pieces:
                    held = await self._send_chunk(writer, held, piece)
            self.md5 = await self._part.verified()
        await self._send_last(writer, held)


class StreamedBody(UploadBody):
    """A whole tar, which is read while it is sent."""

    def __init__(
        self, source: CopySource, pool: TransferPool, byte_range: ByteRange, progress: Progress, *, digest: bool
    ) -> None:
        super().__init__(source, byte_range, progress)
        self._source = source
        self._threads = pool.threads
        self._digest = digest

    async def _write(self, writer: AbstractStreamWriter) -> None:
        md5 = hashlib.md5(usedforsecurity=False)
        held = memoryview(b"")
        async with aclosing(self._source.chunks()) as chunks:
            async for pieces in chunks:
                if self._digest:
                    await self._threads.run(_hash_pieces, md5, pieces)
                for piece in pieces:
                    held = await self._send_chunk(writer, held, piece)
        if self._digest:
            self.md5 = md5.hexdigest()
        await self._send_last(writer, held)


async def hashed(chunks: AsyncGenerator[bytes], md5: HASH, threads: Threads) -> AsyncGenerator[bytes]:
    """Yield chunks, and hash them while the next ones arrive: at the end, little of a part is left to hash."""
    pieces: list[bytes] = []
    async with aclosing(chunks):
        async for chunk in chunks:
            yield chunk
            pieces.append(chunk)
            if sum(map(len, pieces)) >= _HASHED_AT_ONCE:
                await threads.run(_hash_pieces, md5, pieces)
                pieces = []
    await threads.run(_hash_pieces, md5, pieces)


def _hash_pieces(md5: HASH, pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        md5.update(piece)

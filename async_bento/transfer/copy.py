"""The tar of an item in one registry as the source of an upload to another: ranges become parts, through memory alone.

A part is sent while its range arrives; its last bytes are sent after the checksums of the source are verified. An
upload in one request reads several ranges at once and sends them in order. Where the server sends no ranges, the tar is
read once, in order.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from async_bento._core.concurrency import ByteBudget, shielded
from async_bento._core.retry import Retries
from async_bento._core.s3 import MAX_PARTS, MIN_PART_SIZE
from async_bento.errors import IntegrityError, TransferError
from async_bento.transfer.copy_bodies import PartBody, PartRead, StreamedBody, hashed, reading
from async_bento.transfer.http import ByteRange, get
from async_bento.transfer.ranges import NoRangesError, RangeReader
from async_bento.transfer.source import choose_part_size
from async_bento.transfer.verify import DamagedPartError, Verifier, check_object

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from async_bento.progress.events import Progress
    from async_bento.rest.schemas import ChecksumsSchema
    from async_bento.transfer.body import UploadBody
    from async_bento.transfer.download_source import DownloadSource
    from async_bento.transfer.http import TransferPool

logger = logging.getLogger(__package__)

_TO_THE_END = ByteRange(0, 1 << 62)  # more than any tar has: the server ignores ranges


@dataclass(frozen=True)
class CopyReads:
    """What the reads of one call share. The target uses none of it, so that copies in both directions never block.

    `parts` bounds the bytes of all parts in memory, and the window of `pool` those of uploads in one request.
    `streams` bounds the tars that are read in one piece: each holds a connection, and one part in memory.
    """

    pool: TransferPool
    parts: ByteBudget
    streams: asyncio.Semaphore

    @classmethod
    def of(cls, pool: TransferPool, threads: int) -> CopyReads:
        """Reads with the settings of a pool, and the memory of `threads` parts."""
        transfer = pool.config.transfer
        slots, window = asyncio.Semaphore(transfer.concurrency), ByteBudget(transfer.window)
        reads = replace(pool, slots=slots, window=window)
        return cls(reads, ByteBudget(threads * transfer.part_size), asyncio.Semaphore(threads))


class CopySource:
    """An `UploadSource` that is read from a registry; `open` comes first.

    `check` raises `ObjectChangedError` if the item was pushed again; `identity` names what was pushed.
    """

    def __init__(
        self,
        download: DownloadSource,
        reads: CopyReads,
        check: Callable[[], Awaitable[None]],
        identity: str,
    ) -> None:
        self.size = 0
        self.is_sequential = False
        self._download = download
        self._reads = reads
        self._pool = reads.pool
        self._check = check
        self._identity = identity
        self._reader = RangeReader(download, reads.pool)
        self._checksums: ChecksumsSchema | None = None
        self._part_size: int
        self._is_aligned: bool  # whether the parts are those of the source
        self._turn = asyncio.Event()  # set once the part that was started last is verified
        self._turn.set()
        self._verifier: Verifier | None = None
        self._stream: _Stream | None = None

    async def open(self) -> None:
        """Find the size and the checksums, and whether the server sends ranges."""
        with reading():
            total: int | None = None
            try:
                await self._reader.read(ByteRange(0, 1))
                total = self._reader.total
            except NoRangesError:
                self.is_sequential = True
                logger.info("%s: the registry sends no ranges, so the tar is copied in one piece", self._download.tag)
            if (checksums := self._download.checksums) is not None:
                check_object(checksums, total, self._reader.etag)
                self._checksums = checksums if checksums.parts else None
                total = checksums.size
            self.size = await self._measure() if total is None else total
            if not self.size:  # no tar: even one without files ends with blocks of zeros
                raise TransferError("the registry sent an empty tar. Push it again.")

    async def aclose(self) -> None:
        """Close the connection of a stream."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            self._reads.streams.release()
            await stream.aclose()

    def choose_part_size(self, wanted: int, threads: int) -> int:
        """Choose the part size of the source where S3 allows it: each MD5 of the source then verifies one part."""
        sizes = [] if self._checksums is None else [size for size, _ in self._checksums.parts]
        # Only the last part may have another size.
        is_regular = len({*sizes[:-1]}) == 1 and sizes[-1] <= sizes[0] and len(sizes) <= MAX_PARTS
        self._is_aligned = is_regular and MIN_PART_SIZE <= sizes[0] <= wanted
        self._part_size = sizes[0] if self._is_aligned else choose_part_size(self.size, wanted, threads)
        return self._part_size

    async def fingerprint(self) -> str | None:
        """See `UploadSource`."""
        if self._checksums is not None and not self._is_aligned:
            return None  # a part is sent before the checksum that covers it is reached, and its bytes may be damaged
        facts = f"{self._identity}\0{self._reader.etag}\0{self.size}\0{self._part_size}"
        return hashlib.sha256(facts.encode()).hexdigest()

    async def check(self) -> None:
        """See `UploadSource`."""
        with reading():
            await self._check()

    def whole(self, progress: Progress, *, digest: bool) -> UploadBody:
        """See `UploadSource`."""
        return StreamedBody(self, self._pool, ByteRange(0, self.size), progress, digest=digest)

    @asynccontextmanager
    async def part(self, byte_range: ByteRange, progress: Progress, *, digest: bool) -> AsyncGenerator[UploadBody]:
        """See `UploadSource`."""
        # Before the first await, so that the events are chained in the order of the parts.
        before, self._turn = self._turn, asyncio.Event()
        verified, share = self._turn, 0
        try:
            if not self.is_sequential:  # the parts of a stream come one by one
                wanted = min(byte_range.size, self._reads.parts.size)
                await self._reads.parts.acquire(wanted)
                share = wanted
            chunks = self._next_part(byte_range) if self.is_sequential else self._reader.pieces(byte_range)
            md5 = None
            if digest or self._checksums is not None:
                md5 = hashlib.md5(usedforsecurity=False)
                chunks = hashed(chunks, md5, self._pool.threads)

            async def verify(pieces: Sequence[bytes]) -> str | None:
                found = None if md5 is None else md5.hexdigest()
                if found is not None and self._checksums is not None:
                    await self._verify_part(byte_range, pieces, found, before)
                verified.set()
                return found

            async with aclosing(PartRead(chunks, verify)) as part:
                with reading():
                    await part.wait_started()
                yield PartBody(part, byte_range, progress)
        finally:
            verified.set()  # also after an error: the next part would wait for ever
            self._reads.parts.release(share)

    async def chunks(self) -> AsyncGenerator[Sequence[bytes]]:
        """Yield all bytes in order, verified, each chunk in pieces; end once the item is known to be unchanged."""
        verifier = None if self._checksums is None else Verifier(self._checksums, self._download.failed)
        with reading():
            everything = ByteRange(0, self.size)
            stream = self._stream_in_pieces() if self.is_sequential else self._reader.chunks_in_pieces(everything)
            async with aclosing(stream) as chunks:
                async for pieces in chunks:
                    if verifier is not None:
                        await verifier.check(pieces, self._pool.threads)
                    yield pieces
            await self._check()

    async def _verify_part(
        self, byte_range: ByteRange, pieces: Sequence[bytes], md5: str, before: asyncio.Event
    ) -> None:
        """Compare a part with the checksums of the source, once the parts before are."""
        assert self._checksums is not None, "the caller has checked it"
        if self._is_aligned:
            number = byte_range.start // self._part_size
            if (expected := self._checksums.parts[number][1].lower()) != md5:
                raise DamagedPartError(number + 1, *byte_range, expected=expected, actual=md5)
            return
        await before.wait()
        # At first, and after parts that have arrived.
        if self._verifier is None or self._verifier.position != byte_range.start:
            self._verifier = Verifier(self._checksums, self._download.failed, byte_range.start)
        await self._verifier.check(pieces, self._pool.threads)

    async def _next_part(self, byte_range: ByteRange) -> AsyncGenerator[bytes]:
        """Read a part of a server that sends no ranges; the parts come in order."""
        if self._stream is None or self._stream.position != byte_range.start:  # not the next part of the stream
            await self.aclose()
            await self._reads.streams.acquire()
            self._stream = _Stream(self._read_stream(byte_range.start), byte_range.start)
        stream = self._stream
        while missing := byte_range.stop - stream.position:
            yield await stream.next(missing)

    async def _stream_in_pieces(self) -> AsyncGenerator[list[bytes]]:
        async with aclosing(self._read_stream(0)) as chunks:
            async for chunk in chunks:
                yield [chunk]

    async def _measure(self) -> int:
        """Count the bytes of a tar whose size no server states."""
        size = 0
        async with aclosing(self._read_stream(0)) as chunks:
            async for chunk in chunks:
                size += len(chunk)
        return size

    async def _read_stream(self, position: int) -> AsyncGenerator[bytes]:
        """Read the bytes from a position on, from a server that sends the whole tar each time."""
        retries = Retries(self._pool.config.retry, progress=lambda: position)
        while True:
            target = await self._download.target()
            try:
                async with self._pool.slot(target), get(target, _TO_THE_END, self._pool.config) as received:
                    arrived = 0
                    while chunk := await received.read():
                        arrived += len(chunk)
                        if arrived > position:
                            new, position = chunk[position - arrived :], arrived
                            yield new
                if self.size and arrived != self.size:
                    raise IntegrityError(f"{arrived} of {self.size} bytes arrived")
            except Exception as error:
                if not await self._download.wait_after_failure(retries, target, error):
                    raise
            else:
                return


class _Stream:
    """Bytes that a task of its own reads ahead: any task may take them, and close it."""

    # A request holds a cancel scope of anyio, which only the task that has entered it may leave.

    def __init__(self, chunks: AsyncGenerator[bytes], position: int) -> None:
        self.position = position
        """Where the next bytes are in the tar."""
        self._ahead = b""
        self._queue: asyncio.Queue[bytes | Exception] = asyncio.Queue(1)
        self._task = asyncio.create_task(self._read(chunks))

    async def next(self, limit: int) -> bytes:
        """The next bytes, at most `limit`; raises what the reading has raised."""
        item = self._ahead or await self._queue.get()
        if isinstance(item, Exception):
            raise item
        chunk, self._ahead = item[:limit], item[limit:]
        self.position += len(chunk)
        return chunk

    async def aclose(self) -> None:
        self._task.cancel()
        await shielded(asyncio.gather(self._task, return_exceptions=True))

    async def _read(self, chunks: AsyncGenerator[bytes]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self._queue.put(chunk)
            raise IntegrityError("the tar ended early")
        except Exception as error:  # noqa: BLE001 - raised by `next`
            await self._queue.put(error)

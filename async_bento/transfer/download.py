"""Download of a tar: ranges in parallel, fed to the sink in order while later ranges are still arriving.

A pull feeds a `ResumableExtract`, and a remote tar that is streamed (`remote.py`) a `StreamSink`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from async_bento._core.retry import BUSY, Retries
from async_bento.errors import APIError, APIStatusError, IntegrityError, PartError, TransferError
from async_bento.transfer.adaptive import AdaptiveRanges
from async_bento.transfer.download_source import CHANGED
from async_bento.transfer.fallback import with_both_causes
from async_bento.transfer.http import ByteRange, get
from async_bento.transfer.verify import (
    DamagedPartError,
    ObjectChangedError,
    OtherObjectError,
    Verifier,
    check_object,
)
from async_bento.transfer.window import PendingRanges

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from async_bento.progress.events import Progress
    from async_bento.rest.transport import Target
    from async_bento.transfer.download_source import DownloadSource
    from async_bento.transfer.http import RangeResponse, TransferPool
    from async_bento.transfer.resumable_extract import ResumePoint


class Sink(Protocol):
    """Consumes the bytes of a tar in order. Every method blocks, and runs in a worker thread."""

    resume_point: ResumePoint | None
    """What an interrupted download left; None for nothing, and after `restart`."""

    def start(self, total: int | None, etag: str | None, next_checkpoint: Callable[[int], int] | None = None) -> None:
        """Prepare for the bytes; `total` is the size of the tar, None where the server does not state it.

        `next_checkpoint` is that of the `Verifier` of the bytes, None without one.
        """
        ...

    def feed(self, data: Sequence[bytes | memoryview]) -> None:
        """Consume the next bytes."""
        ...

    def restart(self) -> None:
        """Drop all consumed bytes: the tar comes again from its first byte."""
        ...


async def download(source: DownloadSource, sink: Sink, pool: TransferPool, progress: Progress) -> None:
    """Download a tar into a sink; where the object changes or bytes are damaged on the way, start again, once."""
    try:
        await _download(source, sink, pool, progress)
    except APIError as error:
        if source.unreachable is None:
            raise
        raise with_both_causes(source.unreachable, error) from error.__cause__


async def _download(source: DownloadSource, sink: Sink, pool: TransferPool, progress: Progress) -> None:
    job = _Download(source, sink, pool, progress)
    first: ObjectChangedError | DamagedPartError | None = None
    while True:
        try:
            await job.run()
        except (ObjectChangedError, DamagedPartError) as error:
            # Before the error is raised: what a later pull would resume is wrong.
            await job.restart(CHANGED if isinstance(error, OtherObjectError) else str(error))
            is_damaged_twice = isinstance(error, DamagedPartError) and await job.is_damaged_again(error)
            if first is not None or is_damaged_twice:
                raise _final(source, error) from None
            first = error
        else:
            return


def _final(source: DownloadSource, error: ObjectChangedError | DamagedPartError) -> TransferError:
    """The error for bytes that are wrong in a second download, too."""
    failed, push = source.failed, f"Push the {source.kind} again with force (`--force`)"
    if isinstance(error, OtherObjectError):
        return IntegrityError(f"{failed}: the storage sent a tar with {error}: it was damaged or replaced. {push}.")
    if isinstance(error, ObjectChangedError):
        return TransferError(f"{failed}: {error}, twice. Try again.")
    part = f"part {error.number} of its tar"
    if error.repeated not in {None, error.actual}:
        return IntegrityError(
            f"{failed}: the connection damages its bytes: {part} has the MD5 {error.actual}, in another download "
            f"{error.repeated}, instead of {error.expected}. Check the network and its proxies, or use https."
        )
    return IntegrityError(
        f"{failed}: the registry's copy is damaged: {part} has the MD5 {error.actual} instead of {error.expected}. "
        f"{push}; the registry's operator can find all damaged tars with `async-bento registry check`."
    )


class _Download:
    def __init__(self, source: DownloadSource, sink: Sink, pool: TransferPool, progress: Progress) -> None:
        self._source = source
        self._sink = sink
        self._pool = pool
        self._progress = progress
        self._ranges = AdaptiveRanges(pool.config.transfer)
        self._etag: str | None = None
        self._total: int | None = None
        self._verifier: Verifier | None = None
        self._ranges_done = 0

    async def run(self) -> None:
        """Download what the sink does not have yet."""
        self._total = self._etag = None
        point = self._sink.resume_point
        self._source.is_resumed = point is not None
        if point is not None:
            self._total, self._etag = point.total, point.etag
            await self._source.target()  # whose response has the checksums
            await self._start_sink(point.total, point.etag, point)
            self._progress.resume(point.position, point.total)
        async with aclosing(PendingRanges(self._fetch, self._ranges, self._pool.window)) as pending:
            start = await self._request_first(pending) if point is None else point.position
            await self._request_rest(start, pending)

    async def restart(self, reason: str) -> None:
        """Drop what has arrived."""
        await self._pool.threads.run(self._sink.restart)
        self._source.refresh()
        self._progress.restart(f": {reason}")

    async def is_damaged_again(self, part: DamagedPartError) -> bool:
        """Whether another download of a part is damaged, too; unknown, so False, where the server sends no ranges."""
        if self._total is None:
            return False
        md5, size, run = hashlib.md5(usedforsecurity=False), self._ranges.size, self._pool.threads.run
        try:
            for start in range(part.start, part.stop, size):
                byte_range = ByteRange(start, min(start + size, part.stop))
                await self._pool.window.acquire(byte_range.size)
                try:
                    for chunk in await self._fetch(byte_range) or ():
                        await run(md5.update, chunk)
                finally:
                    self._pool.window.release(byte_range.size)
                self._progress.advance(-byte_range.size)  # which `_fetch` has counted, but are none of the pull
        except ObjectChangedError:
            return False
        part.repeated = md5.hexdigest()
        return part.repeated != part.expected

    async def _start_sink(self, total: int | None, etag: str | None, point: ResumePoint | None = None) -> None:
        """Check the size and the ETag, and prepare to verify the bytes from the first or from `point` on."""
        self._verifier, next_checkpoint = None, None
        if (checksums := self._source.checksums) is not None:
            check_object(checksums, total, etag)
            if checksums.parts:
                start = 0 if point is None else point.position
                self._verifier = Verifier(checksums, self._source.failed, start)
                next_checkpoint = self._verifier.next_checkpoint
                if point is not None and not (point.is_verified and next_checkpoint(start) == start):
                    raise ObjectChangedError("the interrupted pull was not verified")
        await self._pool.threads.run(self._sink.start, total, etag, next_checkpoint)

    async def _feed(self, data: Sequence[bytes]) -> None:
        if self._verifier is None:
            await self._pool.threads.run(self._sink.feed, data)
        else:
            await self._verifier.feed(data, self._sink, self._pool.threads)

    async def _request_first(self, pending: PendingRanges[list[bytes] | None]) -> int:
        """Request the first range, and wait until its headers state size and ETag, or until it has ended."""
        self._size_known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        start = await pending.request(0, self._ranges.size)
        headers_or_end: list[asyncio.Future[Any]] = [pending.first, self._size_known]
        await asyncio.wait(headers_or_end, return_when=asyncio.FIRST_COMPLETED)
        return start

    async def _request_rest(self, start: int, pending: PendingRanges[list[bytes] | None]) -> None:
        """Request the bytes from `start` on, several ranges at once within the window, and feed them in order."""
        while pending or start < self._stop:
            start = await pending.request(start, self._stop)
            if not pending.first.done():
                done, _ = await asyncio.wait(pending.running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a failed range ends the download before its turn
                continue
            data = pending.first.result()
            if self._progress.phase == "transferring" and start >= self._stop and not pending.running:
                self._progress.enter("extracting")
            if data is not None:  # None: `_read_whole` has fed the sink
                await self._feed(data)
            pending.release_first()

    @property
    def _stop(self) -> int:
        """The end of the ranges: 0 while it is unknown, and without ranges."""
        return self._total or 0

    async def _fetch(self, byte_range: ByteRange) -> list[bytes] | None:
        """Fetch a range, with retries; None where the server sent the whole tar instead and the sink has it."""
        retries = Retries(self._pool.config.retry, progress=lambda: self._ranges_done, on_retry=self._progress.retry)
        while True:
            target = await self._source.target()  # not retried here: API requests have their own retries
            try:
                async with self._pool.slot(target):
                    data = await self._fetch_once(target, byte_range, retries.failures + 1)
            except Exception as error:
                if not await self._source.wait_after_failure(retries, target, error):
                    raise
            else:
                self._ranges_done += 1
                return data

    async def _fetch_once(self, target: Target, byte_range: ByteRange, attempt: int) -> list[bytes] | None:
        started = time.perf_counter()
        with self._progress.attempt() as count:
            try:
                numbered = replace(target, attempt=attempt)
                async with get(numbered, byte_range, self._pool.config, etag=self._etag) as received:
                    if received.is_partial:
                        data = await self._read(received, byte_range, count)
                        now = time.perf_counter()
                        self._ranges.record(sum(map(len, data)), now - started, now)
                        return data
                    if self._total is not None:
                        raise ObjectChangedError("the server no longer supports range requests")
                    await self._read_whole(received, count)
                    return None
            except (APIStatusError, PartError) as error:
                if error.status in BUSY:
                    self._ranges.throttle(time.perf_counter())
                self._source.check_refusal(error, target, byte_range)
                raise

    async def _read(self, received: RangeResponse, byte_range: ByteRange, count: Callable[[int], None]) -> list[bytes]:
        if self._total is None:
            self._total, self._etag = received.total, received.etag
            self._progress.enter("transferring", bytes_total=received.total)
            await self._start_sink(received.total, received.etag)
            self._size_known.set_result(None)
        elif received.total != self._total or (received.etag and self._etag and received.etag != self._etag):
            raise ObjectChangedError(CHANGED)  # some storages ignore If-Match
        size = min(byte_range.stop, self._total or byte_range.stop) - byte_range.start
        data: list[bytes] = []
        async for piece in read_range(received, size, self._source.failed):
            data.append(piece)
            count(len(piece))
        return data

    async def _read_whole(self, received: RangeResponse, count: Callable[[int], None]) -> None:
        self._progress.enter("transferring", bytes_total=received.total)
        await self._start_sink(received.total, received.etag)
        io_chunk = self._pool.config.transfer.io_chunk
        data: list[bytes] = []
        size = 0
        try:
            while chunk := await received.read():
                data.append(chunk)
                size += len(chunk)
                count(len(chunk))
                if size >= io_chunk:
                    await self._feed(data)
                    data, size = [], 0
            await self._feed(data)
            if self._verifier is not None:
                self._verifier.finish()
        except Exception:  # a retry gets the whole tar again; after a cancellation, the caller aborts the sink
            await self._pool.threads.run(self._sink.restart)
            raise


async def read_range(received: RangeResponse, size: int, failed: str) -> AsyncGenerator[bytes]:
    """Read a range of `size` bytes in the pieces that arrive: joining them would copy every byte once more."""
    arrived = 0
    while piece := await received.read():
        arrived += len(piece)
        if arrived > size:
            raise IntegrityError(f"{failed}: the storage sent more than the {size} bytes of a range")
        yield piece
    if arrived < size:
        raise IntegrityError(f"{failed}: the connection ended within a range")

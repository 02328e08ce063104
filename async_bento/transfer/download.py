"""Download of a tar: ranges in parallel, fed to the sink in order while later ranges are still arriving.

A pull feeds a `ResumableExtract`, and a remote tar that is streamed (`remote.py`) a `StreamSink`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from async_bento._core.concurrency import shielded
from async_bento._core.retry import BUSY, Retries
from async_bento.errors import APIError, APIResponseError, APIStatusError, IntegrityError, PartError, TransferError
from async_bento.transfer.adaptive import AdaptiveRanges
from async_bento.transfer.fallback import (
    UnreachableError,
    remember_unreachable,
    wait_after_failure,
    with_both_causes,
)
from async_bento.transfer.http import ByteRange, get
from async_bento.transfer.verify import (
    DamagedPartError,
    ObjectChangedError,
    OtherObjectError,
    Verifier,
    check_object,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

    from async_bento.progress.events import Progress
    from async_bento.rest.routes import AnyRoutes
    from async_bento.rest.schemas import ChecksumsSchema, ItemSchema
    from async_bento.rest.transport import Target
    from async_bento.transfer.http import RangeResponse, TransferPool
    from async_bento.transfer.resumable_extract import ResumePoint

CHANGED = "the item was pushed again during the download"


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


class DownloadSource:
    """Where an item's tar is: a presigned URL, requested again once it has expired, or the registry itself.

    `checksums` are those of the bytes at the current target; None without `verify`, and where the registry has none.
    """

    def __init__(self, routes: AnyRoutes, name: str, record: ItemSchema, *, verify: bool) -> None:
        self.tag = f"{name}:{record.version}"
        self.kind = routes.kind
        self.checksums: ChecksumsSchema | None = None
        self._routes = routes
        self._name = name
        self._record: ItemSchema | None = record
        self._strategy = record.transmission_strategy
        self._version = record.version
        self._verify = verify
        self._asks_storage = False
        self._current: Target | None = None
        self.is_resumed = False  # so the storage has worked
        self.unreachable: str | None = None  # why the bytes go through the registry instead
        self._lock = asyncio.Lock()

    async def target(self) -> Target:
        """The current target; concurrent callers share one request for it."""
        async with self._lock:
            if self._current is None:
                self._current = await self._presign()
            return self._current

    def expire(self, target: Target) -> None:
        """Request a new URL next time, unless that has happened since this target was handed out."""
        if self._current is target:
            self._current = None

    def ask_storage(self) -> bool:
        """Use a presigned URL although the registry serves the bytes itself; False if the source used one before."""
        if self._strategy != "proxy" or self._asks_storage:
            return False
        self._asks_storage, self._current = True, None
        return True

    def check_refusal(self, error: APIStatusError | PartError, target: Target, byte_range: ByteRange) -> None:
        """Raise ObjectChangedError where the object has changed; request a new URL where this one has expired."""
        if error.status == HTTPStatus.FORBIDDEN and target.credentials is None:
            self.expire(target)
        # 416: the object has become shorter than a range within its first size. 412: it lost the ETag of If-Match.
        beyond_end = error.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and byte_range.start > 0
        if beyond_end or error.status == HTTPStatus.PRECONDITION_FAILED:
            raise ObjectChangedError(CHANGED) from error

    def refresh(self) -> None:
        """Request the URL and the checksums again next time: the item may have been pushed again."""
        self._current = self._record = None

    async def wait_after_failure(self, retries: Retries, target: Target | None, error: Exception) -> bool:
        """Wait before the next attempt, which may go through the registry; False where the error is to be raised."""
        try:
            return await wait_after_failure(retries, None if self.is_resumed else target, error)
        except UnreachableError as unreachable:
            remember_unreachable(self._routes.session.storages, unreachable)
            self._current = None
            return True

    async def _presign(self) -> Target:
        name, version = self._name, self._version
        if self._asks_storage:
            with suppress(APIStatusError):  # then the registry's own way remains
                record = await self._routes.presign_download(name, version)
                self._set_checksums(record)
                if record.presigned_download_url.get_secret_value():
                    target = self._routes.session.storage_target(record.presigned_download_url)
                    if target.storage not in self._routes.session.storages.unreachable:
                        return target
        elif self._strategy != "proxy":
            record = await self._routes.presign_download(name, version)
            self._set_checksums(record)
            if record.presigned_download_url.get_secret_value():
                target = self._routes.session.storage_target(record.presigned_download_url)
                self.unreachable = self._routes.session.storages.unreachable.get(target.storage)
                if self.is_resumed or self.unreachable is None:
                    return target
            elif self._strategy is not None:  # an old Yatai states none; without a URL, the registry sends the bytes
                raise APIResponseError(
                    f"cannot pull {self.tag}: the registry's response has no presigned download URL",
                    field="presigned_download_url",
                )
        elif self._verify:
            if self._record is None or self._record.checksums is None:  # the records of a list have none
                self._record = await self._routes.get(name, version)
            self._set_checksums(self._record)
        return self._routes.download_target(name, version)

    def _set_checksums(self, record: ItemSchema | None) -> None:
        self.checksums = record.checksums if record is not None and self._verify else None


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
    failed, push = f"cannot pull {source.tag}", f"Push the {source.kind} again with force (`--force`)"
    if isinstance(error, OtherObjectError):
        return IntegrityError(f"{failed}: the storage sent a tar with {error}: it was damaged or replaced. {push}.")
    if isinstance(error, ObjectChangedError):
        return TransferError(f"{failed}: {error}, twice. Pull again.")
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


class _PendingRange(NamedTuple):
    """A requested range, and the bytes of the window that it holds."""

    task: asyncio.Task[list[bytes] | None]
    size: int


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
        self._size_known: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Download what the sink does not have yet."""
        start = 0
        self._total = self._etag = None
        self._source.is_resumed = self._sink.resume_point is not None
        if point := self._sink.resume_point:
            start, self._total, self._etag = point.position, point.total, point.etag
            await self._source.target()  # whose response has the checksums
            await self._start_sink(point.total, point.etag, point)
            self._progress.resume(start, point.total)
        pending: deque[_PendingRange] = deque()
        try:
            if point is None:
                start = await self._request_first(pending)
            await self._request_rest(start, pending)
        finally:
            for one in pending:
                one.task.cancel()
            # The window is released after the tasks, which hold its bytes until they end.
            await shielded(asyncio.gather(*(one.task for one in pending), return_exceptions=True))
            for one in pending:
                self._pool.window.release(one.size)

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
                self._verifier = Verifier(checksums, self._source.tag, start)
                next_checkpoint = self._verifier.next_checkpoint
                if point is not None and not (point.is_verified and next_checkpoint(start) == start):
                    raise ObjectChangedError("the interrupted pull was not verified")
        await self._pool.threads.run(self._sink.start, total, etag, next_checkpoint)

    async def _feed(self, data: Sequence[bytes]) -> None:
        if self._verifier is None:
            await self._pool.threads.run(self._sink.feed, data)
        else:
            await self._verifier.feed(data, self._sink, self._pool.threads)

    async def _request_first(self, pending: deque[_PendingRange]) -> int:
        """Request the first range, and wait until its headers state size and ETag, or until it has ended."""
        size = self._ranges.size
        await self._pool.window.acquire(size)
        self._size_known = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(self._fetch(ByteRange(0, size)))
        pending.append(_PendingRange(first, size))
        headers_or_end: list[asyncio.Future[Any]] = [first, self._size_known]
        await asyncio.wait(headers_or_end, return_when=asyncio.FIRST_COMPLETED)
        return size

    async def _request_rest(self, start: int, pending: deque[_PendingRange]) -> None:
        """Request the bytes from `start` on, several ranges at once within the window, and feed them in order."""
        while pending or start < (self._total or 0):
            start = await self._request_more(start, pending)
            first, size = pending[0]
            if not first.done():
                running = [one.task for one in pending if not one.task.done()]
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # a failed range ends the download before its turn
                continue
            data = first.result()
            if self._progress.phase == "transferring" and start >= (self._total or 0) and _all_done(pending):
                self._progress.enter("extracting")
            if data is not None:  # None: `_read_whole` has fed the sink
                await self._feed(data)
            self._pool.window.release(size)
            pending.popleft()

    async def _request_more(self, start: int, pending: deque[_PendingRange]) -> int:
        """Request as many ranges as pace and window allow.

        The window is waited for only while none of it is held, so that items that share it never wait for each other.
        """
        total, window = self._total or 0, self._pool.window
        while start < total:
            size, running = self._ranges.size, sum(not one.task.done() for one in pending)
            if pending and (running >= self._ranges.concurrency or window.would_block(size)):
                break
            await window.acquire(size)
            stop = min(start + size, total)
            pending.append(_PendingRange(asyncio.create_task(self._fetch(ByteRange(start, stop))), size))
            start = stop
        return start

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
            if self._size_known is not None and not self._size_known.done():
                self._size_known.set_result(None)
        elif received.total != self._total or (received.etag and self._etag and received.etag != self._etag):
            raise ObjectChangedError(CHANGED)  # some storages ignore If-Match
        size = min(byte_range.stop, self._total or byte_range.stop) - byte_range.start
        data: list[bytes] = []
        async for piece in read_range(received, size, f"cannot pull {self._source.tag}"):
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


def _all_done(ranges: Iterable[_PendingRange]) -> bool:
    return all(one.task.done() for one in ranges)

"""One HTTP request that moves bytes: a PUT of a tar range, or a GET of an object's range."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import anyio
from aiohttp import ClientError, Payload

from async_bento._core.concurrency import shielded
from async_bento.config import KiB
from async_bento.errors import (
    IntegrityError,
    StalledError,
)
from async_bento.rest.responses import is_markup
from async_bento.rest.transport import MAX_ERROR_BODY, read_body
from async_bento.transfer import sendfile
from async_bento.transfer.responses import RedirectError, broken, is_partial, refused, total_size, verified_etag
from async_bento.transfer.tar.reader import AsyncTarReader, TarReader
from async_bento.transfer.watchdog import Watchdog, unacknowledged

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp.abc import AbstractStreamWriter

    from async_bento._core.concurrency import ByteBudget, Threads
    from async_bento.config import Config, Timeouts
    from async_bento.progress.events import Progress
    from async_bento.rest.transport import Target
    from async_bento.transfer.tar.plan import TarPlan

WRITE_SIZE = 128 * KiB
"""Bytes per write to the socket; larger writes would hold up the event loop, over TLS above all."""

READ_THREADS = max(4, os.cpu_count() or 1)
"""Threads of a client that read and hash bodies at once. More only contend with the event loop for cores and the
interpreter's lock: with ten on two cores, a push of many small files took a sixth longer."""


class ByteRange(NamedTuple):
    """The bytes `[start, stop)` of a tar."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self.stop - self.start


@dataclass(frozen=True)
class TransferPool:
    """What all transfers of one client share.

    `threads` read and write files and compute hashes; `slots` bound the requests in flight (`Transfer.concurrency`);
    `window` bounds the bytes that downloads hold in memory (`Transfer.window`); `reads` bounds the threads that read
    and hash bodies.
    """

    config: Config
    threads: Threads
    slots: asyncio.Semaphore
    window: ByteBudget
    reads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READ_THREADS))

    @asynccontextmanager
    async def slot(self, target: Target) -> AsyncGenerator[None]:
        """Hold a slot for one request to a target; while its host is paused, the slot serves other hosts."""
        async with target.turn():
            while True:
                async with self.slots:
                    if not target.is_paused:
                        yield
                        return
                await target.throttle.wait(target.host)


@dataclass(frozen=True)
class RangeResponse:
    """The response to a ranged GET, its body not yet read.

    `is_partial` distinguishes the range from the whole object; `total` is the size of the whole object in bytes,
    None where the server does not state it.
    """

    is_partial: bool
    total: int | None
    etag: str | None
    response: aiohttp.ClientResponse
    watchdog: Watchdog

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end."""
        with self.watchdog.waiting():
            return await self.response.content.readany()


class TarBody(Payload):
    """A range of a tar plan as a request body that can be sent again.

    The body states its size, since S3 refuses chunked bodies. Every write starts from the first byte: aiohttp resends a
    PUT on a stale connection by itself, and a body that was used up would go out empty. `failure` holds an error of
    reading the tar, which aiohttp would turn into a lost connection.
    """

    def __init__(
        self, plan: TarPlan, byte_range: ByteRange, pool: TransferPool, progress: Progress, *, digest: bool
    ) -> None:
        super().__init__(plan, content_type="application/octet-stream")
        self._size = byte_range.size
        self._plan = plan
        self._range = byte_range
        self._threads = pool.threads
        self._reads = pool.reads
        self._io_chunk = pool.config.transfer.io_chunk
        self._progress = progress
        self._digest = digest
        self._sent = 0
        self._is_writing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: AbstractStreamWriter | None = None
        self._transport: asyncio.WriteTransport | None = None  # which the writer forgets once it is being closed
        self._reader: TarReader | None = None
        self.md5: str | None = None
        self.failure: Exception | None = None
        self.may_have_arrived = False  # whether all bytes were sent by any attempt

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
        self._transport = getattr(writer, "transport", None)
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

    async def _write(self, writer: AbstractStreamWriter) -> None:
        self._reader = reader = TarReader(self._plan, *self._range, io_chunk=self._io_chunk, digest=self._digest)
        tar = AsyncTarReader(reader, asyncio.get_running_loop(), self._threads.executor)
        by_kernel, connection = sendfile.is_possible(writer), None
        # The last piece is held back until all bytes are read, checked and hashed: a storage that has received the
        # whole body responds at once.
        held = memoryview(b"")
        ahead = asyncio.ensure_future(self._read(tar, WRITE_SIZE if by_kernel else None))
        try:
            while chunk := memoryview(await ahead):
                sends_file = by_kernel and reader.sendable >= self._io_chunk
                if not sends_file:
                    ahead = asyncio.ensure_future(self._read(tar))
                await self._send(writer, held)
                held = memoryview(b"" if sends_file else bytes(chunk[-WRITE_SIZE:]))  # a copy, which frees the chunk
                for offset in range(0, len(chunk) - len(held), WRITE_SIZE):
                    await self._send(writer, chunk[offset : min(offset + WRITE_SIZE, len(chunk) - len(held))])
                if sends_file:
                    connection = sendfile.duplicate(writer) if connection is None else connection
                    by_kernel = connection is not None
                    if connection is not None:
                        await self._send_file(writer, tar, reader, connection)
                    ahead = asyncio.ensure_future(self._read(tar))
        finally:
            ahead.cancel()
            try:
                await shielded(asyncio.gather(tar.close(), ahead, return_exceptions=True))
            finally:
                if connection is not None:
                    os.close(connection)
        if self._sent + len(held) != self._size:
            raise IntegrityError(f"cannot send a part of {self._size} bytes: {self._sent + len(held)} bytes were read")
        self.md5 = reader.md5.hexdigest() if reader.md5 else None
        self.may_have_arrived = True
        await self._send(writer, held)

    async def _read(self, tar: AsyncTarReader, limit: int | None = None) -> bytes:
        async with self._reads:
            return await tar.read(limit)

    async def _send(self, writer: AbstractStreamWriter, piece: memoryview) -> None:
        self._count(len(piece))
        self._is_writing = True
        await writer.write(piece)
        self._is_writing = False

    async def _send_file(
        self, writer: AbstractStreamWriter, tar: AsyncTarReader, reader: TarReader, connection: int
    ) -> None:
        """Let the kernel send the open file, but for its last bytes, after what was written before."""
        self._is_writing = True
        await sendfile.flush(writer)
        self._is_writing = False
        while reader.sendable:
            position = reader.position
            async with self._reads:
                is_full = await tar.send(connection, sendfile.STEP)
            self._count(reader.position - position)
            if is_full:
                self._is_writing = True
                await sendfile.writable(connection)
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
        """Whether the peer is waited for, and not the disk or the digest."""
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
        """Raise a SourceChangedError if a file has changed until the peer had received it from the kernel."""
        if self._reader is not None and self._reader.sent:
            await self._threads.run(self._reader.check_sent)

    def rewind(self) -> None:
        """Take the sent bytes back from the progress: they will be sent again."""
        if self._sent:
            self._progress.advance(-self._sent)
        self._sent = 0
        self._is_writing = False
        self._writer = self._transport = None  # of the last attempt: nothing is sent before the next connection
        self.md5 = None
        self.failure = None

    def abort(self) -> None:
        """Drop the connection; one that is closed stays open until the peer has read what is buffered."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_idle(self) -> None:
        """Wait until no byte of this body is being written."""
        await self._idle.wait()


async def put(target: Target, body: TarBody, config: Config, part_number: int | None = None) -> str:
    """PUT a body once and return its ETag, quotes included; empty where the server sent none and no part needs it.

    Where the request fails, the body is rewound, and so is the progress that it reported.
    """
    try:
        while True:
            request = f"{target}" if part_number is None else f"{target} (part {part_number})"
            try:
                etag = await _put(target, body, config, request, part_number)
                break
            except RedirectError as redirect:
                target = redirect.target
        if part_number is not None and not etag:
            raise IntegrityError(f"{request}: the storage sent no ETag, but the upload cannot be completed without one")
    except BaseException:
        body.rewind()
        raise
    return etag or ""


async def _put(target: Target, body: TarBody, config: Config, request: str, part_number: int | None) -> str | None:
    headers = {"Content-Length": str(body.size)}
    if target.credentials is not None:
        headers["Content-Type"] = "application/octet-stream"  # presigned URLs are signed without a Content-Type
    timeout, is_answered = _timeout(config), False
    body.rewind()  # after a redirect
    scope = anyio.CancelScope()
    patience = partial(_patience, body, config.timeouts, target)
    watchdog = Watchdog(scope, config.timeouts.stall, patience, lambda: body.acknowledged)
    with scope:
        try:
            async with target.request("PUT", timeout, headers=headers, data=body) as response:
                text = await read_body(response, MAX_ERROR_BODY)
                is_answered = True
                if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                    raise refused(target, request, response, text, part_number)
                if not body.is_sent:
                    raise ConnectionError("the server replied 2xx before the whole body was sent")
                if text.strip() and is_markup(response.headers, text):  # a proxy's, or a captive portal's
                    raise ConnectionError("received an HTML page instead of a response")
                await body.check_sent()
                return verified_etag(response.headers, body.md5, request)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if body.failure is not None:
                raise body.failure from None
            raise broken(target, request, error, timeout) from error
        finally:
            watchdog.stop()
            if not (is_answered and body.is_sent):  # otherwise, another request may be using the connection
                body.abort()
            await shielded(body.wait_idle())
    seconds = watchdog.exceeded
    if target.credentials is not None and watchdog.reached == body.size:
        raise StalledError(
            f"{request}: the registry received all bytes and sent no response within {seconds:g} s. Push again.",
            is_final=True,
        )
    raise StalledError(f"{request}: no byte was transferred for {seconds:g} s")


def _patience(body: TarBody, timeouts: Timeouts, target: Target) -> float | None:
    """Seconds that an upload may stand still; None while it reads the tar."""
    if not body.is_waiting:
        return None
    if body.acknowledged is None:
        return timeouts.connect + timeouts.stall
    # Where the system does not follow the bytes, a slow connection that empties the kernel's buffer looks stalled.
    if _is_processing(body, target) or not body.is_followed:
        return max(timeouts.stall, timeouts.complete)
    return timeouts.stall


def _is_processing(body: TarBody, target: Target) -> bool:
    """Whether a registry has all bytes: it may still be passing them on to its storage."""
    return target.credentials is not None and body.is_sent and body.acknowledged == body.size


@asynccontextmanager
async def get(
    target: Target, byte_range: ByteRange, config: Config, *, etag: str | None = None
) -> AsyncGenerator[RangeResponse]:
    """GET a range once (RFC 9110, 14); the object may end before `stop`, and must still have `etag`, if given."""
    async with AsyncExitStack() as stack:
        while True:
            try:
                received = await stack.enter_async_context(_get(target, byte_range, config, etag))
                break
            except RedirectError as redirect:
                target = redirect.target
        yield received


@asynccontextmanager
async def _get(
    target: Target, byte_range: ByteRange, config: Config, etag: str | None
) -> AsyncGenerator[RangeResponse]:
    request = str(target)
    headers = {"Range": f"bytes={byte_range.start}-{byte_range.stop - 1}"}
    if etag and not etag.startswith("W/"):  # a weak ETag never matches (RFC 9110, 13.1.1)
        headers["If-Match"] = etag
    timeout, timeouts = _timeout(config, reading=True), config.timeouts
    stalled = StalledError(f"{request}: no byte was transferred for {timeouts.stall:g} s")
    scope = anyio.CancelScope()
    watchdog = Watchdog(scope, timeouts.stall, lambda: timeouts.connect + timeouts.stall)
    with scope:
        try:
            async with target.request("GET", timeout, headers=headers) as response:
                if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
                    raise refused(target, request, response, await read_body(response, MAX_ERROR_BODY), None)
                watchdog.rest()
                partial = is_partial(response.status, response.headers, *byte_range)
                total = total_size(response.headers, *byte_range, request) if partial else response.content_length
                yield RangeResponse(partial, total, response.headers.get("ETag"), response, watchdog)
        except aiohttp.ConnectionTimeoutError as error:
            raise broken(target, request, error, timeout) from error
        except asyncio.TimeoutError as error:
            raise stalled from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise broken(target, request, error, timeout) from error
        finally:
            watchdog.stop()
    if scope.cancelled_caught:
        raise stalled


def _timeout(config: Config, *, reading: bool = False) -> aiohttp.ClientTimeout:
    """No total, which would count the body. While a body goes out, a silent server is normal: no read timeout."""
    stall = config.timeouts.stall if reading else None
    return aiohttp.ClientTimeout(total=None, connect=config.timeouts.connect, sock_read=stall)

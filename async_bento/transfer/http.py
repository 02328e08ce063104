"""One HTTP request that moves bytes: a PUT of a tar range, or a GET of an object's range."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import re
import sys
import termios
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import anyio
from aiohttp import ClientError, Payload

from async_bento._core.concurrency import shielded
from async_bento._core.retry import seconds_to_wait
from async_bento._core.urls import without_queries
from async_bento.config import KiB
from async_bento.errors import BentoError, IntegrityError, PartError, StalledError, TransferError
from async_bento.rest.responses import RawResponse, is_markup, status_error
from async_bento.rest.transport import connection_error, describe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from aiohttp.abc import AbstractStreamWriter

    from async_bento._core.concurrency import ByteBudget, Threads
    from async_bento.config import Config
    from async_bento.errors import APIConnectionError
    from async_bento.progress.events import Progress
    from async_bento.rest.transport import Target
    from async_bento.transfer.tar.plan import TarPlan

WRITE_SIZE = 128 * KiB
"""Bytes per write to the socket; larger writes would hold up the event loop, over TLS above all."""

_MAX_ERROR_BODY = 64 * 1024  # bytes read of a response that is not a tar
_CHECKS_PER_STALL = 10  # how often the watchdog looks within the stall timeout
_ERROR_CODE = re.compile(r"<Code>([^<]{1,100})</Code>(?:.*?<Message>([^<]{1,200})</Message>)?", re.DOTALL)
_LOST_BODY: dict[str, type[TransferError]] = {"RequestTimeout": StalledError, "IncompleteBody": IntegrityError}
"""S3's codes for a body that did not arrive, which is worth a retry; S3 sends them with 400."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)$")
_MD5_ETAG = re.compile(r'^(?:W/)?"?([0-9a-fA-F]{32})"?$')


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
    `window` bounds the bytes that downloads hold in memory (`Transfer.window`).
    """

    config: Config
    threads: Threads
    slots: asyncio.Semaphore
    window: ByteBudget


@dataclass(frozen=True)
class RangeResponse:
    """The response to a ranged GET, its body not yet read.

    `is_partial` tells the range (206) from the whole object (200); `total` is the size of the whole object in bytes,
    None where the server does not state it.
    """

    is_partial: bool
    total: int | None
    etag: str | None
    response: aiohttp.ClientResponse


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
        self._io_chunk = pool.config.transfer.io_chunk
        self._progress = progress
        self._digest = digest
        self._sent = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._writer: AbstractStreamWriter | None = None
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
        md5 = hashlib.md5(usedforsecurity=False) if self._digest else None
        # The last piece is held back until all bytes are read, checked and hashed: a storage that has received the
        # whole body responds at once.
        held = b""
        chunks = self._plan.read(*self._range, executor=self._threads.executor, io_chunk=self._io_chunk)
        async with aclosing(chunks):
            async for chunk in chunks:
                hashing = asyncio.ensure_future(self._threads.run(md5.update, chunk)) if md5 else None
                try:
                    await self._send(writer, held)
                    held = chunk[-WRITE_SIZE:]
                    for offset in range(0, len(chunk) - len(held), WRITE_SIZE):
                        await self._send(writer, chunk[offset : min(offset + WRITE_SIZE, len(chunk) - len(held))])
                finally:
                    if hashing is not None:
                        await hashing
        if self._sent + len(held) != self._size:
            raise IntegrityError(f"cannot send a part of {self._size} bytes: {self._sent + len(held)} bytes were read")
        self.md5 = md5.hexdigest() if md5 else None
        self.may_have_arrived = True
        await self._send(writer, held)

    async def _send(self, writer: AbstractStreamWriter, piece: bytes) -> None:
        self._sent += len(piece)
        self._progress.advance(len(piece))
        await writer.write(piece)

    @property
    def is_sent(self) -> bool:
        """Whether all bytes went out; a response before that does not answer this body."""
        return self._sent == self._size

    @property
    def acknowledged(self) -> int | None:
        """Bytes that the peer has acknowledged (a lower bound), or None before the first byte is sent."""
        transport: asyncio.WriteTransport | None = getattr(self._writer, "transport", None)
        if transport is None:
            return None if self._writer is None else self._sent
        return self._sent - _unacknowledged(transport)

    def rewind(self) -> None:
        """Take the sent bytes back from the progress: they will be sent again."""
        if self._sent:
            self._progress.advance(-self._sent)
        self._sent = 0
        self._writer = None  # of the connection that failed: nothing is being sent until the next one is made
        self.md5 = None
        self.failure = None

    async def wait_idle(self) -> None:
        """Wait until no byte of this body is being written."""
        await self._idle.wait()


def _unacknowledged(transport: asyncio.WriteTransport) -> int:
    """Bytes handed to a connection that the peer has not acknowledged: in its buffer and in the kernel's (tcp(7))."""
    queued = bytearray(4)
    with suppress(OSError, AttributeError):  # not every system has TIOCOUTQ, and a closed transport has no socket
        fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
    return transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)


async def put(target: Target, body: TarBody, config: Config, part_number: int | None = None) -> str:
    """PUT a body once and return its ETag, quotes included; empty where the server sent none and no part needs it.

    Where the request fails, the body is rewound, and so is the progress that it reported.
    """
    request = f"{target}" if part_number is None else f"{target} (part {part_number})"
    try:
        etag = await _put(target, body, config, request, part_number)
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
    scope = anyio.CancelScope()
    watchdog = _Watchdog(scope, body, config, target)
    with scope:
        try:
            async with target.request("PUT", _timeout(config), headers=headers, data=body) as response:
                text = await response.content.read(_MAX_ERROR_BODY)
                if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                    raise _refused(target, request, response, text, part_number)
                if not body.is_sent:
                    raise ConnectionError("the server replied 2xx before the whole body was sent")
                if text.strip() and is_markup(response.headers, text):  # a proxy's, or a captive portal's
                    raise ConnectionError("received an HTML page instead of a response")
                return _verified_etag(response.headers, body, request)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if body.failure is not None:
                raise body.failure from None
            raise _broken(target, request, error) from error
        finally:
            watchdog.stop()
            await shielded(body.wait_idle())
    raise StalledError(f"{request}: no byte was transferred for {watchdog.timeout:g} s")


class _Watchdog:
    """Cancels a PUT of which no byte arrives; aiohttp has no timeout for a server that stops reading.

    It compares what the peer has acknowledged, so that a connection of one byte per second counts as alive, however
    much the buffers on the way hold.
    """

    def __init__(self, scope: anyio.CancelScope, body: TarBody, config: Config, target: Target) -> None:
        self._scope = scope
        self._body = body
        self._timeouts = config.timeouts
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._acknowledged: int | None = None
        self._since = self._loop.time()
        self._check()

    @property
    def timeout(self) -> float:
        """Seconds without a byte. A registry that has all bytes may still be passing them on to its storage."""
        if self._body.is_sent and self._acknowledged == self._body.size and self._target.credentials is not None:
            return max(self._timeouts.stall, self._timeouts.complete)
        return self._timeouts.stall

    def stop(self) -> None:
        """Stop watching."""
        self._next.cancel()

    def _check(self) -> None:
        now, acknowledged = self._loop.time(), self._body.acknowledged
        if acknowledged is None or acknowledged != self._acknowledged:  # connecting has a timeout of its own
            self._acknowledged, self._since = acknowledged, now
        elif now - self._since >= self.timeout:
            self._scope.cancel()
            return
        self._next = self._loop.call_later(self._timeouts.stall / _CHECKS_PER_STALL, self._check)


@asynccontextmanager
async def get(
    target: Target, byte_range: ByteRange, config: Config, *, etag: str | None = None
) -> AsyncGenerator[RangeResponse]:
    """GET a range once (RFC 9110, 14); the object may end before `stop`, and must still have `etag`, if given."""
    request = str(target)
    headers = {"Range": f"bytes={byte_range.start}-{byte_range.stop - 1}"}
    if etag and not etag.startswith("W/"):  # a weak ETag never matches (RFC 9110, 13.1.1)
        headers["If-Match"] = etag
    try:
        async with target.request("GET", _timeout(config, reading=True), headers=headers) as response:
            if response.status == HTTPStatus.OK:
                yield RangeResponse(False, response.content_length, response.headers.get("ETag"), response)
            elif response.status == HTTPStatus.PARTIAL_CONTENT:
                total = _total(response.headers, byte_range, request)
                yield RangeResponse(True, total, response.headers.get("ETag"), response)
            else:
                text = await response.content.read(_MAX_ERROR_BODY)
                raise _refused(target, request, response, text, None)
    except asyncio.TimeoutError as error:
        raise StalledError(f"{request}: no byte was transferred for {config.timeouts.stall:g} s") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _broken(target, request, error) from error


def _timeout(config: Config, *, reading: bool = False) -> aiohttp.ClientTimeout:
    """No total, which would count the body. While a body goes out, a silent server is normal: no read timeout."""
    stall = config.timeouts.stall if reading else None
    return aiohttp.ClientTimeout(total=None, sock_connect=config.timeouts.connect, sock_read=stall)


def _total(headers: Mapping[str, str], asked: ByteRange, request: str) -> int:
    """The object's size by Content-Range, which must state the range that was asked for."""
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if match is None:
        raise PartError(
            f"{request}: the storage sent a 206 response without Content-Range", status=HTTPStatus.PARTIAL_CONTENT
        )
    first, last, total = (int(group) for group in match.groups())
    if first != asked.start or last != min(asked.stop, total) - 1:
        raise PartError(
            f"{request}: the storage sent bytes {first}-{last} of {total} instead of {asked.start}-{asked.stop - 1}",
            status=HTTPStatus.PARTIAL_CONTENT,
        )
    return total


def _verified_etag(headers: Mapping[str, str], body: TarBody, request: str) -> str | None:
    etag = headers.get("ETag")
    match = None if _has_opaque_etag(headers) else _MD5_ETAG.match(etag or "")
    if body.md5 and match and match[1].lower() != body.md5:
        raise IntegrityError(f"{request}: the storage received different bytes (MD5 {match[1]} instead of {body.md5})")
    return etag


def _has_opaque_etag(headers: Mapping[str, str]) -> bool:
    """Whether S3 encrypted the object with a KMS or customer key: its ETag looks like an MD5 and is not one."""
    return (
        headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )


def _refused(
    target: Target, request: str, response: aiohttp.ClientResponse, body: bytes, part_number: int | None
) -> BentoError:
    if target.credentials is not None:
        return status_error(RawResponse(response.status, response.headers, body, request), target.credentials)
    code = _ERROR_CODE.search(body.decode(errors="replace"))
    reason = ": ".join(filter(None, code.groups())) if code else response.reason or ""
    message = f"{request}: the storage refused the request: {response.status} {without_queries(reason)}".rstrip()
    if code and (error_type := _LOST_BODY.get(code[1])):
        return error_type(message)
    return PartError(
        message,
        status=response.status,
        part_number=part_number,
        retry_after=seconds_to_wait(response.headers.get("Retry-After")),
    )


def _broken(target: Target, request: str, error: Exception) -> APIConnectionError | PartError:
    if target.credentials is not None:
        return connection_error(target, error)
    return PartError(f"{request}: the connection to the storage broke: {describe(error)}")

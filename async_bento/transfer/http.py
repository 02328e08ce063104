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

from async_bento._core.concurrency import shielded
from async_bento.errors import (
    IntegrityError,
    StalledError,
)
from async_bento.rest.responses import is_markup
from async_bento.rest.transport import MAX_ERROR_BODY, read_body
from async_bento.transfer.responses import RedirectError, broken, is_partial, refused, total_size, verified_etag
from async_bento.transfer.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento._core.concurrency import ByteBudget, Threads
    from async_bento._core.rate_limit import RateLimit
    from async_bento.config import Config, Timeouts
    from async_bento.rest.transport import Target
    from async_bento.transfer.body import UploadBody

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
    rate_limit: RateLimit | None

    async def read(self) -> bytes:
        """The next bytes of the body, empty at its end."""
        with self.watchdog.waiting():
            data = await self.response.content.readany()
        if self.rate_limit is not None:
            await self.rate_limit.acquire(len(data))
        return data


async def put(target: Target, body: UploadBody, config: Config, part_number: int | None = None) -> str:
    """PUT a body once and return its ETag, quotes included; empty where the server sent none and no part needs it.

    Where the request fails, the body is rewound, and so is the progress that it reported.
    """
    while True:
        request = f"{target}" if part_number is None else f"{target} (part {part_number})"
        try:
            etag = await _put(target, body, config, request, part_number)
            if part_number is not None and not etag:
                raise IntegrityError(
                    f"{request}: the storage sent no ETag, but the upload cannot be completed without one"
                )
        except BaseException as error:  # also a cancellation: the progress must not count bytes that did not arrive
            body.rewind()
            if not isinstance(error, RedirectError):
                raise
            target = error.target
        else:
            return etag or ""


async def _put(target: Target, body: UploadBody, config: Config, request: str, part_number: int | None) -> str | None:
    headers = {"Content-Length": str(body.size)}
    if target.credentials is not None:
        headers["Content-Type"] = "application/octet-stream"  # presigned URLs are signed without a Content-Type
    timeout, is_answered = _timeout(config), False
    body.rate_limit = target.owner.rate_limit(config.transfer.rate_limit)
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
                    # A ConnectionError is translated below, to an error that is retried.
                    raise ConnectionError("the server replied 2xx before the whole body was sent")
                if text.strip() and is_markup(response.headers, text):  # a proxy's, or a captive portal's
                    raise ConnectionError("received an HTML page instead of a response")
                await body.check_sent()
                return verified_etag(response.headers, body.md5, request)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:  # Python 3.10: a timeout is no OSError
            if body.failure is not None:
                raise body.failure from None
            raise broken(target, request, error, timeout) from error
        finally:
            watchdog.stop()
            if not (is_answered and body.is_sent):  # otherwise, another request may be using the connection
                body.abort()
            await shielded(body.wait_idle())
    # The block returns or raises, unless the watchdog has cancelled its scope.
    seconds = watchdog.exceeded
    if target.credentials is not None and watchdog.reached == body.size:
        raise StalledError(
            f"{request}: the registry received all bytes and sent no response within {seconds:g} s. Push again.",
            is_final=True,
        )
    raise StalledError(f"{request}: no byte was transferred for {seconds:g} s")


def _patience(body: UploadBody, timeouts: Timeouts, target: Target) -> float | None:
    """Seconds that an upload may stand still; None while it reads the tar."""
    if not body.is_waiting:
        return None
    if body.acknowledged is None:
        return _connect_patience(timeouts)
    # Where the system does not follow the bytes, a slow connection that empties the kernel's buffer looks stalled.
    if _is_processing(body, target) or not body.is_followed:
        return max(timeouts.stall, timeouts.complete)
    return timeouts.stall


def _connect_patience(timeouts: Timeouts) -> float:
    """Seconds until the first byte moves, over a new connection."""
    return timeouts.connect + timeouts.stall


def _is_processing(body: UploadBody, target: Target) -> bool:
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
    watchdog = Watchdog(scope, timeouts.stall, partial(_connect_patience, timeouts))
    with scope:
        try:
            async with target.request("GET", timeout, headers=headers) as response:
                if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
                    raise refused(target, request, response, await read_body(response, MAX_ERROR_BODY), None)
                watchdog.rest()  # until `read`: the caller may be slow, as with a slow disk
                has_range = is_partial(response.status, response.headers, *byte_range)
                total = total_size(response.headers, *byte_range, request) if has_range else response.content_length
                limit = target.owner.rate_limit(config.transfer.rate_limit)
                yield RangeResponse(has_range, total, response.headers.get("ETag"), response, watchdog, limit)
        except aiohttp.ConnectionTimeoutError as error:  # before asyncio.TimeoutError, of which it is a subclass
            raise broken(target, request, error, timeout) from error
        except asyncio.TimeoutError as error:
            raise stalled from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise broken(target, request, error, timeout) from error
        finally:
            watchdog.stop()
    if scope.cancelled_caught:  # by the watchdog
        raise stalled


def _timeout(config: Config, *, reading: bool = False) -> aiohttp.ClientTimeout:
    """No total, which would count the body. While a body goes out, a silent server is normal: no read timeout."""
    stall = config.timeouts.stall if reading else None
    return aiohttp.ClientTimeout(total=None, connect=config.timeouts.connect, sock_read=stall)

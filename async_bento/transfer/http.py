"""One HTTP request that moves bytes: a PUT of a tar range, or a GET of a range."""

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
from typing import TYPE_CHECKING

import aiohttp
import anyio
from aiohttp import ClientError, Payload

from async_bento._core.concurrency import shielded
from async_bento._core.retry import seconds_to_wait
from async_bento._core.urls import without_queries
from async_bento.config import KiB
from async_bento.errors import APIConnectionError, BentoError, IntegrityError, PartError, StalledError
from async_bento.rest.responses import RawResponse, is_markup, status_error
from async_bento.rest.transport import connection_error, describe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from aiohttp.abc import AbstractStreamWriter

    from async_bento._core.concurrency import ByteBudget, Threads
    from async_bento.config import Config
    from async_bento.rest.transport import Target
    from async_bento.transfer.tar.plan import TarPlan

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


_LONGEST_REFUSAL = 64 * 1024  # of an answer that is no tar, in bytes
_LOOKS = 10  # of the watchdog, within the time that a transfer may stall
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>(?:.*?<Message>([^<]{1,200})</Message>)?", re.DOTALL)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)$")
_MD5_ETAG = re.compile(r'^(?:W/)?"?([0-9a-fA-F]{32})"?$')


@dataclass(frozen=True)
class Transport:
    """What all transfers of a client share.

    Attributes:
        config: The settings.
        threads: Where files are read and written, and hashes are computed.
        slots: The requests with bytes in flight, `Transfer.concurrency` in all.
        window: The bytes of ranges that pulls may hold, `Transfer.window` in all.
    """

    config: Config
    threads: Threads
    slots: asyncio.Semaphore
    window: ByteBudget


@dataclass(frozen=True)
class Received:
    """An answer to a ranged GET, its body not yet read.

    Attributes:
        ranged: Whether it is the range (206), or the whole object from its start (200).
        total: Bytes of the whole object; None where the server does not say.
        etag: The object's ETag, or None.
        response: The answer.
    """

    ranged: bool
    total: int | None
    etag: str | None
    response: aiohttp.ClientResponse


async def put(address: Target, body: TarBody, config: Config, *, part_number: int | None = None) -> str | None:
    """PUT a body once.

    Args:
        address: Where to.
        body: What.
        config: The settings.
        part_number: Which part it is, for messages.

    Returns:
        The ETag as the server gave it, quotes and all, or None where it gave none.

    Raises:
        SourceChangedError: A file is no more what it was when the tar was planned.
        StalledError: No byte moved for `Timeouts.stall` seconds.
        IntegrityError: The ETag is the MD5 of other bytes than those sent.
        PartError: The storage refused, or the connection to it broke.
        APIError: The registry refused, or the connection to it broke.
    """
    request = _name(address, part_number)
    headers = {"Content-Length": str(body.size)}
    if address.credentials is not None:
        headers["Content-Type"] = "application/octet-stream"  # a presigned URL is signed without one
    scope = anyio.CancelScope()
    watchdog = _Watchdog(scope, body, config, address)
    with scope:
        try:
            async with address.request("PUT", _timeout(config), headers=headers, data=body) as response:
                said = await response.content.read(_LONGEST_REFUSAL)
                if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                    raise _refused(address, request, response, said, part_number)
                if not body.is_sent:
                    raise _broken(address, request, ConnectionError("it said yes before it had all bytes"))
                if said.strip() and is_markup(
                    response.headers, said
                ):  # a proxy's, or that of a network that wants a login
                    raise _broken(address, request, ConnectionError("a page came in place of an answer"))
                return _checked_etag(response.headers, body, request)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            if body.failure is not None:
                raise body.failure from None
            raise _broken(address, request, error) from error
        finally:
            watchdog.stop()
            await shielded(body.at_rest())
    raise StalledError(f"{request}: no byte moved for {watchdog.patience:g} s")


class _Watchdog:
    """Cancels a PUT of which no byte arrives any more; aiohttp knows no timeout for a server that stops reading.

    It looks at what the other side has acknowledged, so that a connection of a byte a second is alive, however much the
    buffers on the way hold.

    Args:
        scope: What to cancel.
        body: What is sent.
        config: The settings.
        address: Where to.
    """

    def __init__(self, scope: anyio.CancelScope, body: TarBody, config: Config, address: Target) -> None:
        self._scope = scope
        self._body = body
        self._timeouts = config.timeouts
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._arrived: int | None = None
        self._since = self._loop.time()
        self._look()

    @property
    def patience(self) -> float:
        """Seconds without a byte. When all are there, a registry may still have to hand them on to its storage."""
        if self._body.is_sent and self._arrived == self._body.size and self._address.credentials is not None:
            return max(self._timeouts.stall, self._timeouts.complete)
        return self._timeouts.stall

    def stop(self) -> None:
        """Look no more."""
        self._next.cancel()

    def _look(self) -> None:
        now, arrived = self._loop.time(), self._body.arrived
        if arrived is None or arrived != self._arrived:  # the connection itself has its own timeout
            self._arrived, self._since = arrived, now
        elif now - self._since >= self.patience:
            self._scope.cancel()
            return
        self._next = self._loop.call_later(self._timeouts.stall / _LOOKS, self._look)


@asynccontextmanager
async def get(
    address: Target, config: Config, start: int, stop: int, *, etag: str | None = None
) -> AsyncGenerator[Received]:
    """GET a range once (RFC 9110, 14).

    Args:
        address: Where from.
        config: The settings.
        start: The first byte.
        stop: The byte after the last; the object may end before it.
        etag: The ETag that the object must still have.

    Yields:
        The answer.

    Raises:
        StalledError: No byte arrived for `Timeouts.stall` seconds.
        PartError: The storage refused, or the connection to it broke.
        APIError: The registry refused, or the connection to it broke.
    """
    request = _name(address, None)
    headers = {"Range": f"bytes={start}-{stop - 1}"}
    if etag and not etag.startswith("W/"):  # a weak one never matches (RFC 9110, 13.1.1)
        headers["If-Match"] = etag
    try:
        async with address.request("GET", _timeout(config, reading=True), headers=headers) as response:
            if response.status == HTTPStatus.OK:
                yield Received(False, response.content_length, response.headers.get("ETag"), response)
            elif response.status == HTTPStatus.PARTIAL_CONTENT:
                total = _total(response.headers, start, stop, request)
                yield Received(True, total, response.headers.get("ETag"), response)
            else:
                said = await response.content.read(_LONGEST_REFUSAL)
                raise _refused(address, request, response, said, None)
    except asyncio.TimeoutError as error:
        raise StalledError(f"{request}: no byte arrived for {config.timeouts.stall:g} s") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _broken(address, request, error) from error


def _timeout(config: Config, *, reading: bool = False) -> aiohttp.ClientTimeout:
    """No total: it would count the body. While a body goes out, silence of the server is no fault."""
    stall = config.timeouts.stall if reading else None
    return aiohttp.ClientTimeout(total=None, sock_connect=config.timeouts.connect, sock_read=stall)


def _total(headers: Mapping[str, str], start: int, stop: int, request: str) -> int:
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if match is None:
        raise PartError(f"{request}: a 206 without a Content-Range", status=HTTPStatus.PARTIAL_CONTENT)
    first, last, total = (int(group) for group in match.groups())
    if first != start or last != min(stop, total) - 1:
        raise PartError(
            f"{request}: asked for bytes {start}-{stop - 1} and got {first}-{last} of {total}",
            status=HTTPStatus.PARTIAL_CONTENT,
        )
    return total


def _checked_etag(headers: Mapping[str, str], body: TarBody, request: str) -> str | None:
    etag = headers.get("ETag")
    match = None if _is_of_encrypted(headers) else _MD5_ETAG.match(etag or "")
    if body.md5 and match and match[1].lower() != body.md5:
        raise IntegrityError(f"{request}: the storage has other bytes than were sent (MD5 {match[1]}, not {body.md5})")
    return etag


def _is_of_encrypted(headers: Mapping[str, str]) -> bool:
    """Whether S3 encrypted the bytes with a key of KMS or of the customer: its ETag looks like an MD5 and is none."""
    return (
        headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )


def _name(address: Target, part_number: int | None) -> str:
    return f"{address}" if part_number is None else f"{address} (part {part_number})"


def _refused(
    address: Target, request: str, response: aiohttp.ClientResponse, said: bytes, part_number: int | None
) -> BentoError:
    if address.credentials is not None:
        return status_error(RawResponse(response.status, response.headers, said, request), address.credentials)
    code = _CODE.search(said.decode(errors="replace"))
    reason = ": ".join(filter(None, code.groups())) if code else response.reason or ""
    return PartError(
        f"{request}: the storage refused: {response.status} {without_queries(reason)}".rstrip(),
        status=response.status,
        part_number=part_number,
        retry_after=seconds_to_wait(response.headers.get("Retry-After")),
    )


def _broken(address: Target, request: str, error: Exception) -> APIConnectionError | PartError:
    if address.credentials is not None:
        return connection_error(address, error)
    return PartError(f"{request}: the connection to the storage broke: {describe(error)}")

"""One attempt to move bytes: a PUT of a body, or a GET of a range, and what a refusal means."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import anyio

from async_bento.concurrency import finish
from async_bento.errors import (
    APIConnectionError,
    BentoError,
    IntegrityError,
    PartError,
    StalledError,
    without_queries,
)
from async_bento.retry import seconds_to_wait
from async_bento.wire.address import connection_error, describe
from async_bento.wire.answers import is_markup, status_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from async_bento.concurrency import Budget, Threads
    from async_bento.config import Config
    from async_bento.transfer.body import TarBody
    from async_bento.wire.address import Address

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
    window: Budget


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


async def put(address: Address, body: TarBody, config: Config, *, part_number: int | None = None) -> str | None:
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
    if address.token_source is not None:
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
            await finish(body.at_rest())
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

    def __init__(self, scope: anyio.CancelScope, body: TarBody, config: Config, address: Address) -> None:
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
        if self._body.is_sent and self._arrived == self._body.size and self._address.token_source is not None:
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
    address: Address, config: Config, start: int, stop: int, *, etag: str | None = None
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


def _name(address: Address, part_number: int | None) -> str:
    return f"{address}" if part_number is None else f"{address} (part {part_number})"


def _refused(
    address: Address, request: str, response: aiohttp.ClientResponse, said: bytes, part_number: int | None
) -> BentoError:
    if address.token_source is not None:
        return status_error(response.status, response.headers, said, request, address.token_source, address.token)
    code = _CODE.search(said.decode(errors="replace"))
    reason = ": ".join(filter(None, code.groups())) if code else response.reason or ""
    return PartError(
        f"{request}: the storage refused: {response.status} {without_queries(reason)}".rstrip(),
        status=response.status,
        part_number=part_number,
        retry_after=seconds_to_wait(response.headers.get("Retry-After")),
    )


def _broken(address: Address, request: str, error: Exception) -> APIConnectionError | PartError:
    if address.token_source is not None:
        return connection_error(address, error)
    return PartError(f"{request}: the connection to the storage broke: {describe(error)}")

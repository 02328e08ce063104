"""Responses with the bytes of an object, whole or a range: of the API, of presigned URLs on disk, and of a mirror."""

from __future__ import annotations

import logging
import re
from contextlib import aclosing
from types import MappingProxyType
from typing import TYPE_CHECKING

from aiohttp import web

from async_bento.registry.errors import RangeError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from async_bento.registry.blobs.base import OpenBlob

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

log = logging.getLogger(__package__)


class SourceLostError(OSError):
    """The rest of the bytes does not arrive, for a reason that was logged."""


async def send_blob(
    request: web.Request, blob: OpenBlob, extra_headers: Mapping[str, str] = _NO_HEADERS
) -> web.StreamResponse:
    """Send an object, or the range that the request asks for.

    If reading it fails, the connection is aborted, so that the client notices. Raise `StorageError` for another ETag
    than that of `If-Match` (412), and for a range beyond the object (416).
    """
    if not matches_etag(request.headers.get("If-Match"), blob.etag):
        raise StorageError("PreconditionFailed", "the object has changed: its ETag differs", status=412)
    found = parse_range(request.headers.get("Range"), blob.size)
    start, stop = found or (0, blob.size)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(stop - start),
        "Content-Type": "application/octet-stream",
        "ETag": blob.etag,
        **extra_headers,
    }
    if found:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    response = web.StreamResponse(status=206 if found else 200, headers=headers)
    await send_chunks(request, response, blob.read(start, stop))
    return response


async def send_chunks(request: web.Request, response: web.StreamResponse, body: AsyncGenerator[bytes]) -> None:
    """Send the body of a response; abort the connection if reading the body fails."""
    await response.prepare(request)
    try:
        async with aclosing(body) as chunks:
            async for chunk in chunks:
                await response.write(chunk)
    except ConnectionError:
        pass  # the client has hung up
    except OSError as error:
        if not isinstance(error, SourceLostError):
            log.exception("a download was aborted: the storage failed")
        # The status and the length are sent: a broken connection is the only way to report the failure.
        if request.transport is not None:
            request.transport.abort()


def is_first_of_pull(request: web.Request) -> bool:
    """Return whether a request is the first of a pull in ranges, or the only one of a pull."""
    return request.headers.get("Range", "bytes=0-").startswith("bytes=0-")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Parse a `Range` header (RFC 9110, 14.2) into start and exclusive end; None means the whole object.

    Like S3, ignore a header with several ranges or with another syntax. Raise `RangeError` for a range beyond the
    object.
    """
    match = _RANGE.fullmatch(header or "")
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return None
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise RangeError(size)
    return start, stop


def matches_etag(header: str | None, etag: str) -> bool:
    """Return whether an `If-Match` header, if there is one, names an ETag."""
    return header is None or header.strip() == "*" or etag in (tag.strip() for tag in header.split(","))

"""HTTP endpoints of presigned URLs on the disk storage, with S3's headers, ranges and XML errors."""

from __future__ import annotations

import logging
import re
from contextlib import aclosing
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from aiohttp import web

from async_bento.registry.blobs.presign import PREFIX, Grant
from async_bento.registry.errors import ForbiddenError, RegistryError, StorageError, translate_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from async_bento.registry.blobs.disk import DiskBlobs

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")

log = logging.getLogger(__package__)


class DiskEndpoints:
    """Serves presigned URLs; one PUT may carry `max_put_size` bytes."""

    def __init__(self, blobs: DiskBlobs, *, max_put_size: int) -> None:
        self._blobs = blobs
        self._max_put_size = max_put_size

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the route of all presigned URLs, for every method: as on S3, a wrong method fails the signature."""
        return [web.route("*", f"{PREFIX}{{key:.+}}", self._handle)]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            with translate_errors():
                grant = self._blobs.presigner.check(request.method, request.match_info["key"], request.query)
                if grant.method == "PUT":
                    return await self._put(request, grant)
                return await self._get(request, grant)
        except RegistryError as error:
            return _xml_error(error)

    async def _put(self, request: web.Request, grant: Grant) -> web.Response:
        size = request.content_length
        if size is None:
            raise StorageError("MissingContentLength", "You must provide the Content-Length HTTP header.", status=411)
        if size > self._max_put_size:
            raise StorageError(
                "EntityTooLarge",
                f"the body is too large: {size} bytes, but one PUT may carry {self._max_put_size}. Upload it in parts.",
            )
        body = request.content.iter_any()
        if grant.upload_id:
            etag = await self._blobs.put_part(grant, body, size)
        else:
            etag = await self._blobs.put(grant.key, body, size)
        return web.Response(headers={"ETag": etag})

    async def _get(self, request: web.Request, grant: Grant) -> web.StreamResponse:
        if grant.method != "GET":
            raise ForbiddenError(f"access denied: no URL is signed for {grant.method}")
        async with self._blobs.acquire(grant.key) as stored:
            if not _matches(request.headers.get("If-Match"), stored.etag):
                raise StorageError("PreconditionFailed", "the object has changed: its ETag differs", status=412)
            try:
                found = parse_range(request.headers.get("Range"), stored.size)
            except StorageError as error:
                return _xml_error(error, {"Content-Range": f"bytes */{stored.size}"})
            start, stop = found or (0, stored.size)
            headers = {
                "Accept-Ranges": "bytes",
                "Content-Length": str(stop - start),
                "Content-Type": "application/octet-stream",
                "ETag": stored.etag,
            }
            if found:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
            response = web.StreamResponse(status=206 if found else 200, headers=headers)
            async with aclosing(self._blobs.read(stored, start, stop)) as chunks:
                return await stream_response(request, response, chunks)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Parse a `Range` header (RFC 9110, 14.2) into start and exclusive end; None means the whole object.

    Like S3, ignore a header with several ranges or with another syntax. Raise `StorageError` (416) for a range beyond
    the object.
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
        raise StorageError("InvalidRange", "The requested range is not satisfiable", status=416)
    return start, stop


async def stream_response(
    request: web.Request, response: web.StreamResponse, chunks: AsyncIterable[bytes]
) -> web.StreamResponse:
    """Send chunks as a response's body; if reading them fails, abort the connection, so that the client notices."""
    await response.prepare(request)
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except ConnectionError:
        pass  # the client has hung up
    except OSError:
        log.exception("a download was aborted: the storage failed")
        if request.transport is not None:
            request.transport.abort()
    return response


def _matches(header: str | None, etag: str) -> bool:
    return header is None or header.strip() == "*" or etag in (tag.strip() for tag in header.split(","))


def _xml_error(error: RegistryError, headers: dict[str, str] | None = None) -> web.Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
    )
    return web.Response(status=error.status, text=text, content_type="application/xml", headers=headers)

"""The storage behind presigned URLs, as S3 behaves: its headers, its ranges, its refusals in XML."""

from __future__ import annotations

import logging
import re
from contextlib import aclosing
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from aiohttp import web

from async_bento.registry.blobs.presign import PREFIX, Grant
from async_bento.registry.errors import ForbiddenError, RegistryError, StorageError, of_os_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from async_bento.registry.blobs.disk import LocalBlobs

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")

log = logging.getLogger("async_bento.registry")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Read a `Range` header (RFC 9110, 14.2).

    Args:
        header: `bytes=a-b`, `bytes=a-` or `bytes=-n`.
        size: The object's size in bytes.

    Returns:
        Where the range begins, and where it ends, exclusive. None for the whole object: without a header, or with one
        that is not understood, like S3's, of several ranges.

    Raises:
        StorageError: No byte of the object lies in it.
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


async def send(request: web.Request, response: web.StreamResponse, chunks: AsyncIterable[bytes]) -> web.StreamResponse:
    """Stream bytes into an answer; where they fail midway the connection breaks, so that nobody takes them for all.

    Args:
        request: What is answered.
        response: The answer, with its headers.
        chunks: Its body.

    Returns:
        The answer.
    """
    await response.prepare(request)
    try:
        async for chunk in chunks:
            await response.write(chunk)
    except ConnectionError:
        pass  # whoever wanted them is gone
    except OSError:
        log.exception("the disk failed in the middle of a download")
        if request.transport is not None:
            request.transport.abort()
    return response


class Storage:
    """Answers to presigned URLs.

    Args:
        blobs: What they open.
        max_put_size: How much one PUT may bring, in bytes.
    """

    def __init__(self, blobs: LocalBlobs, *, max_put_size: int) -> None:
        self._blobs = blobs
        self._max_put_size = max_put_size

    def routes(self) -> list[web.AbstractRouteDef]:
        """The one route of all presigned URLs. It takes every method: a wrong one is a wrong signature, as on S3."""
        return [web.route("*", f"{PREFIX}{{key:.+}}", self._answer)]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            grant = self._blobs.presigner.check(request.method, request.match_info["key"], request.query)
            if grant.method == "PUT":
                return await self._put(request, grant)
            return await self._get(request, grant)
        except RegistryError as error:
            return _refuse(error)
        except (ConnectionError, web.RequestPayloadError):
            return _refuse(StorageError("RequestTimeout", "the connection broke"))
        except OSError as error:
            log.exception("the disk failed")
            return _refuse(of_os_error(error))

    async def _put(self, request: web.Request, grant: Grant) -> web.Response:
        size = request.content_length
        if size is None:
            raise StorageError("MissingContentLength", "You must provide the Content-Length HTTP header.", status=411)
        if size > self._max_put_size:
            raise StorageError("EntityTooLarge", f"{size} bytes are more than one PUT may bring: {self._max_put_size}")
        body = request.content.iter_any()
        if grant.upload_id:
            etag = await self._blobs.put_part(grant, body, size)
        else:
            etag = await self._blobs.put(grant.key, body, size)
        return web.Response(headers={"ETag": etag})

    async def _get(self, request: web.Request, grant: Grant) -> web.StreamResponse:
        if grant.method != "GET":
            raise ForbiddenError("the URL was not signed for this")
        async with self._blobs.acquired(grant.key) as stored:
            if not _matches(request.headers.get("If-Match"), stored.etag):
                raise StorageError("PreconditionFailed", "the object is another one by now", status=412)
            try:
                found = parse_range(request.headers.get("Range"), stored.size)
            except StorageError as error:
                return _refuse(error, {"Content-Range": f"bytes */{stored.size}"})
            start, stop = found or (0, stored.size)
            headers = {
                "Accept-Ranges": "bytes",
                "Content-Length": str(stop - start),
                "Content-Type": "application/octet-stream",
                "ETag": stored.etag,
            }
            if found:
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{stored.size}"
            async with aclosing(self._blobs.read(stored, start, stop)) as chunks:
                return await send(request, web.StreamResponse(status=206 if found else 200, headers=headers), chunks)


def _matches(header: str | None, etag: str) -> bool:
    return header is None or header.strip() == "*" or etag in (tag.strip() for tag in header.split(","))


def _refuse(error: RegistryError, headers: dict[str, str] | None = None) -> web.Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
    )
    return web.Response(status=error.status, text=text, content_type="application/xml", headers=headers)

"""HTTP endpoints of presigned URLs on the disk storage, with S3's headers and XML errors."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from aiohttp import web

from async_bento.registry.blobs.presign import PREFIX, Grant
from async_bento.registry.downloads import send_blob
from async_bento.registry.errors import (
    ForbiddenError,
    NoSuchUploadError,
    RecordNotFoundError,
    RegistryError,
    StorageError,
    translate_errors,
)
from async_bento.registry.expect import defer_continue, send_continue

if TYPE_CHECKING:
    from async_bento.registry.blobs.disk import DiskBlobs
    from async_bento.registry.records.blobs import BlobRecords


class DiskEndpoints:
    """Serves presigned URLs; one PUT may carry `max_put_size` bytes, and nothing more once its upload is complete."""

    def __init__(self, blobs: DiskBlobs, records: BlobRecords, *, max_put_size: int) -> None:
        self._blobs = blobs
        self._records = records
        self._max_put_size = max_put_size

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the route of all presigned URLs, for every method: as on S3, a wrong method fails the signature."""
        return [web.route("*", f"{PREFIX}{{key:.+}}", self._handle, expect_handler=defer_continue)]

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
        upload = await self._records.find(grant.key)
        if upload is None or not upload.is_open or (upload.upload_id or "") != grant.upload_id:
            raise NoSuchUploadError
        await send_continue(request)
        body = request.content.iter_any()
        etag = await self._blobs.put_part(grant.key, grant.part_number or 1, body, size)
        return web.Response(headers={"ETag": etag})

    async def _get(self, request: web.Request, grant: Grant) -> web.StreamResponse:
        if grant.method != "GET":
            raise ForbiddenError(f"access denied: no URL is signed for {grant.method}")
        found = await self._records.find(grant.key)
        if found is None or found.content is None:
            raise RecordNotFoundError(f"the bytes of {grant.key}")
        async with self._blobs.open(grant.key, found.content) as blob:
            return await send_blob(request, blob)


def _xml_error(error: RegistryError) -> web.Response:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{escape(error.code)}</Code><Message>{escape(error.message)}</Message></Error>"
    )
    return web.Response(status=error.status, text=text, content_type="application/xml", headers=error.headers)

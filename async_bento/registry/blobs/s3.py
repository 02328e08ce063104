"""The S3 storage. Presigned URLs lead to the bucket itself, so their bytes do not pass through the registry."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timezone
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import aiohttp
from botocore.exceptions import BotoCoreError

from async_bento._core.concurrency import shielded
from async_bento._core.s3 import MAX_PARTS, MIN_PART_SIZE, bare_etag, etag_of_parts
from async_bento.config import MiB
from async_bento.registry.blobs.base import IO_CHUNK, CompletedPart, Content, StoredKey, check_body_size
from async_bento.registry.blobs.bucket import translate_s3_errors
from async_bento.registry.blobs.multipart import check_parts
from async_bento.registry.errors import (
    NoSuchUploadError,
    RecordNotFoundError,
    RegistryError,
    StorageError,
    UnsupportedByStorageError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence

    from types_aiobotocore_s3 import S3Client

    from async_bento.registry.blobs.bucket import Bucket

_PART_SIZE = 8 * MiB
_PART_SIZE_OF_UNKNOWN = 16 * MiB

log = logging.getLogger(__package__)


def proxied_part_size(size: int | None) -> int:
    """Choose the part size, in bytes, of a proxied body.

    All parts have one size, as R2 demands, and each is held in memory once: 8 MiB, more above 78 GiB. Without a known
    size 16 MiB, which suffice for 156 GiB.
    """
    return _PART_SIZE_OF_UNKNOWN if size is None else max(_PART_SIZE, -(-size // MAX_PARTS))


class S3Blobs:
    """Stores blobs in a bucket; URLs signed by `presigning_client` expire after `url_expiry` seconds."""

    def __init__(self, bucket: Bucket, presigning_client: S3Client, *, url_expiry: int) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._presigning_client = presigning_client
        self._url_expiry = url_expiry

    async def check(self) -> None:
        """See `Blobs`."""
        await self._bucket.check()

    async def presign_put(self, key: str) -> str:
        """See `Blobs`."""
        return await self._presign("put_object", self._object(key))

    async def presign_get(self, key: str) -> str:
        """See `Blobs`."""
        return await self._presign("get_object", self._object(key))

    async def start_multipart(self, key: str) -> str:
        """See `Blobs`."""
        with translate_s3_errors():
            return (await self._client.create_multipart_upload(**self._object(key)))["UploadId"]

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        """See `Blobs`."""
        return await self._presign(
            "upload_part", {**self._object(key), "UploadId": upload_id, "PartNumber": part_number}
        )

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> Content:
        """See `Blobs`."""
        return await self._complete(key, upload_id, parts)

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> Content:
        """See `Blobs`."""
        chunks = _rechunk(body, proxied_part_size(size))
        chunk = await anext(chunks, b"")
        if len(chunk) < proxied_part_size(size):
            check_body_size(len(chunk), size)
            with translate_s3_errors():
                etag = (await self._client.put_object(**self._object(key), Body=io.BytesIO(chunk)))["ETag"]
            return Content.of_parts(etag, [(len(chunk), etag)])
        upload_id = await self.start_multipart(key)
        try:
            parts: list[CompletedPart] = []
            received = 0
            while chunk:
                received += len(chunk)
                parts.append(await self._upload_part(key, upload_id, len(parts) + 1, chunk))
                chunk = await anext(chunks, b"")
            check_body_size(received, size)
            return await self._complete(key, upload_id, parts)
        except BaseException:
            await shielded(self._abort_or_log(key, upload_id))
            raise

    async def finish_put(self, key: str) -> Content | None:
        """See `Blobs`; the bucket accepts the URL until it expires."""
        return await self._head(key)

    @asynccontextmanager
    async def open(self, key: str, content: Content) -> AsyncGenerator[_OpenObject]:
        """See `Blobs`."""
        with translate_s3_errors(f"the bytes of {key}"):
            await self._client.head_object(**self._object(key))
        yield _OpenObject(self._client, self._object(key), content)

    async def find_damage(self, key: str, content: Content) -> str | None:
        """See `Blobs`; the bucket reports size and ETag, and keeps the bytes intact itself."""
        found = await self._head(key)
        if found is None:
            return "the object is missing"
        if found.size != content.size:
            return f"the object has {found.size} bytes instead of {content.size}"
        if bare_etag(found.etag) != bare_etag(content.etag):
            return f"the object has the ETag {found.etag} instead of {content.etag}"
        return None

    async def delete(self, key: str, upload_id: str | None = None) -> None:
        """See `Blobs`."""
        if upload_id is not None:
            with suppress(NoSuchUploadError, UnsupportedByStorageError):
                await self._abort(key, upload_id)
        with suppress(RecordNotFoundError), translate_s3_errors():
            await self._client.delete_object(**self._object(key))

    async def uploaded_at(self, key: str, upload_id: str | None) -> datetime | None:
        """See `Blobs`."""
        if upload_id is None:
            try:
                with translate_s3_errors():
                    return (await self._client.head_object(**self._object(key)))["LastModified"]
            except RecordNotFoundError:
                return None
        try:
            return max((part.uploaded_at for part in (await self._parts(key, upload_id)).values()), default=None)
        except (NoSuchUploadError, UnsupportedByStorageError):
            return None

    async def stored(self) -> AsyncGenerator[Sequence[StoredKey]]:
        """See `Blobs`."""
        prefix = self._bucket.key("blobs/")
        with translate_s3_errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket.name, Prefix=prefix)
            async for page in pages:
                yield [
                    StoredKey(key, entry["LastModified"])
                    for entry in page.get("Contents", [])
                    if (key := self._key(entry.get("Key", ""))) and "LastModified" in entry
                ]

    async def abort_unknown(self, oldest: datetime) -> None:
        """See `Blobs`."""
        with translate_s3_errors():
            # Of the whole bucket, since MinIO takes a prefix for the name of one object (its issue 20989).
            async for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket.name):
                for upload in page.get("Uploads", []):
                    key = self._key(upload.get("Key", ""))
                    if key and upload.get("Initiated", oldest) < oldest:
                        await self._abort_if_idle(key, upload.get("UploadId", ""), oldest)

    async def _abort_if_idle(self, key: str, upload_id: str, oldest: datetime) -> None:
        try:
            if all(part.uploaded_at < oldest for part in (await self._parts(key, upload_id)).values()):
                await self._abort(key, upload_id)
                log.info("aborted an abandoned upload of %s", key)
        except NoSuchUploadError:
            pass  # another copy of the registry was faster

    async def _abort(self, key: str, upload_id: str) -> None:
        with translate_s3_errors():
            await self._client.abort_multipart_upload(**self._object(key), UploadId=upload_id)

    async def _abort_or_log(self, key: str, upload_id: str) -> None:
        try:
            with suppress(UnsupportedByStorageError):
                await self._abort(key, upload_id)
        except RegistryError as error:
            log.warning("cannot abort a failed upload of %s: %s. The next sweep tries again.", key, error.message)

    async def _upload_part(self, key: str, upload_id: str, number: int, data: bytes) -> CompletedPart:
        with translate_s3_errors():
            response = await self._client.upload_part(
                **self._object(key), UploadId=upload_id, PartNumber=number, Body=io.BytesIO(data)
            )
        return CompletedPart(number, response["ETag"])

    async def _complete(self, key: str, upload_id: str, completed: Sequence[CompletedPart]) -> Content:
        """Make an object of the parts; a repeated call succeeds."""
        numbered = [(part.number, f'"{bare_etag(part.etag)}"') for part in completed]
        etags = [etag for _, etag in numbered]
        try:
            sizes = await self._check_parts(key, upload_id, completed)
            if sizes is None and (found := await self._head(key)):
                return found  # s3rver fails where a call is repeated
            with translate_s3_errors():
                await self._client.complete_multipart_upload(
                    **self._object(key),
                    UploadId=upload_id,
                    MultipartUpload={"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in numbered]},
                )
        except NoSuchUploadError:
            # The response to a first call may have been lost. The key is of this upload only, and the object's ETag
            # shows whether it consists of these parts, except on rclone, where it is the MD5 of all bytes.
            found = await self._head(key)
            if found is None or (found.etag != etag_of_parts(etags) and not found.parts):
                raise
            return found
        found = await self._head(key)  # rclone's response has another ETag than the object
        if found is None:
            raise NoSuchUploadError
        return found if sizes is None else Content.of_parts(found.etag, zip(sizes, etags, strict=True))

    async def _check_parts(self, key: str, upload_id: str, completed: Sequence[CompletedPart]) -> Sequence[int] | None:
        """Return the sizes of the parts, None if the storage cannot list them; raise `StorageError` for others.

        SeaweedFS 4.48 completes an upload with any ETags. s3rver does so, too, but cannot list the parts.
        """
        try:
            uploaded = await self._parts(key, upload_id)
        except UnsupportedByStorageError:
            return None
        check_parts(completed, {part: found.size for part, found in uploaded.items()}, MIN_PART_SIZE)
        return [uploaded[part.number, bare_etag(part.etag)].size for part in completed]

    async def _parts(self, key: str, upload_id: str) -> Mapping[tuple[int, str], _UploadedPart]:
        """Return the parts of an upload, by number and bare ETag."""
        if not upload_id:
            raise NoSuchUploadError  # with an empty id, S3 would read the request as one for the object
        parts: dict[tuple[int, str], _UploadedPart] = {}
        try:
            with translate_s3_errors():
                pages = self._client.get_paginator("list_parts").paginate(**self._object(key), UploadId=upload_id)
                async for page in pages:
                    for part in page.get("Parts", []):
                        etag = part.get("ETag", "")
                        uploaded_at = part.get("LastModified", datetime.now(timezone.utc))
                        uploaded = _UploadedPart(etag, part.get("Size", 0), uploaded_at)
                        parts[part.get("PartNumber", 0), bare_etag(etag)] = uploaded
        except (RecordNotFoundError, StorageError) as error:
            if error.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}:  # for a malformed id
                raise NoSuchUploadError from error
            raise
        return parts

    async def _head(self, key: str) -> Content | None:
        try:
            with translate_s3_errors():
                head = await self._client.head_object(**self._object(key))
        except RecordNotFoundError:
            return None
        return Content.of_parts(head["ETag"], [(head["ContentLength"], head["ETag"])])

    def _object(self, key: str) -> _Object:
        return {"Bucket": self._bucket.name, "Key": self._bucket.key(f"blobs/{key}.tar")}

    def _key(self, name: str) -> str | None:
        """Return the key of an object's name; None if it is not the registry's."""
        prefix = self._bucket.key("blobs/")
        return name.removeprefix(prefix).removesuffix(".tar") if name.startswith(prefix) else None

    async def _presign(self, method: str, parameters: Mapping[str, object]) -> str:
        with translate_s3_errors():
            return await self._presigning_client.generate_presigned_url(
                method, Params=parameters, ExpiresIn=self._url_expiry
            )


class _Object(TypedDict):
    """The parameters that name an object in a request."""

    Bucket: str
    Key: str


class _UploadedPart(NamedTuple):
    """A part as the bucket lists it; `etag` is unchanged, `size` in bytes."""

    etag: str
    size: int
    uploaded_at: datetime


async def _rechunk(body: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytes]:
    """Yield a body in chunks of `size` bytes; the last may be shorter."""
    buffer = bytearray()
    async for chunk in body:
        buffer += chunk
        while len(buffer) >= size:
            yield bytes(memoryview(buffer)[:size])
            del buffer[:size]
    if buffer:
        yield bytes(buffer)


class _OpenObject:
    """An object of the bucket; a read fails if it is no longer what was stored."""

    def __init__(self, client: S3Client, where: _Object, content: Content) -> None:
        self.size = content.size
        self.etag = content.etag
        self._client = client
        self._where = where

    async def read(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        """See `OpenBlob`; failures of the bucket are raised as `OSError`, unlike those of the client's connection."""
        if start == stop:
            return
        try:
            with translate_s3_errors():
                response = await self._client.get_object(
                    **self._where, Range=f"bytes={start}-{stop - 1}", IfMatch=self.etag
                )
            async with response["Body"] as body:
                if response["ETag"] != self.etag:  # rclone and s3rver ignore If-Match
                    raise StorageError("PreconditionFailed", "the object has changed: its ETag differs", status=412)
                while chunk := await body.read(IO_CHUNK):
                    yield chunk
        except (BotoCoreError, RegistryError, aiohttp.ClientError, ConnectionError, asyncio.TimeoutError) as error:
            raise OSError(errno.EIO, f"the registry's bucket failed: {type(error).__name__}") from error

"""The bytes of items in a bucket. Presigned URLs lead to the bucket itself, so that they do not pass through here."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import aiohttp
from botocore.exceptions import BotoCoreError

from async_bento._core.concurrency import shielded
from async_bento._core.s3 import MAX_PARTS, MIN_PART_SIZE, bare_etag, etag_of_parts
from async_bento.config import MiB
from async_bento.registry.blobs.base import UPLOAD_LIFETIME, ClaimedPart
from async_bento.registry.blobs.bucket import refusals
from async_bento.registry.blobs.multipart import check_parts
from async_bento.registry.errors import NoSuchUploadError, RecordNotFoundError, RegistryError, StorageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence

    from aiobotocore.response import StreamingBody
    from types_aiobotocore_s3 import S3Client

    from async_bento.registry.blobs.bucket import Bucket

HOP = MiB
"""What is read in one go, in bytes."""

_PART_SIZE = 8 * MiB
_PART_SIZE_OF_UNKNOWN = 16 * MiB

log = logging.getLogger("async_bento.registry")


def part_size(size: int | None) -> int:
    """In what pieces a body is passed on. All are of one size, as R2 wants them, and each is held in memory once.

    Args:
        size: The body's size in bytes, if that is known.

    Returns:
        The size of a part, in bytes: 8 MiB, and more above 78 GiB; for what is not known 16 MiB, enough for 156 GiB.
    """
    return _PART_SIZE_OF_UNKNOWN if size is None else max(_PART_SIZE, -(-size // MAX_PARTS))


class S3Blobs:
    """Bytes in a bucket.

    Args:
        bucket: The bucket.
        presigning: Signs the URLs.
        url_expiry: How long those live, in seconds.
    """

    def __init__(self, bucket: Bucket, presigning: S3Client, *, url_expiry: int) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._presigning = presigning
        self._url_expiry = url_expiry

    async def presign_put(self, key: str) -> str:
        """See `Blobs`."""
        return await self._presign("put_object", self._object(key))

    async def presign_get(self, key: str) -> str:
        """See `Blobs`."""
        return await self._presign("get_object", self._object(key))

    async def start_multipart(self, key: str) -> str:
        """See `Blobs`."""
        with refusals():
            return (await self._client.create_multipart_upload(**self._object(key)))["UploadId"]

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        """See `Blobs`."""
        return await self._presign(
            "upload_part", {**self._object(key), "UploadId": upload_id, "PartNumber": part_number}
        )

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[ClaimedPart]) -> None:
        """See `Blobs`."""
        await self._complete(key, upload_id, parts)

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> str:
        """See `Blobs`."""
        pieces = _in_pieces(body, part_size(size))
        piece = await anext(pieces, b"")
        if len(piece) < part_size(size):
            _check_size(len(piece), size)
            with refusals():
                return (await self._client.put_object(**self._object(key), Body=io.BytesIO(piece)))["ETag"]
        upload_id = await self.start_multipart(key)
        try:
            parts: list[ClaimedPart] = []
            received = 0
            while piece:
                received += len(piece)
                parts.append(await self._put_part(key, upload_id, len(parts) + 1, piece))
                piece = await anext(pieces, b"")
            _check_size(received, size)
            return await self._complete(key, upload_id, parts)
        except BaseException:
            await shielded(self._abandon(key, upload_id))
            raise

    @asynccontextmanager
    async def open(self, key: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        """See `Blobs`."""
        with refusals(f"the bytes of {key}"):
            found = await self._client.get_object(**self._object(key))
        async with found["Body"]:
            yield _read(found["Body"])

    async def sweep(self) -> None:
        """Abort the uploads that nobody has sent a part of for `UPLOAD_LIFETIME`.

        Raises:
            StorageError: The bucket did not answer, or said no.
        """
        oldest = datetime.now(timezone.utc) - timedelta(seconds=UPLOAD_LIFETIME)
        prefix = self._object("")["Key"]
        with refusals():
            # Of the whole bucket, since MinIO takes a prefix for the name of one object (its issue 20989).
            async for page in self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket.name):
                for upload in page.get("Uploads", []):
                    key = upload.get("Key", "")
                    if key.startswith(prefix) and upload.get("Initiated", oldest) < oldest:
                        await self._abort_if_idle(key.removeprefix(prefix), upload.get("UploadId", ""), oldest)

    async def _abort_if_idle(self, key: str, upload_id: str, oldest: datetime) -> None:
        try:
            if all(part.arrived_at < oldest for part in (await self._parts(key, upload_id)).values()):
                await self._abort(key, upload_id)
                log.info("aborted an upload of %s that was left over", key)
        except NoSuchUploadError:
            pass  # another copy of the registry was faster

    async def _abort(self, key: str, upload_id: str) -> None:
        with refusals():
            await self._client.abort_multipart_upload(**self._object(key), UploadId=upload_id)

    async def _abandon(self, key: str, upload_id: str) -> None:
        try:
            await self._abort(key, upload_id)
        except RegistryError as error:
            log.warning("an upload of %s is left over: %s", key, error.message)  # a sweep comes by

    async def _put_part(self, key: str, upload_id: str, number: int, piece: bytes) -> ClaimedPart:
        with refusals():
            answer = await self._client.upload_part(
                **self._object(key), UploadId=upload_id, PartNumber=number, Body=io.BytesIO(piece)
            )
        return ClaimedPart(number, answer["ETag"])

    async def _complete(self, key: str, upload_id: str, claimed: Sequence[ClaimedPart]) -> str:
        """Make the parts the object, and return its ETag.

        The parts are compared with those that the bucket says it has, since not every server does that: SeaweedFS 4.48
        completes an upload also with ETags that it never gave.
        """
        try:
            parts = await self._parts(key, upload_id)
            check_parts(claimed, {part: arrived.size for part, arrived in parts.items()}, MIN_PART_SIZE)
            etags = [(part.number, parts[part.number, bare_etag(part.etag)].etag) for part in claimed]
            with refusals():
                answer = await self._client.complete_multipart_upload(
                    **self._object(key),
                    UploadId=upload_id,
                    MultipartUpload={"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in etags]},
                )
            return answer["ETag"]
        except NoSuchUploadError:
            # Completing twice is no error, since the first answer may be lost. Which upload made an object, nobody
            # knows by then; but its ETag says whether it is made of these very parts.
            etag = await self._etag(key)
            if etag is None or etag != etag_of_parts([part.etag for part in claimed]):
                raise
            return etag

    async def _parts(self, key: str, upload_id: str) -> Mapping[tuple[int, str], _Arrived]:
        """The parts of an upload, by their numbers and plain ETags."""
        if not upload_id:
            raise NoSuchUploadError  # without it, that would be a request for the object
        parts: dict[tuple[int, str], _Arrived] = {}
        try:
            with refusals():
                pages = self._client.get_paginator("list_parts").paginate(**self._object(key), UploadId=upload_id)
                async for page in pages:
                    for part in page.get("Parts", []):
                        etag = part.get("ETag", "")
                        arrived_at = part.get("LastModified", datetime.now(timezone.utc))
                        parts[part.get("PartNumber", 0), bare_etag(etag)] = _Arrived(
                            etag, part.get("Size", 0), arrived_at
                        )
        except (RecordNotFoundError, StorageError) as error:
            if error.status in {HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND}:  # for an id that cannot be one
                raise NoSuchUploadError from error
            raise
        return parts

    async def _etag(self, key: str) -> str | None:
        try:
            with refusals():
                return (await self._client.head_object(**self._object(key)))["ETag"]
        except RecordNotFoundError:
            return None

    def _object(self, key: str) -> _Object:
        return {"Bucket": self._bucket.name, "Key": self._bucket.key(f"blobs/{key}")}

    async def _presign(self, method: str, parameters: Mapping[str, object]) -> str:
        with refusals():
            return await self._presigning.generate_presigned_url(method, Params=parameters, ExpiresIn=self._url_expiry)


class _Object(TypedDict):
    """What a request is about."""

    Bucket: str
    Key: str


class _Arrived(NamedTuple):
    """A part that the bucket has."""

    etag: str
    size: int
    arrived_at: datetime


async def _in_pieces(body: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytes]:
    """A body, cut into pieces of one size; the last may be smaller."""
    held = bytearray()
    async for chunk in body:
        held += chunk
        while len(held) >= size:
            yield bytes(held[:size])
            del held[:size]
    if held:
        yield bytes(held)


async def _read(body: StreamingBody) -> AsyncGenerator[bytes]:
    """A body from the bucket; where it fails, that is no failure of whoever it is passed on to."""
    try:
        while chunk := await body.read(HOP):
            yield chunk
    except (BotoCoreError, aiohttp.ClientError, ConnectionError, asyncio.TimeoutError) as error:
        raise OSError(errno.EIO, f"the registry's bucket: {type(error).__name__}") from error


def _check_size(received: int, size: int | None) -> None:
    if size is not None and received != size:
        raise StorageError("IncompleteBody", f"{received} bytes arrived of {size}")

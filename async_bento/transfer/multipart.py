"""One multipart upload: its parts, in parallel, and its completion; `Upload` creates or resumes it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from async_bento._core.concurrency import for_each, shielded
from async_bento._core.s3 import bare_etag, etag_of_parts
from async_bento.errors import APIError, APIStatusError, BentoError
from async_bento.rest.request_schemas import CompletePartSchema
from async_bento.transfer.http import ByteRange, get
from async_bento.transfer.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.rest.transport import Target
    from async_bento.transfer.source import UploadSource
    from async_bento.transfer.upload import Upload


@dataclass(frozen=True)
class UploadResult:
    """What an upload sent: each byte counted once, and only this push's parts of a resumed upload."""

    bytes_sent: int
    parts: int
    resumed: bool = False


@dataclass
class Multipart:
    """One multipart upload: its parts, and the presigned URLs requested ahead for them."""

    upload: Upload
    source: UploadSource
    part_size: int
    upload_id: str
    etags: dict[int, str] = field(default_factory=dict[int, str])
    _sends_nothing: bool = field(init=False)
    _to_presign: Iterator[int] = field(init=False)
    _presigned: dict[int, asyncio.Task[Target]] = field(default_factory=dict[int, "asyncio.Task[Target]"], init=False)

    async def send(self, threads: int) -> UploadResult:
        """Send the missing parts, `threads` at a time, and complete the upload."""
        size, progress = self.source.size, self.upload.progress
        numbers = range(1, -(-size // self.part_size) + 1)
        missing = [number for number in numbers if number not in self.etags]
        to_send = sum(self._range(number).size for number in missing)
        resumed = len(missing) < len(numbers)
        self._sends_nothing = not missing
        progress.parts_done, progress.parts_total = len(numbers) - len(missing), len(numbers)
        if resumed:
            progress.resume(size - to_send, size)

        # A part's URL is requested while an earlier part is sent: one URL ahead per worker, so that none expires early.
        self._to_presign = iter(missing[threads:])
        try:
            await for_each(partial(self._send_part, ahead=threads), missing, min(threads, len(missing)))
        finally:
            for task in self._presigned.values():
                task.cancel()
            await shielded(asyncio.gather(*self._presigned.values(), return_exceptions=True))
        progress.enter("finishing")
        await self.source.check()  # the last part may have been read long before
        await self._complete([self.etags[number] for number in numbers])
        return UploadResult(to_send, len(missing), resumed)

    def is_stuck(self, error: BentoError) -> bool:
        """Whether an upload with all its parts cannot be completed: every later push would fail in the same way."""
        return self._sends_nothing and isinstance(error, APIStatusError)

    def _range(self, number: int) -> ByteRange:
        start = (number - 1) * self.part_size
        return ByteRange(start, min(start + self.part_size, self.source.size))

    async def _send_part(self, number: int, ahead: int) -> None:
        upload = self.upload
        digest = upload.pool.config.transfer.verify
        async with self.source.part(self._range(number), upload.progress, digest=digest) as body:
            self.etags[number] = await upload.put(
                body, partial(self._target, number, ahead), part_number=number, completed=lambda: len(self.etags)
            )
        upload.progress.part_arrived()
        await upload.journal(Journal.add, number, self.etags[number])

    async def _target(self, number: int, ahead: int) -> Target:
        target = await (self._presigned.pop(number, None) or self._presign(number))
        if len(self._presigned) < ahead and (later := next(self._to_presign, None)) is not None:
            self._presigned[later] = asyncio.create_task(self._presign(later))
        return target

    async def _presign(self, number: int) -> Target:
        upload = self.upload
        presigned = await upload.routes.presign_part(upload.name, upload.version, self.upload_id, number)
        return upload.storage_target(presigned)

    async def _complete(self, etags: list[str]) -> None:
        """Complete the upload; where that fails, the object decides: only the response may have been lost."""
        upload = self.upload
        parts = [CompletePartSchema(part_number=number, etag=etag) for number, etag in enumerate(etags, start=1)]
        upload.is_replaced = True  # before the request, since a completion without a response may have worked
        try:
            await upload.routes.complete_multipart_upload(upload.name, upload.version, self.upload_id, parts)
        except APIError:
            if not await self._is_stored(etags):
                raise

    async def _is_stored(self, etags: list[str]) -> bool:
        """Whether the storage has the whole object, by S3's ETag of a multipart upload and the size."""
        upload, expected = self.upload, etag_of_parts(etags)
        if expected is None:
            return False
        with suppress(BentoError):  # the error of the completion is the one to raise
            presigned = await upload.routes.presign_download(upload.name, upload.version)
            target = upload.routes.session.storage_target(presigned.presigned_download_url)
            # One byte, not HEAD: a presigned URL is signed for its method (S3, "Signature Version 4").
            async with get(target, ByteRange(0, 1), upload.pool.config) as received:
                return bare_etag(received.etag or "") == bare_etag(expected) and received.total == self.source.size
        return False

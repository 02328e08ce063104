"""The bytes of items: uploads, downloads and deletions, from the records to the storage.

Each upload has a key of its own, so no upload changes bytes that a client reads. The bytes become those of the item in
the transaction that records the client's success. `cleanup.py` removes the replaced bytes later.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from async_bento._core.concurrency import shielded
from async_bento._core.s3 import bare_etag
from async_bento.registry.errors import NoSuchUploadError, RecordNotFoundError, RegistryError
from async_bento.registry.records.blobs import Publication

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Sequence

    from async_bento.registry.blobs.base import Blobs, CompletedPart, Content, OpenBlob
    from async_bento.registry.item_types import ItemRef
    from async_bento.registry.records.base import Found, Item
    from async_bento.registry.records.blobs import Blob, BlobRecords
    from async_bento.registry.records.sql import Records
    from async_bento.registry.tokens import Actor

log = logging.getLogger(__package__)


class Uploads:
    """The bytes of the items of a registry."""

    def __init__(self, records: Records, blob_records: BlobRecords, blobs: Blobs) -> None:
        self._records = records
        self._blob_records = blob_records
        self._blobs = blobs

    async def presign_put(self, ref: ItemRef, item: Item) -> str:
        """Start an upload of one body, and sign its URL."""
        key = new_key(ref)
        url = await self._blobs.presign_put(key)
        await self._add(item, key, None)
        return url

    async def start_multipart(self, ref: ItemRef, item: Item) -> str:
        """Start an upload in parts, and return its id."""
        key = new_key(ref)
        upload_id = await self._blobs.start_multipart(key)
        await self._add(item, key, upload_id)
        return upload_id

    async def presign_part(self, item: Item, upload_id: str, part_number: int) -> str:
        """Sign the URL of a part; raise `NoSuchUploadError` for an upload of another item."""
        upload = await self._find(item, upload_id)
        return await self._blobs.presign_part(upload.key, upload_id, part_number)

    async def complete_multipart(self, item: Item, upload_id: str, parts: Sequence[CompletedPart]) -> None:
        """Complete an upload in parts; a repeated call succeeds."""
        upload = await self._find(item, upload_id)
        if upload.content is not None:  # the response to a first call may have been lost
            if not _consists_of(upload.content, parts):
                raise NoSuchUploadError
            return
        await self._blob_records.complete(upload, await self._blobs.complete_multipart(upload.key, upload_id, parts))

    async def completed(self, item: Item) -> Publication | None:
        """Find the newest upload of an item that is complete, and record which of the older ones are."""
        newest: Publication | None = None
        for upload in await self._blob_records.uploads(item):
            content = upload.content
            if content is None and upload.upload_id is None:
                content = await self._blobs.finish_put(upload.key)
                if content is not None:
                    await self._blob_records.complete(upload, content)
            if content is not None and newest is None:
                newest = Publication(upload.key, content, upload.id)
        return newest

    @asynccontextmanager
    async def received(self, ref: ItemRef, body: AsyncIterable[bytes], size: int | None) -> AsyncGenerator[Publication]:
        """Store a body of `size` bytes, if known; remove it if the block fails."""
        key = new_key(ref)
        content = await self._blobs.put(key, body, size)
        try:
            yield Publication(key, content)
        except BaseException:
            await shielded(self._remove_bytes(key, None))
            raise

    async def current(self, item: Item) -> Blob:
        """Return the record of an item's bytes; raise `RecordNotFoundError` if it has none."""
        found = await self._blob_records.current(item)
        if found is None:
            raise RecordNotFoundError(f"the bytes of {item.repository}:{item.version}")
        return found

    async def is_published(self, item: Item) -> bool:
        """Return whether a push of an item has succeeded, so that it has bytes."""
        found = await self._blob_records.current(item)
        return found is not None and found.state == "current"

    async def presign_get(self, blob: Blob) -> str:
        """Sign the URL of an item's bytes."""
        return await self._blobs.presign_get(blob.key)

    @asynccontextmanager
    async def open(self, item: Item) -> AsyncGenerator[OpenBlob]:
        """Open an item's bytes; raise `RecordNotFoundError` if it has none."""
        current = await self.current(item)
        assert current.content is not None, "the bytes of an item are complete"
        async with self._blobs.open(current.key, current.content) as blob:
            yield blob

    async def delete(self, ref: ItemRef, *, by: Actor, force: bool) -> Found:
        """Delete an item with its bytes, and return it; what could not be removed is left to the cleanup."""
        found, released = await self._records.delete_item(ref.item_type, ref.name, ref.version, by=by, force=force)
        for blob in released:
            await self.remove(blob)
        return found

    async def remove(self, blob: Blob) -> bool:
        """Remove bytes or an upload, then their record; log failures."""
        # Of a complete upload, only the object is left to delete.
        if not await self._remove_bytes(blob.key, blob.upload_id if blob.content is None else None):
            return False
        # The record last: as long as there is one, the cleanup tries again.
        await self._blob_records.remove(blob)
        return True

    async def _add(self, item: Item, key: str, upload_id: str | None) -> None:
        try:
            await self._blob_records.add_upload(item, key, upload_id)
        except BaseException:
            await shielded(self._remove_bytes(key, upload_id))
            raise

    async def _find(self, item: Item, upload_id: str) -> Blob:
        upload = await self._blob_records.find_upload(item, upload_id)
        if upload is None or upload.state != "uploading":
            raise NoSuchUploadError
        return upload

    async def _remove_bytes(self, key: str, upload_id: str | None) -> bool:
        try:
            await self._blobs.delete(key, upload_id)
        except (RegistryError, OSError) as error:
            log.warning("cannot remove the bytes of %s: %s. The cleanup tries again.", key, error)
            return False
        return True


def new_key(ref: ItemRef) -> str:
    """Return a key that no bytes have had."""
    return f"{ref.item_type.items}/{ref.name}/{ref.version}/{secrets.token_hex(16)}"


def _consists_of(content: Content, parts: Sequence[CompletedPart]) -> bool:
    listed = [bare_etag(part.etag) for part in parts]
    known = [part.md5 for part in content.parts]  # none of them, or the MD5 of all bytes, on some storages
    return listed == known or len(known) < len(listed)

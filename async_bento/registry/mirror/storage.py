"""The stored items of a mirror: published like pushes, and evicted in the order of the last pulls."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pydantic import ValidationError

from async_bento._core.concurrency import shielded
from async_bento._core.text import human_size
from async_bento._core.validation import format_time
from async_bento.registry import schemas
from async_bento.registry.errors import DuplicateError, RecordNotFoundError, RegistryError, StorageError
from async_bento.registry.item_types import BENTO, MODEL, ItemRef
from async_bento.registry.records.base import Change, NewItem, utc_now
from async_bento.registry.records.blobs import Publication
from async_bento.registry.tokens import Actor

if TYPE_CHECKING:
    from async_bento._core.validation import JsonObject
    from async_bento.registry.backend import OpenBackend
    from async_bento.registry.blobs.base import Content
    from async_bento.registry.blobs.disk import DiskBlobs
    from async_bento.registry.mirror.fetch import Fetched
    from async_bento.registry.mirror.upstream import Remote
    from async_bento.registry.records.base import Item

_BATCH = 20
"""Items that are considered for eviction at once."""

_MIRROR = Actor("mirror")
"""Who publishes and evicts, in the audit log."""

log = logging.getLogger(__package__)


class Stored(NamedTuple):
    """An item that the mirror has, with the key of its bytes."""

    item: Item
    key: str
    content: Content

    def is_of(self, remote: Remote) -> bool:
        """Whether the bytes are those of a record of the upstream."""
        checksums = remote.record.checksums
        has_other_etag = checksums is not None and checksums.etag != self.content.etag
        return self.item.upload_finished_at == remote.marker and not has_other_etag


class MirrorStorage:
    """The items of a mirror, which together have `size` bytes at most; None for no limit."""

    def __init__(self, opened: OpenBackend, blobs: DiskBlobs, size: int | None, url: str) -> None:
        self._records = opened.records
        self._blob_records = opened.blob_records
        self._retention = opened.retention
        self.audit = opened.audit
        self._uploads = opened.uploads
        self._blobs = blobs
        self._size = size
        self._url = url
        self._lock = asyncio.Lock()

    async def recover(self) -> None:
        """Remove what a mirror was fetching when it was killed."""
        async for stored in self._blobs.stored():
            keys = [each.key for each in stored]
            known = await self._blob_records.named(keys)
            for key in keys:
                if key not in known:
                    await self._blobs.delete_unfinished(key)

    async def find(self, ref: ItemRef) -> Stored | None:
        """Find an item with its bytes."""
        try:
            item = await self._records.item(ref.item_type, ref.name, ref.version)
            blob = await self._uploads.current(item)
        except RecordNotFoundError:
            return None
        assert blob.content is not None, "the bytes of an item are complete"
        return Stored(item, blob.key, blob.content)

    async def keep_record(self, ref: ItemRef, remote: Remote) -> None:
        """Keep the record of a model whose files are on the Hugging Face Hub: clients request its record only."""
        manifest = remote.fields.get("manifest")
        metadata = manifest.get("metadata") if isinstance(manifest, dict) else None
        if not isinstance(metadata, dict) or metadata.get("registry") != "huggingface":
            return
        with suppress(RecordNotFoundError):
            item = await self._records.item(ref.item_type, ref.name, ref.version)
            if item.upload_finished_at == remote.marker:
                return
        try:
            await self._publish(ref, remote, None)
        except (RegistryError, ValidationError) as error:
            log.warning("cannot keep the record of %s: %s", ref, error)

    async def checksums(self, ref: ItemRef, remote: Remote) -> JsonObject | None:
        """Return the checksums of the bytes of a record of the upstream; None if the mirror does not have them."""
        stored = await self.find(ref)
        return schemas.checksums(stored.content) if stored is not None and stored.is_of(remote) else None

    async def publish(self, fetched: Fetched) -> None:
        """Make a complete file the bytes of an item, or remove it; then evict others if the mirror is full."""
        try:
            content = await self._blobs.add_file(fetched.key, fetched.file)
            publication = Publication(fetched.key, content._replace(etag=fetched.etag))
            await self._publish(fetched.ref, fetched.remote, publication)
        except BaseException:
            await shielded(self._blobs.delete(fetched.key))
            raise
        await self.make_room(0)

    async def make_room(self, size: int) -> None:
        """Evict what was pulled least recently, until `size` more bytes have room.

        Raise `StorageError` if they never have.
        """
        if self._size is None:
            return
        if size > self._size:
            message = (
                f"the tar has {human_size(size)}, more than this mirror may keep: {human_size(self._size)}. Pull it "
                f"from {self._url}, or raise the size of the mirror."
            )
            raise StorageError("EntityTooLarge", message, status=409)
        # One at a time: two evictions that see the same usage would evict twice as much.
        async with self._lock:
            # At once, unlike the cleanup: a mirror presigns no URL, and files stay until their last reader has ended.
            for blob in await self._blob_records.unused_since(utc_now()):
                await self._uploads.remove(blob)
            while (await self._blob_records.usage()).current + size > self._size:
                evicted = await self._retention.least_recently_pulled(_BATCH)
                if not evicted:
                    return
                for version in evicted:
                    ref = ItemRef(BENTO if version.kind == BENTO.item else MODEL, version.name, version.version)
                    with suppress(RecordNotFoundError):
                        await self._uploads.delete(ref, by=_MIRROR, force=True)
                    log.info("evicted %s, which nobody has pulled for the longest time", ref)
                    if (await self._blob_records.usage()).current + size <= self._size:
                        return

    async def _publish(self, ref: ItemRef, remote: Remote, publication: Publication | None) -> None:
        """Write the record of the upstream, with the bytes."""
        record, fields = remote.record, remote.fields
        built = record.build_at or record.created_at or utc_now()
        new = schemas.CreateRequest.model_validate(
            {
                "version": ref.version,
                "build_at": format_time(built),
                "description": fields.get("description") or "",
                "manifest": fields.get("manifest"),
                "labels": [label.model_dump() for label in record.labels],
            }
        )
        creator = record.creator.name if record.creator is not None else _MIRROR.token
        labels, description = new.labels or [], new.description or ""
        with suppress(DuplicateError):
            await self._records.create_repository(ref.item_type, ref.name, "", creator=creator)
        with suppress(DuplicateError):
            item = NewItem(ref.version, new.build_at, description, new.manifest, labels)
            await self._records.create_item(ref.item_type, ref.name, item, creator=creator)
        change = Change(
            description=description,
            manifest=new.manifest,
            labels=labels,
            upload_status="success",
            upload_started_at=record.upload_started_at,
            upload_finished_at=remote.marker,
            upload_finished_reason="",
            publish=publication,
        )
        await self._records.update_item(ref.item_type, ref.name, ref.version, change, by=_MIRROR)

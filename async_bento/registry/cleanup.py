"""Delete old versions, and remove replaced bytes and bytes without a record."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from async_bento._core.concurrency import background_task
from async_bento.registry.blobs.base import UPLOAD_LIFETIME
from async_bento.registry.errors import RegistryError, UnsupportedByStorageError
from async_bento.registry.records.base import utc_now
from async_bento.registry.retention import Pruner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from datetime import datetime

    from async_bento.registry.blobs.base import Blobs
    from async_bento.registry.records.audit import AuditLog
    from async_bento.registry.records.blobs import BlobRecords
    from async_bento.registry.records.retention import RetentionRecords
    from async_bento.registry.retention import RetentionPolicy
    from async_bento.registry.uploads import Uploads

_INTERVAL = 3600.0
"""Seconds between two cleanups."""

_FIRST = 60.0
"""Seconds until the first, so that a start is not slowed down."""

_MIN_UNUSED = 3600.0
"""Seconds that replaced bytes stay at least, for the pulls that read them; longer with a longer `url_expiry`."""

_AUDIT_LIFETIME = timedelta(days=365)

log = logging.getLogger(__package__)


class Cleanup:
    """Removes bytes that nobody needs; presigned URLs expire after `url_expiry` seconds."""

    def __init__(
        self,
        uploads: Uploads,
        records: BlobRecords,
        blobs: Blobs,
        audit: AuditLog,
        *,
        url_expiry: float,
        retention: tuple[RetentionRecords, RetentionPolicy] | None = None,
    ) -> None:
        self._uploads = uploads
        self._records = records
        self._blobs = blobs
        self._audit = audit
        self._retention = retention
        self._has_warned = False
        self._unused_lifetime = max(url_expiry, _MIN_UNUSED)

    async def run(self, now: datetime | None = None) -> None:
        """Remove what nobody needs at a time, by default now; log what fails."""
        now = now or utc_now()
        oldest = now - timedelta(seconds=UPLOAD_LIFETIME)
        for step in (
            lambda: self._prune(now),
            lambda: self._remove_unused(now - timedelta(seconds=self._unused_lifetime)),
            lambda: self._abort_unknown(oldest),
            lambda: self._remove_abandoned(oldest),
            lambda: self._remove_unknown(oldest),
            lambda: self._audit.remove(now - _AUDIT_LIFETIME),
        ):
            await _logged(step)

    async def _prune(self, now: datetime) -> None:
        """Delete the versions that the policy does not keep; their bytes stay as long as replaced ones."""
        if self._retention is None:
            return
        pruner = Pruner(*self._retention, now)
        async with aclosing(pruner.delete(await pruner.plan())) as batches:
            async for deleted, _ in batches:
                for version in deleted:
                    log.info("deleted %s %s, by the retention policy", version.kind, version.tag)

    async def _remove_unused(self, oldest: datetime) -> None:
        for blob in await self._records.unused_since(oldest):
            await self._uploads.remove(blob)

    async def _abort_unknown(self, oldest: datetime) -> None:
        try:
            await self._blobs.abort_unknown(oldest)
        except UnsupportedByStorageError as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("abandoned uploads stay in the bucket: %s. Remove them by its own means.", error.message)

    async def _remove_abandoned(self, oldest: datetime) -> None:
        """Remove uploads that got nothing since `oldest`."""
        for upload in await self._records.unfinished_since(oldest):
            uploaded_at = await self._blobs.uploaded_at(upload.key, upload.upload_id)
            if (uploaded_at is None or uploaded_at < oldest) and await self._uploads.remove(upload):
                log.info("removed an abandoned upload of %s", upload.key)

    async def _remove_unknown(self, oldest: datetime) -> None:
        """Remove bytes without a record, but not if they outnumber the others: then the records are lost."""
        unknown: list[str] = []
        n_known = 0
        async for stored in self._blobs.stored():
            # Newer bytes may still get a record: those of an upload that starts, and of the fetch of a mirror.
            keys = [each.key for each in stored if each.modified_at < oldest]
            known = await self._records.named(keys)
            n_known += len(known)
            unknown += [key for key in keys if key not in known]
        if len(unknown) > n_known:
            log.warning(
                "the storage has %d objects without a record, but only %d with one, so none is removed. Restore the "
                "database, or remove them yourself; the first is %s.",
                len(unknown),
                n_known,
                min(unknown),
            )
            return
        for key in unknown:
            await self._blobs.delete(key)
            log.info("removed bytes without a record: %s", key)


@asynccontextmanager
async def running(cleanup: Cleanup) -> AsyncGenerator[None]:
    """Clean up every hour."""
    async with background_task(_repeat(cleanup)):
        yield


async def _repeat(cleanup: Cleanup) -> None:
    await asyncio.sleep(_FIRST)
    while True:
        await cleanup.run()
        await asyncio.sleep(_INTERVAL)


async def _logged(step: Callable[[], Awaitable[None]]) -> None:
    try:
        await step()
    # One step that fails must not end the others, nor the task that repeats them.
    except (RegistryError, OSError) as error:
        log.warning("the cleanup failed: %s", error)
    except Exception:
        log.exception("the cleanup failed")

"""Deletion of items: the record first, in one transaction, then the bytes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from async_bento.registry.errors import RecordNotFoundError, RegistryError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_bento.registry.blobs.base import Blobs
    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.base import Found
    from async_bento.registry.records.sql import Records

log = logging.getLogger(__package__)


class ItemRef(NamedTuple):
    """The item that a route names."""

    item_type: ItemType
    name: str
    version: str

    @property
    def key(self) -> str:
        """The key of the item's blob."""
        return f"{self.item_type.items}/{self.name}/{self.version}.tar"


class Deletion:
    """Deletes items. A client registers the same version again only after the bytes of the old one are removed."""

    def __init__(self, records: Records, blobs: Blobs) -> None:
        self._records = records
        self._blobs = blobs
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, ref: ItemRef) -> asyncio.Lock:
        """Return the lock that registrations and deletions of an item hold, in this copy of the registry."""
        lock = self._locks.get(ref.key)
        if lock is None:
            lock = self._locks[ref.key] = asyncio.Lock()
        return lock

    async def delete(self, ref: ItemRef, *, force: bool) -> Found:
        """Delete an item and return it; bytes that could not be removed are logged. Call it shielded."""
        async with self.lock(ref):
            found = await self._records.delete_item(ref.item_type, ref.name, ref.version, force=force)
            await self._remove_bytes(ref)
            return found

    @asynccontextmanager
    async def removing_late_bytes(self, ref: ItemRef) -> AsyncGenerator[None]:
        """Remove the bytes that a request has stored if it finds that the item was deleted meanwhile."""
        try:
            yield
        except RecordNotFoundError:
            async with self.lock(ref):
                try:
                    await self._records.item(ref.item_type, ref.name, ref.version)
                except RecordNotFoundError:
                    await self._remove_bytes(ref)
            raise

    async def _remove_bytes(self, ref: ItemRef) -> None:
        try:
            await self._blobs.delete(ref.key)
        except (RegistryError, OSError) as error:
            log.warning("deleted the record of %s, but not its bytes: %s", ref.key, error)

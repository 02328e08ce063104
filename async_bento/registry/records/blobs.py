"""The records of uploads: the key of the bytes in the storage, and their checksums."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from async_bento.registry.errors import RecordNotFoundError
from async_bento.registry.records.base import utc_now
from async_bento.registry.records.rows import to_content
from async_bento.registry.records.tables import blobs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement, RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from async_bento.registry.blobs.base import Content
    from async_bento.registry.records.audit import Action
    from async_bento.registry.records.base import Item
    from async_bento.registry.records.database import Database

BlobState = Literal["uploading", "current", "unused"]
"""An upload that may still become the bytes of its item; the bytes of an item; what is to be removed."""


@dataclass(frozen=True)
class Blob:
    """The record of an upload; `content` is None until it is complete, `upload_id` None for an upload of one body."""

    id: int
    key: str
    item_id: int | None
    upload_id: str | None
    state: BlobState
    content: Content | None
    changed_at: datetime

    @property
    def is_open(self) -> bool:
        """Whether it accepts bytes."""
        return self.state == "uploading" and self.content is None


@dataclass(frozen=True)
class Publication:
    """Bytes that become those of an item; `blob_id` is None if they had no record while they were uploaded."""

    key: str
    content: Content
    blob_id: int | None = None


class Usage(NamedTuple):
    """Bytes that items have, and those that are to be removed."""

    current: int
    unused: int


class BlobRecords:
    """The records of the bytes of a registry."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_upload(self, item: Item, key: str, upload_id: str | None) -> None:
        """Record an upload; raise `RecordNotFoundError` if the item was deleted."""
        values = {"key": key, "item_id": item.id, "upload_id": upload_id, "state": "uploading", "changed_at": utc_now()}
        try:
            async with self._database.writing() as connection:
                await connection.execute(insert(blobs), values)
        except IntegrityError as error:  # of the foreign key
            raise RecordNotFoundError(f"get {item.repository}:{item.version}") from error

    async def find(self, key: str) -> Blob | None:
        """Return the record of a key."""
        return next(iter(await self._select(blobs.c.key == key)), None)

    async def find_upload(self, item: Item, upload_id: str) -> Blob | None:
        """Return the record of an item's multipart upload."""
        wanted = and_(blobs.c.item_id == item.id, blobs.c.upload_id == upload_id)
        return next(iter(await self._select(wanted)), None)

    async def uploads(self, item: Item) -> list[Blob]:
        """Return the uploads that may become an item's bytes, the newest first."""
        found = await self._select(and_(blobs.c.item_id == item.id, blobs.c.state == "uploading"))
        return found[::-1]

    async def current(self, item: Item) -> Blob | None:
        """Return the record of an item's bytes: those published, or else, as in Yatai, what was completed last."""
        complete = and_(blobs.c.item_id == item.id, blobs.c.state != "unused", blobs.c.etag.is_not(None))
        found = await self._select(complete)
        return next((blob for blob in found if blob.state == "current"), found[-1] if found else None)

    async def complete(self, upload: Blob, content: Content) -> None:
        """Record what an upload consists of."""
        done = update(blobs).where(blobs.c.id == upload.id).values(_content_columns(content))
        async with self._database.writing() as connection:
            await connection.execute(done)

    async def unfinished_since(self, oldest: datetime) -> list[Blob]:
        """Return the uploads that were started before `oldest`."""
        return await self._select(and_(blobs.c.state == "uploading", blobs.c.changed_at < oldest))

    async def unused_since(self, oldest: datetime) -> list[Blob]:
        """Return the bytes that no item has had since `oldest`."""
        return await self._select(and_(blobs.c.state == "unused", blobs.c.changed_at < oldest))

    async def page_of_current(self, after_id: int, count: int) -> list[Blob]:
        """Return records of the bytes of items in the order of their ids."""
        return await self._select(and_(blobs.c.state == "current", blobs.c.id > after_id), count)

    async def named(self, keys: Collection[str]) -> set[str]:
        """Return those of some keys that have a record."""
        async with self._database.reading() as connection:
            return set((await connection.execute(select(blobs.c.key).where(blobs.c.key.in_(keys)))).scalars())

    async def usage(self) -> Usage:
        """Return the bytes that are stored for all items."""
        sizes = select(blobs.c.state, func.sum(blobs.c.size)).where(blobs.c.etag.is_not(None)).group_by(blobs.c.state)
        async with self._database.reading() as connection:
            found = {row[0]: int(row[1]) for row in await connection.execute(sizes)}
        return Usage(found.get("current", 0), found.get("unused", 0))

    async def remove(self, blob: Blob) -> None:
        """Remove a record, once its bytes are removed."""
        async with self._database.writing() as connection:
            await connection.execute(delete(blobs).where(blobs.c.id == blob.id))

    async def adopt(self, item: Item, publication: Publication) -> None:
        """Record bytes that an item has had since before these records, unless it has a record."""
        has_record = select(blobs.c.id).where(blobs.c.item_id == item.id)
        async with self._database.writing() as connection:
            if (await connection.execute(has_record)).first() is None:
                await publish(connection, item.id, publication)

    async def _select(self, condition: ColumnElement[bool], count: int | None = None) -> list[Blob]:
        selected = select(blobs).where(condition).order_by(blobs.c.id).limit(count)
        async with self._database.reading() as connection:
            return [_blob(row) for row in (await connection.execute(selected)).mappings()]


async def publish(connection: AsyncConnection, item_id: int, publication: Publication | None) -> Action | None:
    """Make uploaded bytes those of an item, and end its other uploads that are complete; return what this is.

    Do nothing to the item's bytes without a publication, or if its upload has ended.
    """
    now, is_published = utc_now(), False
    current = select(blobs.c.id).where(blobs.c.item_id == item_id, blobs.c.state == "current")
    has_bytes = (await connection.execute(current)).first() is not None
    ended = and_(blobs.c.state == "uploading", blobs.c.etag.is_not(None))
    if publication is not None:
        values: Mapping[str, Any] = {"state": "current", "changed_at": now, **_content_columns(publication.content)}
        if publication.blob_id is None:
            new = {"key": publication.key, "item_id": item_id, "upload_id": None, **values}
            published = await connection.execute(insert(blobs).returning(blobs.c.id), new)
        else:
            is_upload = and_(blobs.c.id == publication.blob_id, blobs.c.state == "uploading")
            published = await connection.execute(update(blobs).where(is_upload).values(values).returning(blobs.c.id))
        blob_id = published.scalar_one_or_none()
        if blob_id is not None:
            is_published = True
            ended = and_(or_(ended, blobs.c.state == "current"), blobs.c.id != blob_id)
    others = update(blobs).where(blobs.c.item_id == item_id, ended)
    await connection.execute(others.values(state="unused", changed_at=now))
    if not has_bytes:
        return "push"
    return "replace" if is_published else None


async def release(connection: AsyncConnection, item_ids: Collection[int]) -> list[Blob]:
    """Let the bytes and uploads of items be removed; return their records."""
    ended = update(blobs).where(blobs.c.item_id.in_(item_ids)).values(state="unused", changed_at=utc_now())
    return [_blob(row) for row in (await connection.execute(ended.returning(blobs))).mappings()]


def _content_columns(content: Content) -> dict[str, object]:
    return {"size": content.size, "etag": content.etag, "parts": json.dumps(content.parts)}


def _blob(row: RowMapping) -> Blob:
    names = ("id", "key", "item_id", "upload_id", "state", "changed_at")
    return Blob(content=to_content(row), **{name: row[name] for name in names})

"""A bucket of format 1, which had a JSON object for each record; they are copied into the database."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import insert, select

from async_bento._core.concurrency import for_each
from async_bento._core.validation import JsonObject, UtcTime
from async_bento.registry.blobs.base import Content
from async_bento.registry.blobs.old_layout import parse_old_key
from async_bento.registry.errors import RecordNotFoundError
from async_bento.registry.item_types import BENTO, ITEM_TYPES
from async_bento.registry.records.base import UploadStatus
from async_bento.registry.records.blobs import Publication
from async_bento.registry.records.rows import add_labels, add_models, count_items, description_columns, manifest_columns
from async_bento.registry.records.tables import items, repositories
from async_bento.registry.records.tokens import TokenRecords
from async_bento.registry.tokens import Actor
from async_bento.rest.schemas import LabelItemSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from async_bento.registry.blobs.bucket import Bucket
    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.blobs import BlobRecords
    from async_bento.registry.records.database import Database
    from async_bento.registry.records.sql import Records

RecordT = TypeVar("RecordT", bound=BaseModel)

_CONCURRENT_READS = 32
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

log = logging.getLogger(__package__)


class RepositoryRecord(BaseModel):
    """The JSON of a repository, `repositories/<items>/<name>.json`."""

    uid: str
    name: str
    description: str
    created_at: UtcTime


class ItemRecord(BaseModel):
    """The JSON of an item, `items/<items>/<name>/<version>.json`."""

    uid: str
    repository: str
    version: str
    description: str
    manifest: JsonObject | None
    labels: list[LabelItemSchema]
    build_at: UtcTime
    upload_status: UploadStatus
    upload_started_at: UtcTime | None
    upload_finished_at: UtcTime | None
    upload_finished_reason: str
    created_at: UtcTime
    updated_at: UtcTime


async def copy_records(bucket: Bucket, database: Database) -> None:
    """Copy all records that the database does not have; skip and log objects that are no records."""
    found = [
        (
            item_type,
            await _read(bucket, RepositoryRecord, f"repositories/{item_type.items}/"),
            await _read(bucket, ItemRecord, f"items/{item_type.items}/"),
        )
        for item_type in ITEM_TYPES
    ]
    async with database.writing() as connection:
        for item_type, repository_records, item_records in found:
            ids = await _copy_repositories(connection, item_type, repository_records)
            await _copy_items(connection, item_type, ids, item_records)


async def copy_token(bucket: Bucket, database: Database) -> None:
    """Keep the token of an older registry, which the bucket has."""
    token = await bucket.read("api_token")
    if token:
        await TokenRecords(database).adopt(token.decode().strip(), by=Actor("registry"))


async def adopt_objects(bucket: Bucket, records: Records, blob_records: BlobRecords) -> None:
    """Record the bytes of items, which stay where they are."""
    for found in await bucket.objects("blobs/"):
        key = found.key.removeprefix("blobs/")
        ref = parse_old_key(key)
        if ref is not None:
            content = Content.of_parts(found.etag, [(found.size, found.etag)])
            with suppress(RecordNotFoundError):
                item = await records.item(*ref)
                await blob_records.adopt(item, Publication(key.removesuffix(".tar"), content))


async def _copy_repositories(
    connection: AsyncConnection, item_type: ItemType, records: Sequence[RepositoryRecord]
) -> dict[str, int]:
    """Return the ids of all repositories, by name."""
    stored = select(repositories.c.name, repositories.c.id).where(repositories.c.kind == item_type.item)
    names = set((await connection.execute(stored)).scalars())
    for record in records:
        if record.name not in names:
            values = {
                "kind": item_type.item,
                **description_columns(record.description),
                "n_items": 0,
                "updated_at": record.created_at,
            }
            await connection.execute(insert(repositories), record.model_dump() | values)
    return {row.name: row.id for row in await connection.execute(stored)}


async def _copy_items(
    connection: AsyncConnection, item_type: ItemType, repository_ids: dict[str, int], records: Sequence[ItemRecord]
) -> None:
    stored = select(items.c.repository_id, items.c.version).where(items.c.kind == item_type.item)
    known = {tuple(row) for row in await connection.execute(stored)}
    added: Counter[int] = Counter()
    # A bucket has no order of registration but the clocks of the copies that registered.
    for record in sorted(records, key=lambda each: (each.created_at, each.uid)):
        repository_id = repository_ids.get(record.repository)
        if repository_id is None or (repository_id, record.version) in known:
            continue
        manifest = record.manifest
        values = record.model_dump(exclude={"repository", "labels", "manifest"}) | {
            "repository_id": repository_id,
            "kind": item_type.item,
            **description_columns(record.description),
            **manifest_columns(manifest),
        }
        values["build_at"] = max(record.build_at, _EPOCH)
        (item_id,) = (await connection.execute(insert(items).returning(items.c.id), values)).one()
        await add_labels(connection, item_id, record.labels)
        if item_type is BENTO:
            await add_models(connection, item_id, manifest)
        added[repository_id] += 1
    for repository_id, count in added.items():
        await count_items(connection, repository_id, count)


async def _read(bucket: Bucket, schema: type[RecordT], prefix: str) -> list[RecordT]:
    found: list[RecordT] = []

    async def read(key: str) -> None:
        try:
            found.append(schema.model_validate_json(await bucket.read(key) or b""))
        except ValidationError:
            log.warning("skipped %s, which is no record", key)

    keys = [found.key for found in await bucket.objects(prefix)]
    await for_each(read, [key for key in keys if key.endswith(".json")], _CONCURRENT_READS)
    return found

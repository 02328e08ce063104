"""Records in a bucket: a JSON object each, written conditionally, without another database.

`If-None-Match: *` lets exactly one writer create a record. `If-Match` lets a writer replace a record only if it is
unchanged; otherwise the writer retries on the new content. So any number of registries may share a bucket, and each of
them sees the writes of all.

A list reads the names and ETags of all records concerned, 1000 per request, and then each record that is not cached
with its ETag.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from async_bento._core.concurrency import for_each
from async_bento.config import MiB
from async_bento.registry.errors import DuplicateError, RecordNotFoundError, StorageError
from async_bento.registry.records.base import (
    Item,
    Page,
    Repository,
    apply_change,
    new_item,
    new_uid,
    size_of,
    time_text,
    utc_now,
)
from async_bento.registry.records.query import Entry, select

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from async_bento.registry.blobs.bucket import Bucket, BucketObject
    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.base import Change, NewItem
    from async_bento.registry.records.query import ListQuery

T = TypeVar("T")

_CACHE_SIZE = 64 * MiB
"""JSON of cached records, in bytes."""

_CONCURRENT_READS = 32
"""Per request to the registry."""

_UPDATE_ATTEMPTS = 20
"""Attempts of an update while other writers change the record."""


class RepositoryRecord(BaseModel):
    """The JSON of a repository; see `Repository`."""

    model_config = ConfigDict(frozen=True)

    uid: str
    name: str
    description: str
    created_at: datetime


_ITEM = TypeAdapter(Item)
_REPOSITORY = TypeAdapter(RepositoryRecord)


class S3Records:
    """Stores records in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._cache = RecordCache(_CACHE_SIZE)

    async def create_repository(self, item_type: ItemType, name: str, description: str) -> Repository:
        """See `Records`."""
        record = RepositoryRecord(uid=new_uid(), name=name, description=description, created_at=utc_now())
        if not await self._bucket.create(_repository_key(item_type, name), _REPOSITORY.dump_json(record)):
            raise DuplicateError(f"{item_type.repository} {name}")
        return _repository(record, [])

    async def repositories(self, item_type: ItemType, names: Collection[str]) -> Mapping[str, Repository]:
        """See `Records`."""
        if not names:
            return {}
        only = next(iter(names)) if len({*names}) == 1 else None
        records = await self._repository_records(item_type, only)
        items: dict[str, list[Item]] = {}
        for item in await self._load(_ITEM, _items_prefix(item_type, only)):
            items.setdefault(item.repository, []).append(item)
        return {name: _repository(records[name], items.get(name, [])) for name in names if name in records}

    async def create_item(self, item_type: ItemType, repository: str, new: NewItem) -> Item:
        """See `Records`."""
        record = await self._repository_record(item_type, repository)
        item = new_item(repository, record.uid, new)
        if not await self._bucket.create(_item_key(item_type, repository, new.version), _ITEM.dump_json(item)):
            raise DuplicateError(f"{item_type.item} {repository}:{new.version}")
        return item

    async def update_item(self, item_type: ItemType, repository: str, version: str, change: Change) -> Item:
        """See `Records`."""
        key = _item_key(item_type, repository, version)
        for attempt in range(_UPDATE_ATTEMPTS):
            stored = await self._bucket.read(key)
            if stored is None:
                raise RecordNotFoundError(f"get {item_type.item} {repository}:{version}")
            item = apply_change(_parse(_ITEM, key, stored), change)
            if await self._bucket.replace(key, _ITEM.dump_json(item), stored.etag):
                return item
            await asyncio.sleep(random.uniform(0, min(0.01 * 2**attempt, 0.5)))  # noqa: S311 - jitter
        message = f"cannot update {item_type.item} {repository}:{version}: too many concurrent changes"
        raise StorageError("SlowDown", message, status=503, retry_after=1)

    async def items(self, item_type: ItemType, tags: Collection[tuple[str, str]]) -> Sequence[Item]:
        """See `Records`."""
        keys = [_item_key(item_type, *tag) for tag in tags]
        found = await self._read(_ITEM, keys)
        return [found[key] for key in keys if key in found]

    async def list_items(self, item_type: ItemType, query: ListQuery, repository: str | None = None) -> Page:
        """See `Records`."""
        descriptions: Mapping[str, str] = {}
        if repository is not None:
            record = await self._repository_record(item_type, repository)
            descriptions = {repository: record.description}
        elif "description" in query.fields:
            records = await self._repository_records(item_type, None)
            descriptions = {name: record.description for name, record in records.items()}
        items = await self._load(_ITEM, _items_prefix(item_type, repository))
        found, total = select(query, (_entry(item, descriptions.get(item.repository, "")) for item in items))
        return Page(items=found, total=total)

    async def _repository_record(self, item_type: ItemType, name: str) -> RepositoryRecord:
        records = await self._repository_records(item_type, name)
        if name not in records:
            raise RecordNotFoundError(f"get {item_type.repository} {name}")
        return records[name]

    async def _repository_records(self, item_type: ItemType, only: str | None) -> Mapping[str, RepositoryRecord]:
        if only is None:
            found = await self._load(_REPOSITORY, f"repositories/{item_type.items}/")
        else:
            found = (await self._read(_REPOSITORY, [_repository_key(item_type, only)])).values()
        return {record.name: record for record in found}

    async def _load(self, schema: TypeAdapter[T], prefix: str) -> Iterable[T]:
        """Return all records below a prefix; read only those that are not cached."""
        found: dict[str, T] = {}
        missing: list[str] = []
        for key, etag in (await self._bucket.etags(prefix)).items():
            record = self._cache.get(schema, key, etag)
            if record is None:
                missing.append(key)
            else:
                found[key] = record
        return (found | await self._read(schema, missing)).values()

    async def _read(self, schema: TypeAdapter[T], keys: Iterable[str]) -> dict[str, T]:
        """Read the records that exist among these keys."""
        found: dict[str, T] = {}

        async def read(key: str) -> None:
            stored = await self._bucket.read(key)
            if stored is not None:
                found[key] = record = _parse(schema, key, stored)
                self._cache.put(key, stored.etag, record, len(stored.body))

        await for_each(read, {*keys}, _CONCURRENT_READS)
        return found


class RecordCache:
    """An LRU cache of records by key and ETag, holding at most `limit` bytes of JSON."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._records: OrderedDict[str, tuple[str, object, int]] = OrderedDict()

    def get(self, schema: TypeAdapter[T], key: str, etag: str) -> T | None:
        """Return a record if it is cached with this ETag."""
        cached_etag, record, _ = self._records.get(key, ("", None, 0))
        if record is None or cached_etag != etag:
            return None
        self._records.move_to_end(key)
        return cast("T", record)

    def put(self, key: str, etag: str, record: object, size: int) -> None:
        """Cache a record whose JSON has `size` bytes."""
        self._size += size - self._records.pop(key, ("", None, 0))[2]
        self._records[key] = (etag, record, size)
        while self._size > self._limit:
            _, (_, _, freed) = self._records.popitem(last=False)
            self._size -= freed


def _repository_key(item_type: ItemType, name: str) -> str:
    return f"repositories/{item_type.items}/{name}.json"


def _items_prefix(item_type: ItemType, repository: str | None) -> str:
    return f"items/{item_type.items}/" + ("" if repository is None else f"{repository}/")


def _item_key(item_type: ItemType, repository: str, version: str) -> str:
    return f"{_items_prefix(item_type, repository)}{version}.json"


def _parse(schema: TypeAdapter[T], key: str, stored: BucketObject) -> T:
    try:
        return schema.validate_json(stored.body)
    except ValidationError as error:
        message = f"cannot read the record {key}: it is damaged. Restore or delete the object."
        raise StorageError("InternalError", message, status=500) from error


def _repository(record: RepositoryRecord, items: Collection[Item]) -> Repository:
    return Repository(
        uid=record.uid,
        name=record.name,
        description=record.description,
        created_at=record.created_at,
        updated_at=record.created_at,
        n_items=len(items),
        latest=max(items, key=_registration_order, default=None),
    )


def _entry(item: Item, repository_description: str) -> Entry[Item]:
    return Entry(
        item=item,
        registration_order=_registration_order(item),
        name=item.repository,
        description=f"{repository_description}\n{item.description}",
        labels={label.key: label.value for label in item.labels},
        build_at=time_text(item.build_at),
        created_at=time_text(item.created_at),
        size=size_of(item.manifest),
    )


def _registration_order(item: Item) -> tuple[int, str]:
    # By the clock of the copy that registered the item; the id breaks ties, in every copy alike.
    return round(item.created_at.timestamp() * 1_000_000), item.uid

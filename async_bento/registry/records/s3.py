"""Records in a bucket: a JSON object each, written under a condition, and no other database.

A record is created by a PUT that succeeds for one only (`If-None-Match: *`), and changed by one that succeeds while it
is what it was (`If-Match`), or else is tried anew on what it has become. So any number of registries may share a
bucket, and each of them answers with what all have written.

A list reads the names and ETags of all records it is about, a thousand a request, and those records that it does not
know, or not with this ETag. What was read is kept in memory, up to `_CACHED` bytes of JSON.
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
    changed,
    new_item,
    new_uid,
    size_of,
    time_text,
    utc_now,
)
from async_bento.registry.records.query import Entry, select

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from async_bento.registry.blobs.bucket import Bucket, Stored
    from async_bento.registry.kinds import Kind
    from async_bento.registry.records.base import Change, NewItem
    from async_bento.registry.records.query import ListQuery

T = TypeVar("T")

_CACHED = 64 * MiB
_READS = 32
"""Records that are read at once, for one answer."""

_CHANGES = 20
"""How often a change is tried anew, since others were faster."""


class RepositoryRecord(BaseModel):
    """What is kept of a repository; see `Repository`."""

    model_config = ConfigDict(frozen=True)

    uid: str
    name: str
    description: str
    created_at: datetime


_ITEM = TypeAdapter(Item)
_REPOSITORY = TypeAdapter(RepositoryRecord)


class S3Records:
    """Records in a bucket.

    Args:
        bucket: The bucket.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._cache = Cache(_CACHED)

    async def create_repository(self, kind: Kind, name: str, description: str) -> Repository:
        """See `Records`."""
        record = RepositoryRecord(uid=new_uid(), name=name, description=description, created_at=utc_now())
        if not await self._bucket.create(_repository_key(kind, name), _REPOSITORY.dump_json(record)):
            raise DuplicateError(f"{kind.repository} {name}")
        return _repository(record, [])

    async def repositories(self, kind: Kind, names: Collection[str]) -> Mapping[str, Repository]:
        """See `Records`."""
        if not names:
            return {}
        only = next(iter(names)) if len({*names}) == 1 else None
        records = await self._repository_records(kind, only)
        items: dict[str, list[Item]] = {}
        for item in await self._load(_ITEM, _items_prefix(kind, only)):
            items.setdefault(item.repository, []).append(item)
        return {name: _repository(records[name], items.get(name, [])) for name in names if name in records}

    async def create_item(self, kind: Kind, repository: str, new: NewItem) -> Item:
        """See `Records`."""
        record = await self._repository_record(kind, repository)
        item = new_item(repository, record.uid, new)
        if not await self._bucket.create(_item_key(kind, repository, new.version), _ITEM.dump_json(item)):
            raise DuplicateError(f"{kind.item} {repository}:{new.version}")
        return item

    async def update_item(self, kind: Kind, repository: str, version: str, change: Change) -> Item:
        """See `Records`."""
        key = _item_key(kind, repository, version)
        for tries in range(_CHANGES):
            stored = await self._bucket.read(key)
            if stored is None:
                raise RecordNotFoundError(f"get {kind.item} {repository}:{version}")
            item = changed(_parse(_ITEM, key, stored), change)
            if await self._bucket.replace(key, _ITEM.dump_json(item), stored.etag):
                return item
            await asyncio.sleep(random.uniform(0, min(0.01 * 2**tries, 0.5)))  # noqa: S311 - that they fall out of step
        raise StorageError("SlowDown", "too many changes of this record at once", status=503, retry_after=1)

    async def items(self, kind: Kind, tags: Collection[tuple[str, str]]) -> Sequence[Item]:
        """See `Records`."""
        keys = [_item_key(kind, *tag) for tag in tags]
        found = await self._read(_ITEM, keys)
        return [found[key] for key in keys if key in found]

    async def list_items(self, kind: Kind, query: ListQuery, repository: str | None = None) -> Page:
        """See `Records`."""
        described: Mapping[str, str] = {}
        if repository is not None:
            record = await self._repository_record(kind, repository)
            described = {repository: record.description}
        elif "description" in query.fields:
            records = await self._repository_records(kind, None)
            described = {name: record.description for name, record in records.items()}
        items = await self._load(_ITEM, _items_prefix(kind, repository))
        found, total = select(query, (_entry(item, described.get(item.repository, "")) for item in items))
        return Page(items=found, total=total)

    async def _repository_record(self, kind: Kind, name: str) -> RepositoryRecord:
        records = await self._repository_records(kind, name)
        if name not in records:
            raise RecordNotFoundError(f"get {kind.repository} {name}")
        return records[name]

    async def _repository_records(self, kind: Kind, only: str | None) -> Mapping[str, RepositoryRecord]:
        if only is None:
            found = await self._load(_REPOSITORY, f"repositories/{kind.items}/")
        else:
            found = (await self._read(_REPOSITORY, [_repository_key(kind, only)])).values()
        return {record.name: record for record in found}

    async def _load(self, form: TypeAdapter[T], prefix: str) -> Iterable[T]:
        """All records whose keys begin so; those that are known are not read again."""
        found: dict[str, T] = {}
        unknown: list[str] = []
        for key, etag in (await self._bucket.etags(prefix)).items():
            record = self._cache.get(form, key, etag)
            if record is None:
                unknown.append(key)
            else:
                found[key] = record
        return (found | await self._read(form, unknown)).values()

    async def _read(self, form: TypeAdapter[T], keys: Iterable[str]) -> dict[str, T]:
        """The records of these keys, as far as there are any."""
        found: dict[str, T] = {}

        async def read(key: str) -> None:
            stored = await self._bucket.read(key)
            if stored is not None:
                found[key] = record = _parse(form, key, stored)
                self._cache.put(key, stored.etag, record, len(stored.body))

        await for_each(read, {*keys}, _READS)
        return found


class Cache:
    """Records that were read, under their keys and ETags; those that were used least recently go first.

    Args:
        limit: How much JSON they may have been, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._records: OrderedDict[str, tuple[str, object, int]] = OrderedDict()

    def get(self, form: TypeAdapter[T], key: str, etag: str) -> T | None:
        """A record, if it is there with this ETag.

        Args:
            form: What it is.
            key: Its key.
            etag: Its ETag.

        Returns:
            The record, or None.
        """
        known, record, _ = self._records.get(key, ("", None, 0))
        if record is None or known != etag:
            return None
        self._records.move_to_end(key)
        return cast("T", record)

    def put(self, key: str, etag: str, record: object, size: int) -> None:
        """Keep a record.

        Args:
            key: Its key.
            etag: Its ETag.
            record: The record.
            size: The size of its JSON, in bytes.
        """
        self._size += size - self._records.pop(key, ("", None, 0))[2]
        self._records[key] = (etag, record, size)
        while self._size > self._limit:
            _, (_, _, freed) = self._records.popitem(last=False)
            self._size -= freed


def _repository_key(kind: Kind, name: str) -> str:
    return f"repositories/{kind.items}/{name}.json"


def _items_prefix(kind: Kind, repository: str | None) -> str:
    return f"items/{kind.items}/" + ("" if repository is None else f"{repository}/")


def _item_key(kind: Kind, repository: str, version: str) -> str:
    return f"{_items_prefix(kind, repository)}{version}.json"


def _parse(form: TypeAdapter[T], key: str, stored: Stored) -> T:
    try:
        return form.validate_json(stored.body)
    except ValidationError as error:
        raise StorageError("InternalError", f"the registry's record {key} is damaged", status=500) from error


def _repository(record: RepositoryRecord, items: Collection[Item]) -> Repository:
    return Repository(
        uid=record.uid,
        name=record.name,
        description=record.description,
        created_at=record.created_at,
        updated_at=record.created_at,
        n_items=len(items),
        latest=max(items, key=_registered, default=None),
    )


def _entry(item: Item, about: str) -> Entry[Item]:
    return Entry(
        item=item,
        registered=_registered(item),
        name=item.repository,
        description=f"{about}\n{item.description}",
        labels={label.key: label.value for label in item.labels},
        build_at=time_text(item.build_at),
        created_at=time_text(item.created_at),
        size=size_of(item.manifest),
    )


def _registered(item: Item) -> tuple[int, str]:
    # By the clocks of those who registered them; the id decides for all alike where the clocks do not.
    return round(item.created_at.timestamp() * 1_000_000), item.uid

"""Records in SQLite: one file, one connection, one thread.

Writes are transactions in a write-ahead log, so a killed process loses nothing that it has confirmed. The transactions
are short, so one thread suffices; it also decides which of two racing requests is first.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar, cast

from async_bento._core.concurrency import Threads
from async_bento.errors import ConfigError
from async_bento.registry.errors import DuplicateError, RecordNotFoundError, disk_error
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
from async_bento.rest.schemas import LabelItemSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from async_bento._core.validation import JsonObject
    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.base import Change, NewItem
    from async_bento.registry.records.query import ListQuery

T = TypeVar("T")

_SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (kind, name)
);
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL,
    repository_id INTEGER NOT NULL REFERENCES repositories (id),
    version TEXT NOT NULL,
    description TEXT NOT NULL,
    manifest TEXT,
    size INTEGER NOT NULL,
    build_at TEXT NOT NULL,
    upload_status TEXT NOT NULL,
    upload_started_at TEXT,
    upload_finished_at TEXT,
    upload_finished_reason TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    UNIQUE (repository_id, version)
);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    item_id INTEGER NOT NULL REFERENCES items (id),
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    UNIQUE (item_id, key)
);
"""

_ITEMS = """
SELECT items.*, repositories.name AS repository, repositories.uid AS repository_uid
FROM items JOIN repositories ON repositories.id = items.repository_id
"""
_INSERT_ITEM = """
INSERT INTO items (
    uid, repository_id, version, description, manifest, size, build_at, upload_status,
    upload_started_at, upload_finished_at, upload_finished_reason, created_at, updated_at
) VALUES (
    :uid, :repository_id, :version, :description, :manifest, :size, :build_at, :upload_status,
    :upload_started_at, :upload_finished_at, :upload_finished_reason, :created_at, :updated_at
)
"""
_UPDATE_ITEM = """
UPDATE items SET
    description = :description,
    manifest = :manifest,
    size = :size,
    upload_status = :upload_status,
    upload_started_at = :upload_started_at,
    upload_finished_at = :upload_finished_at,
    upload_finished_reason = :upload_finished_reason,
    updated_at = :updated_at
WHERE id = :id
"""
_ENTRIES = """
SELECT items.id, name, build_at, items.created_at, size,
    CASE WHEN {} THEN repositories.description || char(10) || items.description ELSE '' END AS description
FROM items JOIN repositories ON repositories.id = items.repository_id WHERE {}
"""
_LABELS = """
SELECT item_id, key, value FROM labels
JOIN items ON items.id = item_id JOIN repositories ON repositories.id = items.repository_id
"""


class SqliteRecords:
    """Stores records in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = Threads(1)
        self._opened: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the file, or create it; raise `ConfigError` if it is not a database of this or an older version."""
        try:
            await self._threads.run(self._open)
        except sqlite3.Error as error:
            raise ConfigError(f"cannot open {self._path}: {error}. Restore it from a backup.") from error

    async def close(self) -> None:
        """Close the file and stop the worker thread."""
        await self._threads.run(self._close)
        self._threads.close()

    async def create_repository(self, item_type: ItemType, name: str, description: str) -> Repository:
        """See `Records`."""
        return await self._run(self._create_repository, item_type, name, description)

    async def repositories(self, item_type: ItemType, names: Collection[str]) -> Mapping[str, Repository]:
        """See `Records`."""
        return await self._run(self._repositories, item_type, names)

    async def create_item(self, item_type: ItemType, repository: str, new: NewItem) -> Item:
        """See `Records`."""
        return await self._run(self._create_item, item_type, repository, new)

    async def update_item(self, item_type: ItemType, repository: str, version: str, change: Change) -> Item:
        """See `Records`."""
        return await self._run(self._update_item, item_type, repository, version, change)

    async def items(self, item_type: ItemType, tags: Collection[tuple[str, str]]) -> Sequence[Item]:
        """See `Records`."""
        return await self._run(self._items, item_type, tags)

    async def list_items(self, item_type: ItemType, query: ListQuery, repository: str | None = None) -> Page:
        """See `Records`."""
        return await self._run(self._list_items, item_type, query, repository)

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        try:
            return await self._threads.run(self._transaction, function, *args)
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
            raise

    def _transaction(self, function: Callable[..., T], *args: object) -> T:
        with self._connection:
            return function(*args)

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._opened is not None, "the database is closed"
        return self._opened

    def _open(self) -> None:
        connection = sqlite3.connect(self._path)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA_VERSION:
                raise ConfigError(f"cannot open {self._path}: a newer async-bento wrote it. Upgrade async-bento.")
            if version == 0:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        self._opened = connection

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _rows(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection.execute(sql, parameters)]

    def _create_repository(self, item_type: ItemType, name: str, description: str) -> Repository:
        now = time_text(utc_now())
        sql = (
            "INSERT INTO repositories (uid, kind, name, description, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)"
        )
        try:
            self._connection.execute(sql, (new_uid(), item_type.item, name, description, now, now))
        except sqlite3.IntegrityError as error:
            raise DuplicateError(f"{item_type.repository} {name}") from error
        return self._repositories(item_type, [name])[name]

    def _repositories(self, item_type: ItemType, names: Collection[str]) -> dict[str, Repository]:
        found: dict[str, Repository] = {}
        for name in names:
            for row in self._rows("SELECT * FROM repositories WHERE kind = ? AND name = ?", item_type.item, name):
                (count,) = self._rows("SELECT count(*) AS n FROM items WHERE repository_id = ?", row["id"])
                newest = f"{_ITEMS} WHERE items.repository_id = ? ORDER BY items.id DESC LIMIT 1"
                latest = [self._item(item) for item in self._rows(newest, row["id"])]
                found[name] = Repository(
                    uid=row["uid"],
                    name=name,
                    description=row["description"],
                    created_at=_time(row["created_at"]),
                    updated_at=_time(row["updated_at"]),
                    n_items=count["n"],
                    latest=latest[0] if latest else None,
                )
        return found

    def _repository(self, item_type: ItemType, name: str) -> dict[str, Any]:
        rows = self._rows("SELECT id, uid FROM repositories WHERE kind = ? AND name = ?", item_type.item, name)
        if not rows:
            raise RecordNotFoundError(f"get {item_type.repository} {name}")
        return rows[0]

    def _create_item(self, item_type: ItemType, repository: str, new: NewItem) -> Item:
        row = self._repository(item_type, repository)
        item = new_item(repository, row["uid"], new)
        try:
            cursor = self._connection.execute(_INSERT_ITEM, _values(item) | {"repository_id": row["id"]})
        except sqlite3.IntegrityError as error:
            raise DuplicateError(f"{item_type.item} {repository}:{new.version}") from error
        assert cursor.lastrowid is not None
        self._set_labels(cursor.lastrowid, item.labels)
        return item

    def _update_item(self, item_type: ItemType, repository: str, version: str, change: Change) -> Item:
        repository_id = self._repository(item_type, repository)["id"]
        rows = self._rows(f"{_ITEMS} WHERE items.repository_id = ? AND items.version = ?", repository_id, version)
        if not rows:
            raise RecordNotFoundError(f"get {item_type.item} {repository}:{version}")
        item = apply_change(self._item(rows[0]), change)
        self._connection.execute(_UPDATE_ITEM, _values(item) | {"id": rows[0]["id"]})
        if change.labels is not None:
            self._connection.execute("DELETE FROM labels WHERE item_id = ?", (rows[0]["id"],))
            self._set_labels(rows[0]["id"], item.labels)
        return item

    def _set_labels(self, item_id: int, labels: Sequence[LabelItemSchema]) -> None:
        rows = [(item_id, label.key, label.value) for label in labels]
        self._connection.executemany("INSERT INTO labels (item_id, key, value) VALUES (?, ?, ?)", rows)

    def _items(self, item_type: ItemType, tags: Collection[tuple[str, str]]) -> list[Item]:
        sql = f"{_ITEMS} WHERE repositories.kind = ? AND repositories.name = ? AND items.version = ?"
        return [self._item(row) for name, version in tags for row in self._rows(sql, item_type.item, name, version)]

    def _list_items(self, item_type: ItemType, query: ListQuery, repository: str | None) -> Page:
        if repository is None:
            entries = self._entries("repositories.kind = ?", item_type.item, query)
        else:
            entries = self._entries("repositories.id = ?", self._repository(item_type, repository)["id"], query)
        ids, total = select(query, entries)
        rows = [self._rows(f"{_ITEMS} WHERE items.id = ?", item_id)[0] for item_id in ids]
        return Page(items=[self._item(row) for row in rows], total=total)

    def _entries(self, condition: str, parameter: object, query: ListQuery) -> list[Entry[int]]:
        rows = self._rows(_ENTRIES.format("description" in query.fields, condition), parameter)
        labels: dict[int, dict[str, str]] = {row["id"]: {} for row in rows}
        for label in self._rows(f"{_LABELS} WHERE {condition}", parameter):
            labels[label["item_id"]][label["key"]] = label["value"]
        return [
            Entry(
                item=row["id"],
                registration_order=(row["id"], ""),
                name=row["name"],
                description=row["description"],
                labels=labels[row["id"]],
                build_at=row["build_at"],
                created_at=row["created_at"],
                size=row["size"],
            )
            for row in rows
        ]

    def _item(self, row: dict[str, Any]) -> Item:
        labels = self._rows("SELECT key, value FROM labels WHERE item_id = ? ORDER BY id", row["id"])
        return Item(
            uid=row["uid"],
            repository=row["repository"],
            repository_uid=row["repository_uid"],
            version=row["version"],
            description=row["description"],
            manifest=None if row["manifest"] is None else cast("JsonObject", json.loads(row["manifest"])),
            labels=[LabelItemSchema(key=label["key"], value=label["value"]) for label in labels],
            build_at=_time(row["build_at"]),
            upload_status=row["upload_status"],
            upload_started_at=_optional_time(row["upload_started_at"]),
            upload_finished_at=_optional_time(row["upload_finished_at"]),
            upload_finished_reason=row["upload_finished_reason"],
            created_at=_time(row["created_at"]),
            updated_at=_time(row["updated_at"]),
        )


def _values(item: Item) -> dict[str, object]:
    """Return the columns of an item, without its repository."""
    return {
        "uid": item.uid,
        "version": item.version,
        "description": item.description,
        "manifest": None if item.manifest is None else json.dumps(item.manifest),
        "size": size_of(item.manifest),
        "build_at": time_text(item.build_at),
        "upload_status": item.upload_status,
        "upload_started_at": item.upload_started_at and time_text(item.upload_started_at),
        "upload_finished_at": item.upload_finished_at and time_text(item.upload_finished_at),
        "upload_finished_reason": item.upload_finished_reason,
        "created_at": time_text(item.created_at),
        "updated_at": time_text(item.updated_at),
    }


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f").replace(tzinfo=timezone.utc)


def _optional_time(text: str | None) -> datetime | None:
    return None if text is None else _time(text)

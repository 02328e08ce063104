"""The records of repositories and items, in SQL: `Records`, which the handlers of the API and of the pages call."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import and_, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from async_bento.config import MiB
from async_bento.registry.errors import ConflictError, DuplicateError, ImmutableError, RecordNotFoundError
from async_bento.registry.item_types import BENTO, MODEL
from async_bento.registry.records.audit import add_event
from async_bento.registry.records.base import Found, Item, Repository, Whole, new_uid, utc_now
from async_bento.registry.records.blobs import publish, release
from async_bento.registry.records.rows import (
    add_labels,
    add_models,
    columns_of,
    count_items,
    description_columns,
    has_models,
    manifest_columns,
    to_content,
    to_item,
    to_repository,
)
from async_bento.registry.records.search import select_page, select_repositories, select_total
from async_bento.registry.records.tables import bento_models, blobs, items, labels, repositories
from async_bento.rest.schemas import LabelItemSchema

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.ext.asyncio import AsyncConnection

    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.base import Change, NewItem
    from async_bento.registry.records.blobs import Blob
    from async_bento.registry.records.database import Database
    from async_bento.registry.records.query import ListQuery
    from async_bento.registry.tokens import Actor

KeyT = TypeVar("KeyT")

_ITEMS = select(items, repositories.c.name.label("repository"), repositories.c.uid.label("repository_uid")).join(
    repositories, items.c.repository_id == repositories.c.id
)
_REPOSITORIES = select(
    repositories,
    select(func.max(items.c.id))
    .where(items.c.repository_id == repositories.c.id)
    .correlate(repositories)
    .scalar_subquery()
    .label("latest_id"),
)
"""Repositories, with the id of the item that each registered last."""

_LATEST = items.alias("latest")
_WHOLE = (
    select(
        *(column.label(f"item_{column.name}") for column in items.c),
        *(column.label(f"repository_{column.name}") for column in repositories.c),
        *(column.label(f"latest_{column.name}") for column in _LATEST.c),
        *(column.label(f"blob_{column.name}") for column in blobs.c),
    )
    .join(repositories, items.c.repository_id == repositories.c.id)
    .outerjoin(
        _LATEST,
        _LATEST.c.id
        == select(func.max(items.c.id))
        .where(items.c.repository_id == repositories.c.id)
        .correlate(repositories)
        .scalar_subquery(),
    )
    .outerjoin(blobs, and_(blobs.c.item_id == items.c.id, blobs.c.state == "current"))
)
"""An item, its repository with the newest item, and its bytes, in one statement: each takes about a millisecond."""

_MAX_PAGE_LENGTH = 8 * MiB
"""Characters of the descriptions and manifests on a page; a page of longer ones has fewer items."""

_NAMED_BENTOS = 3
"""Bentos that the refusal to delete a model names."""


class Records:
    """The records of a registry; names and versions that its methods get are valid.

    With `immutable`, an item whose upload succeeded keeps its manifest and its bytes.
    """

    def __init__(self, database: Database, *, immutable: bool = False) -> None:
        self.database = database
        self.immutable = immutable

    async def create_repository(self, item_type: ItemType, name: str, description: str, *, creator: str) -> Repository:
        """Create a repository; raise `DuplicateError` if the name is taken."""
        now = utc_now()
        values = {
            "uid": new_uid(),
            "kind": item_type.item,
            "name": name,
            **description_columns(description),
            "n_items": 0,
            "creator": creator,
            "created_at": now,
            "updated_at": now,
        }
        async with self.database.writing() as connection:
            try:
                await connection.execute(insert(repositories), values)
            except IntegrityError as error:
                raise DuplicateError(f"{item_type.repository} {name}") from error
        return to_repository(values, None)

    async def repository(self, item_type: ItemType, name: str) -> Repository:
        """Return a repository; raise `RecordNotFoundError` if it does not exist."""
        named = and_(repositories.c.kind == item_type.item, repositories.c.name == name)
        async with self.database.reading() as connection:
            found = await _load_repositories(connection, named)
        if name not in found:
            raise RecordNotFoundError(f"get {item_type.repository} {name}")
        return found[name]

    async def list_repositories(self, item_type: ItemType, query: ListQuery) -> tuple[list[Repository], int]:
        """Return a page of repositories, those registered last first, and how many there are."""
        of_type = repositories.c.kind == item_type.item
        page, total = select_repositories(query, of_type)
        async with self.database.reading() as connection:
            names = _fitting([(row[0], row[1]) for row in (await connection.execute(page)).all()])
            found = await _load_repositories(connection, and_(of_type, repositories.c.name.in_(names)))
            return [found[name] for name in names if name in found], (await connection.execute(total)).scalar_one()

    async def update_repository(self, item_type: ItemType, name: str, description: str) -> Repository:
        """Change the description of a repository; raise `RecordNotFoundError` if it does not exist."""
        named = and_(repositories.c.kind == item_type.item, repositories.c.name == name)
        values = {"updated_at": utc_now(), **description_columns(description)}
        async with self.database.writing() as connection:
            await connection.execute(update(repositories).where(named).values(values))
            found = await _load_repositories(connection, named)
        if name not in found:
            raise RecordNotFoundError(f"get {item_type.repository} {name}")
        return found[name]

    async def delete_repository(self, item_type: ItemType, name: str) -> Repository:
        """Delete a repository; raise `RecordNotFoundError` if it does not exist, `ConflictError` if it has items."""
        named = and_(repositories.c.kind == item_type.item, repositories.c.name == name)
        empty = delete(repositories).where(named, repositories.c.n_items == 0).returning(repositories.c.id)
        async with self.database.writing() as connection:
            found = await _load_repositories(connection, named)
            if name not in found:
                raise RecordNotFoundError(f"get {item_type.repository} {name}")
            if (await connection.execute(empty)).first() is None:
                raise ConflictError(
                    f"cannot delete {item_type.repository} {name}: it is not empty. Delete its {item_type.items} first."
                )
            return found[name]

    async def create_item(self, item_type: ItemType, repository: str, new: NewItem, *, creator: str) -> Item:
        """Register an item as `pending`.

        Raise `RecordNotFoundError` without its repository, `DuplicateError` if the version is taken.
        """
        now = utc_now()
        async with self.database.writing() as connection:
            repository_id = await _find_repository(connection, item_type, repository, keep=True)
            values = {
                "uid": new_uid(),
                "repository_id": repository_id,
                "kind": item_type.item,
                "version": new.version,
                "build_at": new.build_at,
                "upload_status": "pending",
                "upload_finished_reason": "",
                "creator": creator,
                "created_at": now,
                "updated_at": now,
                **description_columns(new.description),
                **manifest_columns(new.manifest),
            }
            try:
                (item_id,) = (await connection.execute(insert(items).returning(items.c.id), values)).one()
            except IntegrityError as error:
                raise DuplicateError(f"{item_type.item} {repository}:{new.version}") from error
            await count_items(connection, repository_id, 1)
            await add_labels(connection, item_id, new.labels)
            if item_type is BENTO:
                await add_models(connection, item_id, new.manifest)
            return (await _load(connection, _ITEMS.where(items.c.id == item_id)))[0]

    async def update_item(
        self, item_type: ItemType, repository: str, version: str, change: Change, *, by: Actor
    ) -> Item:
        """Change an item's record.

        Raise `RecordNotFoundError` if it does not exist, and `ConflictError` if it is immutable.
        """
        values: dict[str, Any] = {"updated_at": utc_now()}
        if change.description is not None:
            values |= description_columns(change.description)
        if change.manifest is not None:
            values |= manifest_columns(change.manifest)
        for name in ("upload_status", "upload_started_at", "upload_finished_at", "upload_finished_reason"):
            if (value := getattr(change, name)) is not None:
                values[name] = value
        async with self.database.writing() as connection:
            repository_id = await _find_repository(connection, item_type, repository)
            wanted = [items.c.repository_id == repository_id, items.c.version == version]
            if change.uid is not None:
                wanted.append(items.c.uid == change.uid)
            if self.immutable:
                await _check_mutable(connection, wanted, change)
            changed = await connection.execute(update(items).where(*wanted).values(values).returning(items.c.id))
            item_id = changed.scalar_one_or_none()
            if item_id is None:
                raise RecordNotFoundError(f"get {item_type.item} {repository}:{version}")
            if change.upload_status == "success":
                action = await publish(connection, item_id, change.publish)
                if action is not None:
                    await add_event(connection, action, item_type.item, repository, version, by=by)
            if change.labels is not None:
                await connection.execute(delete(labels).where(labels.c.item_id == item_id))
                await add_labels(connection, item_id, change.labels)
            if change.manifest is not None and item_type is BENTO:
                await connection.execute(delete(bento_models).where(bento_models.c.bento_id == item_id))
                await add_models(connection, item_id, change.manifest)
            return (await _load(connection, _ITEMS.where(items.c.id == item_id)))[0]

    async def delete_item(
        self, item_type: ItemType, repository: str, version: str, *, by: Actor, force: bool = False
    ) -> tuple[Found, Sequence[Blob]]:
        """Delete an item and return it, and the records of the bytes to remove; its repository stays.

        Raise `RecordNotFoundError` if it does not exist, and, unless forced, `ConflictError` for a model that a bento
        names.
        """
        async with self.database.writing() as connection:
            item = await _find_item(connection, item_type, repository, version)
            if item_type is MODEL and not force:
                await _check_unused(connection, item)
            # Uploads of other copies of the registry are published before, or not at all.
            locked = await connection.execute(select(items.c.id).where(items.c.id == item.id).with_for_update())
            if locked.first() is None:  # another copy was faster
                raise RecordNotFoundError(f"get {item_type.item} {repository}:{version}")
            released = await release(connection, [item.id])
            await connection.execute(delete(items).where(items.c.id == item.id))
            await count_items(connection, item.repository_id, -1)
            await add_event(connection, "delete", item_type.item, repository, version, by=by)
            return await _with_repositories(connection, [item], with_latest=True), released

    async def item(self, item_type: ItemType, repository: str, version: str) -> Item:
        """Return an item; raise `RecordNotFoundError` if it does not exist."""
        async with self.database.reading() as connection:
            return await _find_item(connection, item_type, repository, version)

    async def find(self, item_type: ItemType, repository: str, version: str) -> Whole:
        """Return all about an item; raise `RecordNotFoundError` if it does not exist."""
        tagged = _WHOLE.where(
            repositories.c.kind == item_type.item, repositories.c.name == repository, items.c.version == version
        )
        async with self.database.reading() as connection:
            row = (await connection.execute(tagged)).mappings().first()
            if row is None:
                raise RecordNotFoundError(f"get {item_type.item} {repository}:{version}")
            parts = {name: columns_of(row, name) for name in ("item", "repository", "latest", "blob")}
            labels_of = await _load_labels(connection, {parts["item"]["id"], parts["latest"]["id"]})
            named = {"repository": repository, "repository_uid": parts["repository"]["uid"]}
            item, latest = (
                to_item(parts[name] | named, labels_of.get(parts[name]["id"], [])) for name in ("item", "latest")
            )
            models = await _load(connection, _models_of(item)) if has_models(item) else []
            return Whole(
                Found([item], {repository: to_repository(parts["repository"], latest)}),
                await _with_repositories(connection, models),
                to_content(parts["blob"]),
            )

    async def list_items(self, item_type: ItemType, query: ListQuery, repository: str | None = None) -> Found:
        """Return a page of all items or of one repository's; raise `RecordNotFoundError` without the repository."""
        async with self.database.reading() as connection:
            scope, repository_scope = items.c.kind == item_type.item, repositories.c.kind == item_type.item
            if repository is not None:
                repository_id = await _find_repository(connection, item_type, repository)
                scope, repository_scope = items.c.repository_id == repository_id, repositories.c.id == repository_id
            return await _load_page(connection, query, scope, repository_scope)

    async def list_bentos_of(self, name: str, version: str, query: ListQuery) -> Found:
        """Return a page of the bentos that name a model; raise `RecordNotFoundError` if it does not exist."""
        async with self.database.reading() as connection:
            model = await _find_item(connection, MODEL, name, version)
            return await _load_page(connection, query, items.c.id.in_(_bentos_of(model)), None)

    async def count_items(self) -> dict[str, int]:
        """Return how many bentos and models there are."""
        counts = select(repositories.c.kind, func.sum(repositories.c.n_items)).group_by(repositories.c.kind)
        async with self.database.reading() as connection:
            found = {row[0]: int(row[1]) for row in await connection.execute(counts)}
        return {item_type.item: found.get(item_type.item, 0) for item_type in (BENTO, MODEL)}

    async def labels(self, item_type: ItemType, prefix: str = "") -> dict[str, list[str]]:
        """Return the values of each key of the labels of bentos or models, in order.

        The names of their repositories begin with the prefix.
        """
        used = (
            select(labels.c.key, labels.c.value)
            .join(items, items.c.id == labels.c.item_id)
            .where(items.c.kind == item_type.item)
        )
        if prefix:
            named = repositories.c.name.startswith(prefix, autoescape=True)
            used = used.join(repositories, repositories.c.id == items.c.repository_id).where(named)
        values: dict[str, list[str]] = {}
        async with self.database.reading() as connection:
            for key, value in await connection.execute(used.distinct().order_by(labels.c.key, labels.c.value)):
                values.setdefault(key, []).append(value)
        return values


async def _load_page(
    connection: AsyncConnection,
    query: ListQuery,
    scope: ColumnElement[bool],
    repository_scope: ColumnElement[bool] | None,
) -> Found:
    """Load a page of the items within a scope; see `select_total`."""
    total = (await connection.execute(select_total(query, scope, repository_scope))).scalar_one()
    rows = (await connection.execute(select_page(query, scope))).all()
    ids = _fitting([(row[0], row[1]) for row in rows])
    loaded = {item.id: item for item in await _load(connection, _ITEMS.where(items.c.id.in_(ids)))}
    # Each statement sees what was committed before it: an item may have been deleted since the first.
    in_order = [loaded[each] for each in ids if each in loaded]
    return await _with_repositories(connection, in_order, total)


async def _check_mutable(connection: AsyncConnection, wanted: Sequence[ColumnElement[bool]], change: Change) -> None:
    """Raise `ConflictError` if a change would replace what a complete item has."""
    for item in await _load(connection, _ITEMS.where(*wanted).with_for_update(of=items)):
        replaces_bytes = change.upload_status in ("uploading", "failed") or change.publish is not None
        replaces_manifest = change.manifest is not None and change.manifest != json.loads(item.manifest or "null")
        if item.upload_status == "success" and (replaces_bytes or replaces_manifest):
            raise ImmutableError(item.repository, item.version)


async def _check_unused(connection: AsyncConnection, model: Item) -> None:
    """Raise `ConflictError` if a bento names a model."""
    using = items.c.id.in_(_bentos_of(model))
    total = (await connection.execute(select(func.count()).select_from(items).where(using))).scalar_one()
    newest = _ITEMS.where(using).order_by(items.c.id.desc()).limit(_NAMED_BENTOS)
    bentos = [f"{bento.repository}:{bento.version}" for bento in await _load(connection, newest)]
    if not bentos:
        return
    more = f" and {total - len(bentos)} more" if total > len(bentos) else ""
    raise ConflictError(
        f"cannot delete model {model.repository}:{model.version}: {', '.join(bentos)}{more} "
        f"{'use' if total > 1 else 'uses'} it. Delete the {'bentos' if total > 1 else 'bento'} first, or force the "
        "deletion."
    )


def _bentos_of(model: Item) -> Select[int]:
    """Select the ids of the bentos that name a model."""
    return select(bento_models.c.bento_id).where(
        bento_models.c.name == model.repository, bento_models.c.version == model.version
    )


async def _with_repositories(
    connection: AsyncConnection, found: Sequence[Item], total: int = 0, *, with_latest: bool = False
) -> Found:
    """Load the repositories of items; `with_latest` would let a list repeat a long manifest for each item."""
    if not found:
        return Found(found, {}, total)
    of_items = repositories.c.id.in_({item.repository_id for item in found})
    return Found(found, await _load_repositories(connection, of_items, with_latest=with_latest), total)


async def _load_repositories(
    connection: AsyncConnection, condition: ColumnElement[bool], *, with_latest: bool = True
) -> dict[str, Repository]:
    rows = (await connection.execute(_REPOSITORIES.where(condition))).mappings().all()
    latest_ids = [row["latest_id"] for row in rows if with_latest and row["latest_id"] is not None]
    latest: dict[int, Item] = {}
    if latest_ids:
        latest = {item.id: item for item in await _load(connection, _ITEMS.where(items.c.id.in_(latest_ids)))}
    return {row["name"]: to_repository(row, latest.get(row["latest_id"])) for row in rows}


async def _find_item(connection: AsyncConnection, item_type: ItemType, repository: str, version: str) -> Item:
    tagged = _ITEMS.where(
        repositories.c.kind == item_type.item, repositories.c.name == repository, items.c.version == version
    )
    for item in await _load(connection, tagged):
        return item
    raise RecordNotFoundError(f"get {item_type.item} {repository}:{version}")


def _models_of(bento: Item) -> Select[Any]:
    """Select the models that a bento's manifest names."""
    named = and_(repositories.c.name == bento_models.c.name, items.c.version == bento_models.c.version)
    return (
        _ITEMS.join(bento_models, named)
        .where(repositories.c.kind == MODEL.item, bento_models.c.bento_id == bento.id)
        .order_by(bento_models.c.position)
    )


async def _find_repository(connection: AsyncConnection, item_type: ItemType, name: str, *, keep: bool = False) -> int:
    """Return the id of a repository; `keep` makes a deletion of it wait for the end of the transaction."""
    named = select(repositories.c.id).where(repositories.c.kind == item_type.item, repositories.c.name == name)
    if keep:
        named = named.with_for_update(read=True, key_share=True)  # of PostgreSQL; SQLite has one writer at a time
    repository_id: int | None = (await connection.execute(named)).scalar_one_or_none()
    if repository_id is None:
        raise RecordNotFoundError(f"get {item_type.repository} {name}")
    return repository_id


def _fitting(rows: Sequence[tuple[KeyT, int]]) -> list[KeyT]:
    """Return the first keys, whose texts have `_MAX_PAGE_LENGTH` characters at most together, but one key at least."""
    lengths = accumulate(length for _, length in rows)
    return [key for (key, _), total in zip(rows, lengths, strict=True) if total <= _MAX_PAGE_LENGTH] or [
        key for key, _ in rows[:1]
    ]


async def _load_labels(connection: AsyncConnection, item_ids: Collection[int]) -> dict[int, list[LabelItemSchema]]:
    of_items = select(labels).where(labels.c.item_id.in_(item_ids)).order_by(labels.c.position)
    found: dict[int, list[LabelItemSchema]] = {}
    for row in (await connection.execute(of_items)).mappings():
        found.setdefault(row["item_id"], []).append(LabelItemSchema(key=row["key"], value=row["value"]))
    return found


async def _load(connection: AsyncConnection, selected: Select[Any]) -> list[Item]:
    """Load the selected items, with their labels."""
    rows = (await connection.execute(selected)).mappings().all()
    if not rows:
        return []
    labels_of = await _load_labels(connection, [row["id"] for row in rows])
    return [to_item(row, labels_of.get(row["id"], [])) for row in rows]

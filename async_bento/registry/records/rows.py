"""Rows of the tables: write a record, and read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, update

from async_bento.registry.blobs.base import Content, Part
from async_bento.registry.records.base import Item, Repository, model_tags, size_of
from async_bento.registry.records.tables import bento_models, labels, repositories

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from async_bento._core.validation import JsonObject
    from async_bento.rest.schemas import LabelItemSchema


async def count_items(connection: AsyncConnection, repository_id: int, added: int) -> None:
    """Count items that were added to a repository, or, with a negative number, deleted."""
    counted = repositories.c.n_items + added
    await connection.execute(update(repositories).where(repositories.c.id == repository_id).values(n_items=counted))


async def add_labels(connection: AsyncConnection, item_id: int, added: Iterable[LabelItemSchema]) -> None:
    """Insert the labels of an item; of several with one key, the last."""
    last_per_key = {label.key: label.value for label in added}
    rows = [
        {"item_id": item_id, "key": key, "value": value, "position": position}
        for position, (key, value) in enumerate(last_per_key.items())
    ]
    if rows:
        await connection.execute(insert(labels), rows)


async def add_models(connection: AsyncConnection, bento_id: int, manifest: JsonObject | None) -> None:
    """Insert the models that a bento's manifest names."""
    rows = [
        {"bento_id": bento_id, "position": position, "name": name, "version": version}
        for position, (name, version) in enumerate(model_tags(manifest))
    ]
    if rows:
        await connection.execute(insert(bento_models), rows)


def description_columns(description: str) -> dict[str, str]:
    """Return the columns that hold a description, also for searches."""
    return {"description": description, "folded_description": description.lower()}


def manifest_columns(manifest: JsonObject | None) -> dict[str, object]:
    """Return the columns that hold a manifest and what is read from it."""
    return {"manifest": None if manifest is None else json.dumps(manifest), "size": size_of(manifest)}


def columns_of(row: RowMapping, prefix: str) -> dict[str, Any]:
    """Return the columns of one of the tables of a row, whose names begin with the prefix."""
    return {name.removeprefix(f"{prefix}_"): row[name] for name in row if name.startswith(f"{prefix}_")}


def has_models(bento: Item) -> bool:
    """Return whether a bento's manifest names models."""
    return bool(model_tags(json.loads(bento.manifest or "null")))


def to_content(row: Mapping[str, Any] | RowMapping) -> Content | None:
    """Read what an upload consists of; None until it is complete."""
    if row["etag"] is None:
        return None
    return Content(row["size"], row["etag"], tuple(Part(size, md5) for size, md5 in json.loads(row["parts"])))


def to_item(row: Mapping[str, Any] | RowMapping, labels_of_item: Sequence[LabelItemSchema]) -> Item:
    """Read an item."""
    return Item(
        id=row["id"],
        repository_id=row["repository_id"],
        uid=row["uid"],
        repository=row["repository"],
        repository_uid=row["repository_uid"],
        version=row["version"],
        description=row["description"],
        manifest=row["manifest"],
        size=row["size"],
        labels=labels_of_item,
        build_at=row["build_at"],
        upload_status=row["upload_status"],
        upload_started_at=row["upload_started_at"],
        upload_finished_at=row["upload_finished_at"],
        upload_finished_reason=row["upload_finished_reason"],
        creator=row["creator"],
        last_pulled_at=row["last_pulled_at"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def to_repository(row: Mapping[str, Any] | RowMapping, latest: Item | None) -> Repository:
    """Read a repository."""
    return Repository(
        uid=row["uid"],
        name=row["name"],
        description=row["description"],
        creator=row["creator"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        n_items=row["n_items"],
        latest=latest,
    )

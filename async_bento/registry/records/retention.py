"""The SQL of retention, whose policy is in `registry/retention.py`, and of the space that repositories use."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import and_, case, delete, exists, func, or_, select

from async_bento.registry.blobs.base import UPLOAD_LIFETIME
from async_bento.registry.item_types import MODEL
from async_bento.registry.records.audit import add_events
from async_bento.registry.records.blobs import release
from async_bento.registry.records.rows import count_items
from async_bento.registry.records.tables import bento_models, blobs, items, repositories

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement

    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.blobs import Blob
    from async_bento.registry.records.database import Database
    from async_bento.registry.retention import RetentionPolicy
    from async_bento.registry.tokens import Actor

_CURRENT = and_(blobs.c.item_id == items.c.id, blobs.c.state == "current")


class Version(NamedTuple):
    """A version: `bento` or `model`, its name and version, and the bytes that it uses."""

    item_id: int
    repository_id: int
    kind: str
    name: str
    version: str
    size: int

    @property
    def tag(self) -> str:
        """The tag, like `iris:v1`."""
        return f"{self.name}:{self.version}"


class RepositoryUsage(NamedTuple):
    """The number of versions of a repository of kind `bento` or `model`, and the bytes that they use."""

    kind: str
    name: str
    n_versions: int
    size: int


class RetentionRecords:
    """The records of a registry as retention needs them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def repositories(self, item_type: ItemType) -> list[tuple[int, str]]:
        """Return the ids and names of the repositories that are not empty, in the order of names."""
        filled = select(repositories.c.id, repositories.c.name).where(
            repositories.c.kind == item_type.item, repositories.c.n_items > 0
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(filled.order_by(repositories.c.name))
            return [(row[0], row[1]) for row in rows]

    async def prunable(
        self, repository_ids: Sequence[int], policy: RetentionPolicy, now: datetime, bentos: Collection[int]
    ) -> list[Version]:
        """Return the versions of repositories of one type that a policy does not keep, by repository, oldest first.

        A model stays if a bento names it, unless the id of that bento is among `bentos`.
        """
        columns = (items.c.id, items.c.repository_id, items.c.kind, repositories.c.name, items.c.version)
        found = (
            select(*columns, func.coalesce(blobs.c.size, 0))
            .join(repositories, repositories.c.id == items.c.repository_id)
            .outerjoin(blobs, _CURRENT)
            .where(*_conditions(repository_ids, policy, now))
            .order_by(items.c.repository_id, items.c.id)
        )
        uses = (
            select(bento_models.c.name, bento_models.c.version, bento_models.c.bento_id)
            .join(repositories, repositories.c.name == bento_models.c.name)
            .where(repositories.c.id.in_(repository_ids))
        )
        async with self._database.reading() as connection:
            versions = [Version(*row) for row in await connection.execute(found)]
            if not versions or versions[0].kind != MODEL.item:
                return versions
            used = {(row[0], row[1]) for row in await connection.execute(uses) if row[2] not in bentos}
        return [version for version in versions if (version.name, version.version) not in used]

    async def delete(
        self, versions: Sequence[Version], policy: RetentionPolicy, now: datetime, by: Actor
    ) -> tuple[list[Version], list[Blob]]:
        """Delete those of some versions of one type that are still not to be kept; return them and their bytes."""
        is_named = exists().where(
            bento_models.c.name == repositories.c.name,
            bento_models.c.version == items.c.version,
            items.c.kind == MODEL.item,
        )
        repository_ids = sorted({version.repository_id for version in versions})
        wanted = (
            select(items.c.id)
            .join(repositories, repositories.c.id == items.c.repository_id)
            .where(items.c.id.in_([version.item_id for version in versions]), ~is_named)
            .where(*_conditions(repository_ids, policy, now))
        )
        async with self._database.writing() as connection:
            # In one order, so that two copies of a registry wait for each other, and do not deadlock.
            locked = wanted.order_by(items.c.id).with_for_update(of=items)
            found = {*(await connection.execute(locked)).scalars()}
            released = await release(connection, found)
            await connection.execute(delete(items).where(items.c.id.in_(found)))
            deleted = [version for version in versions if version.item_id in found]
            for repository_id, count in sorted(Counter(version.repository_id for version in deleted).items()):
                await count_items(connection, repository_id, -count)
            subjects = [(version.kind, version.name, version.version) for version in deleted]
            await add_events(connection, "delete", subjects, by=by)
        return deleted, released

    async def least_recently_pulled(self, count: int) -> list[Version]:
        """Return versions that have bytes, those that were not pulled for the longest time first."""
        columns = (items.c.id, items.c.repository_id, items.c.kind, repositories.c.name, items.c.version, blobs.c.size)
        found = (
            select(*columns)
            .join(repositories, repositories.c.id == items.c.repository_id)
            .join(blobs, _CURRENT)
            .order_by(func.coalesce(items.c.last_pulled_at, blobs.c.changed_at), items.c.id)
            .limit(count)
        )
        async with self._database.reading() as connection:
            return [Version(*row) for row in await connection.execute(found)]

    async def usage(self) -> list[RepositoryUsage]:
        """Return what each repository uses, the largest first."""
        sizes = (
            select(items.c.repository_id, func.sum(blobs.c.size).label("size"))
            .join(blobs, _CURRENT)
            .group_by(items.c.repository_id)
            .subquery()
        )
        size = func.coalesce(sizes.c.size, 0)
        columns = (repositories.c.kind, repositories.c.name, repositories.c.n_items, size)
        used = select(*columns).outerjoin(sizes, sizes.c.repository_id == repositories.c.id)
        in_order = used.order_by(size.desc(), repositories.c.kind, repositories.c.name)
        async with self._database.reading() as connection:
            return [RepositoryUsage(*row[:3], int(row[3])) for row in await connection.execute(in_order)]


def _conditions(repository_ids: Sequence[int], policy: RetentionPolicy, now: datetime) -> list[ColumnElement[bool]]:
    """Select the versions of repositories that a policy does not keep, but none whose upload may still be resumed."""
    is_settled = or_(items.c.upload_status == "success", _is_older(now - timedelta(seconds=UPLOAD_LIFETIME)))
    conditions = [items.c.repository_id.in_(repository_ids), is_settled]
    if policy.keep is not None:
        is_complete = case((items.c.upload_status == "success", 1), else_=0)
        # NULL for the newest version, which has none before it in the window: no comparison selects it.
        n_newer = func.sum(is_complete).over(
            partition_by=items.c.repository_id, order_by=items.c.id.desc(), rows=(None, -1)
        )
        of_repositories = items.c.repository_id.in_(repository_ids)
        ranked = select(items.c.id, n_newer.label("n_newer")).where(of_repositories).subquery()
        conditions.append(items.c.id.in_(select(ranked.c.id).where(ranked.c.n_newer >= policy.keep)))
    if policy.older_than is not None:
        conditions.append(_is_older(now - timedelta(seconds=policy.older_than)))
    return conditions


def _is_older(time: datetime) -> ColumnElement[bool]:
    """Whether a version was neither registered nor pushed since a time."""
    pushed = (items.c.upload_started_at, items.c.upload_finished_at)
    return and_(items.c.created_at < time, *(func.coalesce(each, items.c.created_at) < time for each in pushed))

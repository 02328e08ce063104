"""The audit log: which token pushed, replaced, deleted and pulled what, and when."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import delete, insert, select, update

from async_bento.registry.errors import RegistryError
from async_bento.registry.records.base import utc_now
from async_bento.registry.records.tables import events, items

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from async_bento.registry.item_types import ItemRef
    from async_bento.registry.records.base import Item
    from async_bento.registry.records.database import Database
    from async_bento.registry.tokens import Actor

Action = Literal["push", "replace", "delete", "pull", "create", "rotate", "revoke"]
"""What happened to a bento or model; the last three, to a token."""


class Event(NamedTuple):
    """An entry of the audit log; `kind` is `bento`, `model` or `token`, and `version` is empty for a token."""

    at: datetime
    actor: str
    address: str
    action: Action
    kind: str
    name: str
    version: str

    @property
    def subject(self) -> str:
        """What the event is about, like `iris:v1`."""
        return f"{self.name}:{self.version}" if self.version else self.name


log = logging.getLogger("async_bento.registry")

_COLUMNS = tuple(events.c[name] for name in Event._fields)


class AuditLog:
    """The audit log of a registry. Changes write their events by `add_event`, in their own transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add_pull(self, ref: ItemRef, item: Item | None, by: Actor) -> None:
        """Record that a client has got the bytes of an item, or their URL; a mirror may not have its record yet."""
        async with self._database.writing() as connection:
            if item is not None:
                pulled = update(items).where(items.c.id == item.id).values(last_pulled_at=utc_now())
                await connection.execute(pulled)
            await add_event(connection, "pull", ref.item_type.item, ref.name, ref.version, by=by)

    async def list_of(self, ref: ItemRef, *, count: int) -> list[Event]:
        """Return the newest events of an item, the newest first."""
        about = (events.c.name == ref.name, events.c.version == ref.version, events.c.kind == ref.item_type.item)
        wanted = select(*_COLUMNS).where(*about).order_by(events.c.id.desc()).limit(count)
        async with self._database.reading() as connection:
            return [Event(*row) for row in await connection.execute(wanted)]

    async def record_pull(self, ref: ItemRef, item: Item | None, by: Actor) -> None:
        """Record a pull, or log why that is impossible: a full disk or a locked database must not stop pulls."""
        try:
            await self.add_pull(ref, item, by)
        except RegistryError as error:
            log.warning("cannot record the pull of %s: %s", ref, error.message)

    async def list(
        self, *, count: int, since: datetime | None = None, name: str | None = None, action: Action | None = None
    ) -> list[Event]:
        """Return the newest events, the oldest first: at most `count`, all with 0."""
        wanted = select(*_COLUMNS).order_by(events.c.id.desc()).limit(count or None)
        if since is not None:
            wanted = wanted.where(events.c.at >= since)
        if name is not None:
            wanted = wanted.where(events.c.name == name)
        if action is not None:
            wanted = wanted.where(events.c.action == action)
        async with self._database.reading() as connection:
            found = [Event(*row) for row in await connection.execute(wanted)]
        return found[::-1]

    async def remove(self, oldest: datetime) -> None:
        """Remove the events before a time."""
        async with self._database.writing() as connection:
            await connection.execute(delete(events).where(events.c.at < oldest))


async def add_event(
    connection: AsyncConnection, action: Action, kind: str, name: str, version: str = "", *, by: Actor
) -> None:
    """Record an event as a part of a transaction."""
    await add_events(connection, action, [(kind, name, version)], by=by)


async def add_events(
    connection: AsyncConnection, action: Action, subjects: Sequence[tuple[str, str, str]], *, by: Actor
) -> None:
    """Record that the same happened to several kinds, names and versions, as a part of a transaction."""
    now = utc_now()
    rows: list[dict[str, Any]] = [
        {"at": now, "actor": by.token, "address": by.address, "action": action}
        | {"kind": kind, "name": name, "version": version}
        for kind, name, version in subjects
    ]
    if rows:
        await connection.execute(insert(events), rows)

"""Values that all copies of a registry share, such as the id by which a bucket knows its database."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from async_bento.registry.records.tables import settings

if TYPE_CHECKING:
    from async_bento.registry.records.database import Database


async def shared_id(database: Database, name: str) -> str:
    """Read a random value that all copies of the registry share, or create it."""
    stored = select(settings.c.value).where(settings.c.name == name)
    for _ in range(2):
        async with database.reading() as connection:
            value: str | None = (await connection.execute(stored)).scalar_one_or_none()
        if value is not None:
            return value
        try:
            value = secrets.token_urlsafe(32)
            async with database.writing() as connection:
                await connection.execute(insert(settings), {"name": name, "value": value})
        except IntegrityError:
            continue  # another copy was faster
        return value
    raise AssertionError("settings are never deleted")

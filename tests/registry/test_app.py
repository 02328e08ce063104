"""The API on a storage other than the disk: it uses the `Blobs` interface only."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import URL

from async_bento.registry.errors import StorageError
from async_bento.registry.item_types import BENTO
from async_bento.registry.records.base import NewItem
from async_bento.registry.records.database import Database
from async_bento.registry.records.sql import Records

if TYPE_CHECKING:
    from pathlib import Path


async def open_database(directory: Path) -> Database:
    database = Database(URL.create("sqlite+aiosqlite", database=str(directory / "records.sqlite3")))
    await database.open()
    return database


async def test_full_disk_raises_507(tmp_path: Path):
    database = await open_database(tmp_path)
    records = Records(database)
    try:
        await records.create_repository(BENTO, "iris", "", creator="admin")
        large = NewItem("v1", datetime.now(timezone.utc), description="x" * 100_000)
        for connection in [await database._opened.connect() for _ in range(5)]:  # all of the pool
            await connection.exec_driver_sql("PRAGMA max_page_count = 1")
            await connection.close()
        with pytest.raises(StorageError) as caught:
            await records.create_item(BENTO, "iris", large, creator="admin")
        assert caught.value.status == 507
        assert (await records.repository(BENTO, "iris")).n_items == 0
    finally:
        await database.close()

"""The API on a storage other than the disk: it uses the `Blobs` interface only."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from sqlalchemy.engine import URL

from async_bento.registry.app import Api
from async_bento.registry.backend import OpenBackend
from async_bento.registry.errors import RecordNotFoundError, StorageError
from async_bento.registry.item_types import BENTO
from async_bento.registry.records.base import NewItem
from async_bento.registry.records.database import Database
from async_bento.registry.records.sql import Records
from async_bento.registry.server import close_server
from async_bento.registry.transmission import TransmissionPolicy
from tests.registry.conftest import BENTOS, Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Sequence
    from pathlib import Path

    from async_bento.registry.blobs.base import CompletedPart


class OtherObject:
    etag = '"etag"'

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.size = len(body)

    async def read(self, start: int, stop: int) -> AsyncIterator[bytes]:
        yield self.body[start:stop]


class OtherBlobs:
    """A storage whose URLs lead elsewhere, as S3's do."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.completed: list[tuple[str, str, list[tuple[int, str]]]] = []

    async def presign_put(self, key: str) -> str:
        return f"https://s3.example/bucket/{key}?put"

    async def presign_get(self, key: str) -> str:
        return f"https://s3.example/bucket/{key}?get"

    async def start_multipart(self, key: str) -> str:
        return f"upload of {key}"

    async def presign_part(self, key: str, upload_id: str, part_number: int) -> str:
        return f"https://s3.example/bucket/{key}?part={part_number}"

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[CompletedPart]) -> None:
        if not parts:
            raise StorageError("MalformedXML", "no parts")
        self.completed.append((key, upload_id, [tuple(part) for part in parts]))

    async def put(self, key: str, body: AsyncIterable[bytes], size: int | None) -> str:
        self.objects[key] = b"".join([chunk async for chunk in body])
        return '"etag"'

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[OtherObject]:
        if key not in self.objects:
            raise RecordNotFoundError(key)
        yield OtherObject(self.objects[key])


class Served:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.api_token = "token"


@pytest.fixture
def blobs() -> OtherBlobs:
    return OtherBlobs()


async def open_database(directory: Path) -> Database:
    database = Database(URL.create("sqlite+aiosqlite", database=str(directory / "records.sqlite3")))
    await database.open()
    return database


@pytest.fixture
async def caller(tmp_path: Path, blobs: OtherBlobs) -> AsyncIterator[Caller]:
    database = await open_database(tmp_path)
    records = Records(database)
    runner = web.AppRunner(Api(OpenBackend(records, blobs, "token"), TransmissionPolicy()).application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Caller(Served(f"http://127.0.0.1:{runner.addresses[0][1]}"), session, BENTOS)
    finally:
        await close_server(runner)
        await database.close()


async def test_presigned_urls_of_another_storage_are_passed_on(caller: Caller):
    await caller.create()
    assert await caller.put_url() == "https://s3.example/bucket/bentos/iris/v1.tar?put"
    assert await caller.get_url() == "https://s3.example/bucket/bentos/iris/v1.tar?get"
    assert await caller.part_url("u", 7) == "https://s3.example/bucket/bentos/iris/v1.tar?part=7"


async def test_multipart_in_another_storage_is_completed(caller: Caller, blobs: OtherBlobs):
    await caller.create()
    upload_id = await caller.start_multipart()
    assert (await caller.complete(upload_id, [])).json == {"error": "no parts"}
    assert (await caller.complete(upload_id, [(1, '"a"'), (2, '"b"')])).status == 200
    assert blobs.completed == [("bentos/iris/v1.tar", upload_id, [(1, '"a"'), (2, '"b"')])]


async def test_proxied_bytes_reach_another_storage(caller: Caller):
    await caller.create()
    assert (await caller.download()).status == 404
    assert (await caller.upload(b"bytes")).status == 200
    assert (await caller.download()).body == b"bytes"


async def test_records_on_a_full_disk_raise_507(tmp_path: Path):
    database = await open_database(tmp_path)
    records = Records(database)
    try:
        await records.create_repository(BENTO, "iris", "")
        large = NewItem("v1", datetime.now(timezone.utc), description="x" * 100_000)
        for connection in [await database._opened.connect() for _ in range(5)]:  # all of the pool
            await connection.exec_driver_sql("PRAGMA max_page_count = 1")
            await connection.close()
        with pytest.raises(StorageError) as caught:
            await records.create_item(BENTO, "iris", large)
        assert caught.value.status == 507
        assert (await records.repository(BENTO, "iris")).n_items == 0
    finally:
        await database.close()

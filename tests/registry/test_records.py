"""The records: migrations, limits, and a locked or unreachable database."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sqlite3
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import inspect
from sqlalchemy.exc import DatabaseError, IntegrityError

from async_bento import ConfigError
from async_bento.registry.backend import Backend
from async_bento.registry.blobs.base import Content, Part
from async_bento.registry.errors import BadRequestError, StorageError
from async_bento.registry.records import database as database_module
from async_bento.registry.records.database import Database, parse_database_url, sqlite_url
from async_bento.registry.records.settings import shared_id
from async_bento.registry.records.sql import _fitting
from async_bento.registry.records.tables import VERSION, metadata, settings
from async_bento.registry.schemas import CreateRequest, UpdateRequest, checksums, parse_request
from async_bento.registry.server import LocalRegistry
from tests.builders import MiB
from tests.registry.conftest import BUILD_AT, MODELS, Caller, disk_only, records_only, s3_only, sync_client
from tests.registry.test_tokens import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection

    from tests.registry.conftest import Serve, Storage
    from tests.registry.seaweed import Seaweed

pytestmark = records_only

OLD_SCHEMA = """
CREATE TABLE repositories (
    id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
    description TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL, UNIQUE (kind, name)
);
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL,
    repository_id INTEGER NOT NULL REFERENCES repositories (id), version TEXT NOT NULL, description TEXT NOT NULL,
    manifest TEXT, size INTEGER NOT NULL, build_at TEXT NOT NULL, upload_status TEXT NOT NULL, upload_started_at TEXT,
    upload_finished_at TEXT, upload_finished_reason TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,
    UNIQUE (repository_id, version)
);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item_id INTEGER NOT NULL REFERENCES items (id), key TEXT NOT NULL,
    value TEXT NOT NULL, UNIQUE (item_id, key)
);
PRAGMA user_version = 1;
"""
TIME = "2024-05-01T10:20:30.123456"


def insert(connection: sqlite3.Connection, table: str, **values: Any) -> None:
    names = ", ".join(values)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", [*values.values()])


def make_old_registry(path: Path) -> None:
    """Write the database of a release before Alembic, with a time that broke its lists."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLD_SCHEMA)
        times = {"created_at": TIME, "updated_at": TIME}
        for number, (kind, name) in enumerate((("bento", "iris"), ("model", "weights"), ("bento", "empty")), 1):
            insert(
                connection, "repositories", id=number, uid=f"r{number}", kind=kind, name=name, description="Ä", **times
            )
        for number, (repository, version, build_at) in enumerate(
            ((1, "v1", TIME), (2, "m1", TIME), (1, "v2", "1-01-01T00:00:00.000000")), 1
        ):
            insert(
                connection,
                "items",
                id=number,
                uid=f"i{number}",
                repository_id=repository,
                version=version,
                description="about it",
                manifest=json.dumps({"models": ["weights:m1"], "size_bytes": 7}),
                size=7,
                build_at=build_at,
                upload_status="success",
                upload_finished_reason="",
                **times,
            )
        insert(connection, "labels", item_id=1, key="team", value="red")
        insert(connection, "labels", item_id=1, key="env", value="test")
        connection.commit()


@disk_only
async def test_old_database_is_migrated(serve: Serve, tmp_path: Path):
    (tmp_path / "registry").mkdir()
    make_old_registry(tmp_path / "registry" / "registry.sqlite3")
    caller = await serve()

    with closing(sqlite3.connect(tmp_path / "registry" / "registry.sqlite3")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)  # or the tables would be copied again
    page = await caller.list()
    assert [(item["version"], item["build_at"]) for item in page["items"]] == [
        ("v1", f"{TIME}Z"),
        ("v2", "1970-01-01T00:00:00.000000Z"),
    ]
    item = await caller.get()
    assert item["labels"] == [{"key": "team", "value": "red"}, {"key": "env", "value": "test"}]
    assert (item["uid"], item["bento_repository_uid"], item["created_at"]) == ("i1", "r1", f"{TIME}Z")
    assert item["manifest"] == {"models": ["weights:m1"], "size_bytes": 7}
    assert [model["uid"] for model in item["models"]] == ["i2"]
    assert (item["repository"]["n_bentos"], item["repository"]["latest_bento"]["version"]) == (2, "v2")
    assert (await caller.ok("GET", "/bento_repositories/empty"))["n_bentos"] == 0
    assert (await caller.list(q="in:description ABOUT label:team=red"))["total"] == 1
    assert (await caller.create(version="v3"))["uid"]
    assert (await caller.registry.close()) is None
    await caller.registry.start()  # and not migrated again
    assert (await caller.list())["total"] == 3


def old_item(name: str, version: str, created_at: str, build_at: str = "2024-05-01T10:20:30Z") -> bytes:
    return json.dumps(
        {
            "uid": f"uid-of-{version}",
            "repository": name,
            "repository_uid": "r1",
            "version": version,
            "description": "about it",
            "manifest": {"models": ["weights:m1"]},
            "labels": [{"key": "team", "value": "red"}],
            "build_at": build_at,
            "upload_status": "success",
            "upload_started_at": None,
            "upload_finished_at": None,
            "upload_finished_reason": "",
            "created_at": created_at,
            "updated_at": created_at,
        }
    ).encode()


@s3_only
async def test_old_bucket_is_migrated(serve: Serve, storage: Storage, weed: Seaweed, caplog: pytest.LogCaptureFixture):
    places = storage("registry")
    prefix = str(places["bucket"]).partition("registries/")[2].partition(" ")[0]
    repository = {"uid": "r1", "name": "iris", "description": "d", "created_at": "2024-05-01T10:20:30Z"}
    objects = {
        "registry.json": b'{"format": 1}',
        "api_token": b"the-token-of-before",
        "repositories/bentos/iris.json": json.dumps(repository).encode(),
        "repositories/models/weights.json": json.dumps(repository | {"uid": "r2", "name": "weights"}).encode(),
        "items/models/weights/m1.json": old_item("weights", "m1", "2024-05-01T10:20:30Z"),
        "items/bentos/iris/v1.json": old_item("iris", "v1", "2024-05-01T10:20:30Z", "0001-01-01T00:00:00Z"),
        "items/bentos/iris/v2.json": old_item("iris", "v2", "2024-05-02T10:20:30Z"),
        "items/bentos/iris/": b"",  # a folder made by a file browser
        "items/bentos/iris/v3.json": b"{",
        "items/bentos/iris/v1.json.bak": b"{}",
        "items/bentos/lost/v1.json": old_item("lost", "v1", "2024-05-01T10:20:30Z"),
        "blobs/bentos/iris/v1.tar": b"bytes",
    }
    client = sync_client(weed)
    for key, body in objects.items():
        client.put_object(Bucket="registries", Key=f"{prefix}{key}", Body=body)
    client.close()

    caplog.set_level("INFO")
    caller = await serve()
    await caller.ok("GET", "/auth/current", token="the-token-of-before")
    assert [item["version"] for item in (await caller.list())["items"]] == ["v2", "v1"]
    item = await caller.get()
    assert (item["labels"], item["repository"]["n_bentos"]) == ([{"key": "team", "value": "red"}], 2)
    assert (item["build_at"], [model["version"] for model in item["models"]]) == ("1970-01-01T00:00:00.000000Z", ["m1"])
    assert item["repository"]["latest_bento"]["version"] == "v2"
    assert (await caller.download()).body == b"bytes"
    created = ["registry", "create", "token", "admin", ""]
    assert (await events(storage)).count(created) == 2  # of the bucket, and of this start
    await caller.registry.close()
    await caller.registry.start()
    assert (await caller.list())["total"] == 2
    assert re.search("copying the records of .* into the database", caplog.text)
    assert "items/bentos/iris/v3.json, which is no record" in caplog.text


async def test_writers_lock_from_the_start(tmp_path: Path):
    """A transaction that reads before it writes would fail where another process has written in between."""

    def write_elsewhere() -> None:
        with closing(sqlite3.connect(tmp_path / "records.sqlite3", timeout=0)) as other:
            other.execute("SELECT * FROM settings")  # readers do not wait
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")

    database = Database(sqlite_url(tmp_path / "records.sqlite3"))
    await database.open()
    async with database.writing() as connection:
        await connection.execute(settings.select())
        await asyncio.to_thread(write_elsewhere)
    await database.close()


def write_first_tables(connection: Connection) -> None:
    """Make the tables before those of tokens."""
    database_module._upgrade(connection, "0001")
    connection.exec_driver_sql("INSERT INTO settings VALUES ('api_token', 'the-token-of-before')")
    time = "'2024-05-01 10:20:30'"
    names = "uid, kind, name, description, folded_description, n_items, created_at, updated_at"
    values = f"'r1', 'bento', 'iris', '', '', 0, {time}, {time}"
    connection.exec_driver_sql(f"INSERT INTO repositories ({names}) VALUES ({values})")


@pytest.fixture
def first_tables(storage: Storage) -> None:
    places = storage("registry")
    places["root"].mkdir()
    url = parse_database_url(places.get("database") or f"sqlite:///{places['root']}/registry.sqlite3")

    engine = database_module._create_engine(url)

    async def write() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(write_first_tables)
        await engine.dispose()

    asyncio.run(write())


@records_only
@pytest.mark.usefixtures("first_tables")
async def test_migration_keeps_only_token(serve: Serve):
    caller = await serve()
    repository = await caller.ok("GET", "/bento_repositories/iris", token="the-token-of-before")
    assert repository["creator"]["name"] == "admin"
    await caller.ok("GET", "/auth/current", token=caller.registry.api_token)
    assert caller.registry.api_token != "the-token-of-before"
    running = caller.registry._running
    assert running is not None
    async with running.retention._database.reading() as connection:
        assert "the-token-of-before" not in str((await connection.exec_driver_sql("SELECT * FROM settings")).all())


def test_version_is_newest_migration():
    config = AlembicConfig()
    config.set_main_option("script_location", "async_bento.registry.records:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == VERSION


def keys(connection: Connection) -> dict[str, tuple[list[str], bool]]:
    """Return the primary key of each table, and whether a deleted one is never used again."""
    tables = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
    return {
        name: (inspect(connection).get_pk_constraint(name)["constrained_columns"], "AUTOINCREMENT" in sql)
        for name, sql in tables
        if name in metadata.tables
    }


async def test_migrations_match_metadata(tmp_path: Path):
    url = parse_database_url(f"sqlite:///{tmp_path}/records.sqlite3")
    await asyncio.to_thread(database_module._migrate, url)
    migrated, created = Database(url), Database(sqlite_url(tmp_path / "created.sqlite3"))

    def differences(connection: Connection) -> list[Any]:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    found = []
    for database in (migrated, created):
        await database.open()
        try:
            async with database.reading() as connection:
                assert await connection.run_sync(differences) == []
                found.append(await connection.run_sync(keys))
        finally:
            await database.close()
    assert found[0] == found[1]
    assert len(found[0]) == len(metadata.tables)


# Limits


DEEP: Any = {}
for _ in range(80):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"build_at": "0001-01-01 00:00:00.000000"}, "build_at: must not be before 1970"),
        ({"build_at": "٢٠٢٤-05-01 10:20:30.123456"}, "build_at: must look like"),
        ({"manifest": DEEP}, "manifest: must not be nested deeper than 64"),
        ({"manifest": {"x": "y" * 2**20}}, "manifest: must not be larger than"),
        ({"description": "x" * (3 * 2**20 + 1)}, "description"),
        ({"description": "a\0b"}, "description: must not contain a NUL"),
        ({"labels": [{"key": "k" * 2000, "value": ""}]}, "labels: must not have a key or value longer"),
        ({"labels": [{"key": str(number), "value": ""} for number in range(300)]}, "labels"),
    ],
)
async def test_record_limits_return_400(caller: Caller, fields: dict[str, Any], words: str):
    await caller.create()
    body = {"version": "v2", "description": "", "manifest": {}, "build_at": BUILD_AT, "labels": []} | fields
    response = await caller.api("POST", caller.items(), data=io.BytesIO(json.dumps(body).encode()))
    assert response.status == 400
    assert words in response.json["error"]
    assert (await caller.list())["total"] == 1


def test_values_at_limits_are_accepted():
    deepest: Any = 1
    for _ in range(64):
        deepest = {"deeper": deepest}
    largest = {"x": "y" * (2**20 - len(json.dumps({"x": ""})))}
    for manifest in (deepest, largest):
        labels = [{"key": "k" * 1024, "value": "v" * 1024}]
        body = {"version": "v1", "build_at": "1970-01-01 00:00:00.000000", "manifest": manifest, "labels": labels}
        assert parse_request(CreateRequest, json.dumps(body).encode()).manifest == manifest
    for manifest, problem in (({"deeper": deepest}, "nested deeper"), (largest | {"z": 1}, "larger than")):
        with pytest.raises(BadRequestError, match=problem):
            parse_request(UpdateRequest, json.dumps({"manifest": manifest}).encode())


def test_unknown_parts_have_no_checksums():
    assert checksums(Content(5, '"opaque"')) is None
    assert checksums(Content(5, '"0"', (Part(5, "0"),))) == {"size": 5, "etag": '"0"', "parts": [[5, "0"]]}


async def test_repository_description_is_limited(caller: Caller):
    body = {"name": "iris", "description": "x" * 256 * 1024}
    await caller.ok("POST", f"/{caller.words.repositories}", json=body)
    body = {"description": body["description"] + "x"}
    response = await caller.api("PATCH", f"/{caller.words.repositories}/iris", json=body)
    assert (response.status, "description" in response.json["error"]) == (400, True)


async def test_infinity_returns_400(caller: Caller):
    await caller.create()
    response = await caller.api("PATCH", f"{caller.items()}/v1", data=b'{"manifest": {"x": 1e999}}')
    assert (response.status, "1.7e308" in response.json["error"]) == (400, True)


@pytest.mark.parametrize(
    "query",
    [{"q": "x" * 1001}, {"search": "x" * 1001}, {"q": " ".join("abcdefghij" * 6)}],
    ids=["q", "search", "terms"],
)
async def test_long_query_returns_400(caller: Caller, query: dict[str, str]):
    response = await caller.api("GET", "/bentos", params=query)
    assert (response.status, "Use at most" in response.json["error"]) == (400, True)


@disk_only
async def test_paging_splits_long_repositories(caller: Caller):
    for number in range(10):
        await caller.create(f"r{number}", description="x" * 1_000_000)
    path = f"/{caller.words.repositories}"
    page = await caller.list(path)
    assert ([each["name"] for each in page["items"]], page["total"]) == ([f"r{9 - number}" for number in range(8)], 10)
    rest = await caller.list(path, start=8)
    assert [each["name"] for each in rest["items"]] == ["r1", "r0"]


@disk_only
async def test_paging_splits_long_records(caller: Caller):
    manifest = {"x": "y" * 1_000_000}
    for number in range(10):
        await caller.create(version=f"v{number}", manifest=manifest)
    page = await caller.list()
    assert (len(page["items"]), page["total"]) == (8, 10)
    rest = await caller.list(start=8)
    assert len(rest["items"]) == 2


@disk_only
async def test_paging_bounds_page_size(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.registry.records.query.MAX_PAGE", 3)
    for number in range(5):
        await caller.create(version=f"v{number}")
    assert len((await caller.list())["items"]) == 3
    assert len((await caller.list(count=4))["items"]) == 3
    assert len((await caller.list(count=2))["items"]) == 2


def test_page_has_one_long_record_at_least():
    assert _fitting([("a", 4 * MiB), ("b", 4 * MiB), ("c", 1)]) == ["a", "b"]
    assert _fitting([("a", 9 * MiB), ("b", 1)]) == ["a"]


async def test_bento_models_are_bounded(caller: Caller):
    models = caller.about(MODELS)
    await models.create("weights", "m1")
    tags = [
        "weights:m1",
        "weights:m1",
        "../../x:v1",
        "no-version",
        7,
        *(f"weights:x{number}" for number in range(2000)),
    ]
    await caller.create(manifest={"models": tags})
    assert [model["version"] for model in (await caller.get())["models"]] == ["m1"]
    await caller.ok("PATCH", f"{caller.items()}/v1", json={"description": "about it"})
    assert [model["version"] for model in (await caller.get())["models"]] == ["m1"]


async def test_list_omits_latest_item(caller: Caller):
    await caller.create(manifest={"x": "y" * 1000})
    (item,) = (await caller.list())["items"]
    assert (item["manifest"], item["repository"]["latest_bento"]) == ({"x": "y" * 1000}, None)
    assert (await caller.get())["repository"]["latest_bento"]["manifest"] == {"x": "y" * 1000}


# A locked or unreachable database


@disk_only
async def test_locked_database_returns_503(caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    await caller.create()
    await caller.registry.close()
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT", 0.2)
    await caller.registry.start()
    with closing(sqlite3.connect(tmp_path / "registry" / "registry.sqlite3")) as connection:
        connection.execute("BEGIN IMMEDIATE")
        writes = [caller.api("PATCH", f"{caller.items()}/v1", json={"description": "x"}) for _ in range(2)]
        first, second, read = await asyncio.gather(*writes, caller.api("GET", f"{caller.items()}/v1"))
        connection.rollback()
    assert read.status == 200
    for response in (first, second):
        assert (response.status, response.headers["Retry-After"]) == (503, "2")
        assert "locked" in response.json["error"]
    assert (await caller.api("PATCH", f"{caller.items()}/v1", json={"description": "x"})).status == 200


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (OSError("connection refused."), "connection refused. Check its URL."),
        (asyncio.TimeoutError(), "TimeoutError. Check its URL."),
        (
            DatabaseError("SELECT 1", None, Exception("file is not a database")),
            "file is not a database. Restore it from a backup.",
        ),
    ],
)
async def test_unopenable_database_has_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, shown: str
):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(database_module, "_create_engine", fail)
    database = Database(sqlite_url(tmp_path / "records.sqlite3"))
    with pytest.raises(ConfigError) as caught:
        await database.open()
    assert str(caught.value) == f"cannot open the database {database}: {shown}"


async def test_database_opened_twice_is_created_once(tmp_path: Path):
    opened = [Database(sqlite_url(tmp_path / "records.sqlite3")) for _ in range(3)]
    results = await asyncio.gather(*(database.open() for database in opened), return_exceptions=True)
    for database in opened:
        await database.close()
    assert results == [None, None, None]


async def test_exhausted_connections_return_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT", 0.01)
    monkeypatch.setitem(database_module._CONNECTIONS, "sqlite", 1)
    database = Database(sqlite_url(tmp_path / "records.sqlite3"))
    await database.open()
    async with database.reading():
        with pytest.raises(StorageError, match="the registry's database cannot be reached") as caught:
            async with database.reading():
                pytest.fail("there is one connection")
    assert caught.value.status == 503
    await database.close()


async def test_shared_id_of_faster_copy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    database = Database(parse_database_url(f"sqlite:///{tmp_path / 'records.sqlite3'}"))
    await database.open()
    writing = Database.writing

    @asynccontextmanager
    async def writing_later(self: Database) -> AsyncIterator[AsyncConnection]:
        async with writing(self) as other_copy:
            await other_copy.execute(settings.insert().values(name="n", value="of the other copy"))
        async with writing(self) as connection:
            yield connection

    monkeypatch.setattr(Database, "writing", writing_later)
    assert await shared_id(database, "n") == "of the other copy"
    await database.close()


async def test_database_error_hides_parameters(tmp_path: Path):
    database = Database(parse_database_url(f"sqlite:///{tmp_path / 'records.sqlite3'}"))
    await database.open()
    row = settings.insert().values({"name": "n", "value": "the secret"})
    async with database.writing() as connection:
        await connection.execute(row)
    with pytest.raises(IntegrityError, match="settings") as caught:
        async with database.writing() as connection:
            await connection.execute(row)
    assert "the secret" not in str(caught.value)
    await database.close()


def test_newer_database_hides_password(monkeypatch: pytest.MonkeyPatch):
    async def migrate(_engine: object) -> None:
        raise CommandError("no such revision")

    monkeypatch.setattr(database_module, "_create_engine", lambda url: None)
    monkeypatch.setattr(database_module, "_migrate_on", migrate)
    with pytest.raises(ConfigError, match=r"//bento:\*\*\*@db\.example/bentos: a newer async-bento wrote it"):
        database_module._migrate(parse_database_url("postgresql://bento:5ecret@db.example/bentos"))


def test_database_url_hides_password():
    database = Database(parse_database_url("postgresql://bento:5ecret@db.example/bentos"))
    assert str(database) == "postgresql+asyncpg://bento:***@db.example/bentos"
    url = "postgresql://bento:5ecret@db.example/bentos"
    assert "5ecret" not in repr(LocalRegistry("/srv/x", database=url))
    assert "5ecret" not in repr(Backend(None, url, None, 1, 1))

"""Several copies of the registry, on one PostgreSQL database and one bucket."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import DBAPIError

from async_bento.registry.item_types import BENTO
from async_bento.registry.records import sql
from async_bento.registry.records.tables import repositories
from async_bento.registry.server import LocalRegistry
from tests.builders import MiB, contents, make_bento
from tests.platforms import KILLED
from tests.registry.conftest import BENTOS, BUCKET, BUILD_AT, Caller, clean_up, copies_only
from tests.registry.test_s3 import FILES, make_api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.registry.conftest import Serve, Storage, Stored
    from tests.registry.seaweed import Seaweed

pytestmark = copies_only

PART = os.urandom(5 * MiB)

CHILD = """
import asyncio, sys
from async_bento.registry import LocalRegistry, S3Bucket

async def main():
    bucket = S3Bucket(sys.argv[2], endpoint=sys.argv[3], prefix=sys.argv[4])
    async with LocalRegistry(database=sys.argv[1], bucket=bucket, token_file=sys.argv[5]) as registry:
        print(registry.endpoint, registry.api_token, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass
class _Served:
    endpoint: str
    api_token: str


@dataclass
class Child:
    """A copy of the registry in a separate process, and its caller."""

    process: asyncio.subprocess.Process
    caller: Caller

    async def kill(self) -> None:
        self.process.kill()
        assert await self.process.wait() == KILLED


@pytest.fixture
async def copies(serve: Serve) -> tuple[Caller, Caller]:
    """Two copies of the registry on one database and bucket."""
    return await serve(), await serve()


async def test_copies_share_token(copies: tuple[Caller, Caller]):
    one, other = copies
    assert one.registry.api_token == other.registry.api_token
    assert one.registry.endpoint != other.registry.endpoint


async def test_start_race_makes_one_token(storage: Storage):
    places = storage("new")
    registries = [LocalRegistry(**places) for _ in range(4)]
    await asyncio.gather(*(registry.start() for registry in registries))
    tokens = {registry.api_token for registry in registries}
    await asyncio.gather(*(registry.close() for registry in registries))
    assert len(tokens) == 1


async def test_repository_race_has_winner(copies: tuple[Caller, Caller]):
    for name in ("iris", "rose", "oak"):
        body = {"name": name, "description": ""}
        responses = await asyncio.gather(*(copy.api("POST", "/bento_repositories", json=body) for copy in copies))
        won, lost = sorted(responses, key=lambda response: response.status)
        assert (won.status, lost.status) == (200, 400)
        assert lost.json == {"error": f"create bento_repository {name}: duplicate key value violates unique constraint"}
        uids = {(await copy.ok("GET", f"/bento_repositories/{name}"))["uid"] for copy in copies}
        assert uids == {won.json["uid"]}


async def test_item_race_has_winner(copies: tuple[Caller, Caller]):
    await copies[0].create(version="v0")
    for version in ("v1", "v2", "v3"):
        bodies = [
            {"version": version, "build_at": "2024-05-01 10:20:30.123456", "description": description}
            for description in ("mine", "yours")
        ]
        responses = await asyncio.gather(
            *(copy.api("POST", copy.items(), json=body) for copy, body in zip(copies, bodies, strict=True))
        )
        won, lost = sorted(responses, key=lambda response: response.status)
        assert (won.status, lost.status) == (200, 400)
        assert lost.json == {"error": f"create bento iris:{version}: duplicate key value violates unique constraint"}
        assert {(await copy.get(version=version))["description"] for copy in copies} == {won.json["description"]}


async def test_update_race_loses_nothing(copies: tuple[Caller, Caller]):
    one, other = copies
    await one.create()
    changes: list[dict[str, Any]] = [
        {"description": "read me"},
        {"manifest": {"size_bytes": 7}},
        {"labels": [{"key": "k", "value": "v"}]},
    ]
    path = f"{one.items()}/v1"
    await asyncio.gather(
        one.ok("PATCH", path, json=changes[0]),
        other.ok("PATCH", path, json=changes[1]),
        other.ok("PATCH", path, json=changes[2]),
        one.ok("PATCH", f"{path}/start_upload"),
    )
    for copy in copies:
        item = await copy.get()
        assert {name: item[name] for change in changes for name in change} == changes[0] | changes[1] | changes[2]
        assert item["upload_status"] == "uploading"


async def test_writes_are_visible_at_once(copies: tuple[Caller, Caller]):
    one, other = copies
    for number in range(4):
        version = f"v{number}"
        await one.create(version=version)
        assert (await other.list())["items"][0]["version"] == version
        for status in ("failed", "success"):
            body = {"status": status, "reason": ""}
            await one.ok("PATCH", f"{one.items()}/{version}/finish_upload", json=body)
            assert (await other.list())["items"][0]["upload_status"] == status
            assert (await other.get(version=version))["upload_status"] == status
        assert (await other.ok("GET", "/bento_repositories/iris"))["latest_bento"]["version"] == version
        assert (await other.ok("GET", "/bento_repositories/iris"))["n_bentos"] == number + 1


async def test_upload_parts_span_copies(copies: tuple[Caller, Caller]):
    one, other = copies
    await one.create()
    upload_id = await one.start_multipart()
    etags = [(1, await one.put_part(upload_id, 1, PART)), (2, await other.put_part(upload_id, 2, b"end"))]
    assert (await other.complete(upload_id, etags)).status == 200
    assert (await one.download()).body == PART + b"end"
    assert (await one.complete(upload_id, etags)).status == 200  # the first response may have been lost


@pytest.fixture
async def child(weed: Seaweed, storage: Storage) -> AsyncIterator[Child]:
    """Run a copy of the registry in a separate process."""
    places = storage("registry")
    prefix = str(places["bucket"]).partition(f"{BUCKET}/")[2].partition(" ")[0]
    arguments = (places["database"], BUCKET, weed.endpoint, prefix, str(places["token_file"]))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        endpoint, token = (await process.stdout.readline()).decode().split()
        async with aiohttp.ClientSession() as session:
            yield Child(process, Caller(_Served(endpoint, token), session, BENTOS))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_killed_copy_loses_nothing(serve: Serve, child: Child):
    there = child.caller
    await there.create()
    await there.upload(b"bytes")
    await there.create(version="v2")
    upload_id = await there.start_multipart("v2")
    etag = await there.put_part(upload_id, 1, b"one", "v2")
    await child.kill()
    caller = await serve()
    assert caller.registry.api_token == there.registry.api_token
    assert (await caller.get())["upload_status"] == "success"
    assert (await caller.download()).body == b"bytes"
    assert (await caller.complete(upload_id, [(1, etag)], "v2")).status == 200


VERSIONS = [f"v{number}" for number in range(4)]


@dataclass
class Storm:
    """Creates, uploads and deletes the same few versions through several copies, and counts the responses."""

    sent: dict[str, set[bytes]] = field(default_factory=lambda: {version: set() for version in VERSIONS})
    created: Counter[str] = field(default_factory=Counter)
    deleted: Counter[str] = field(default_factory=Counter)

    async def rage(self, copy: Caller, seed: int) -> None:
        choose = random.Random(seed)
        with suppress(aiohttp.ClientError):  # once the copy is killed
            for number in range(25):
                version = choose.choice(VERSIONS)
                new = {"version": version, "description": "", "manifest": {}, "build_at": BUILD_AT, "labels": []}
                created = await copy.api("POST", copy.items(), json=new)
                self.created[version] += created.status == 200
                if choose.random() < 0.2:
                    deleted = await copy.api("DELETE", f"{copy.items()}/{version}")
                    self.deleted[version] += deleted.status == 200
                    continue
                body = f"{seed} {number} {version} ".encode() * choose.choice((1, 100_000))
                self.sent[version].add(body)
                await (copy.upload if choose.random() < 0.5 else partial(self.upload_in_parts, copy))(body, version)

    async def upload_in_parts(self, copy: Caller, body: bytes, version: str) -> None:
        with suppress(AssertionError):  # deleted meanwhile
            upload_id = await copy.start_multipart(version)
            etag = await copy.put_part(upload_id, 1, body, version)
            await copy.complete(upload_id, [(1, etag)], version)
            await copy.finish(version)


async def test_kill_in_race_loses_nothing(serve: Serve, child: Child, stored_files: Stored):
    here, there = await serve(), child.caller
    await here.ok("POST", "/bento_repositories", json={"name": "iris", "description": ""})
    storm = Storm()
    raging = [asyncio.create_task(storm.rage(copy, seed)) for seed, copy in enumerate((here, there) * 3)]
    await asyncio.sleep(1.5)
    await child.kill()
    await asyncio.gather(*raging)

    items = (await here.list(here.items()))["items"]
    alive = Counter(item["version"] for item in items)
    assert (await here.ok("GET", "/bento_repositories/iris"))["n_bentos"] == len(items) == len(alive)
    for version in VERSIONS:  # the killed copy owes one answer to each of three callers
        assert abs(storm.created[version] - storm.deleted[version] - alive[version]) <= 3, version
    n_stored = 0
    for version, status in [(item["version"], item["upload_status"]) for item in items]:
        found = await here.download(version)
        assert found.status == 200 or status != "success", version
        if found.status == 200:
            n_stored += 1
            assert found.body in storm.sent[version]
            checksums = (await here.get(version=version))["checksums"]
            assert checksums["parts"] == [[len(found.body), hashlib.md5(found.body).hexdigest()]]
    assert n_stored
    await clean_up(here, hours=26)
    assert len(stored_files()) == sum([(await here.download(version)).status == 200 for version in alive])


async def test_cancelled_push_resumes(serve: Serve, home: Path, tmp_path: Path):
    one = await serve()
    bento = make_bento(home, files=FILES)
    halfway = asyncio.Event()
    async with make_api(one, home, progress=lambda event: event.bytes_done > 6 * MiB and halfway.set()) as api:
        pushing = asyncio.create_task(api.push("svc:v1", threads=1))
        await halfway.wait()
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)
    port = urlsplit(one.registry.endpoint).port
    await one.registry.close()
    other = await serve(port=port)  # as behind one address
    async with make_api(other, home) as api:
        result = await api.push("svc:v1")
    assert result.resumed
    assert result.bytes_sent < 8 * MiB
    async with make_api(other, tmp_path / "there") as there:
        assert contents((await there.pull("svc:v1")).path) == contents(bento)


async def test_creations_share_repository(caller: Caller):
    """Items are created and the repository is changed at a time, but it is not deleted meanwhile."""
    await caller.create()
    running = caller.registry._running
    assert running is not None
    engine = running.retention._database._opened
    of_iris = repositories.c.name == "iris"

    async with engine.begin() as first, engine.begin() as second:
        await second.execute(text("SET LOCAL lock_timeout = 1000"))
        kept = await sql._find_repository(first, BENTO, "iris", keep=True)
        assert await sql._find_repository(second, BENTO, "iris", keep=True) == kept
        await second.execute(update(repositories).where(of_iris).values(description="new"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await second.execute(delete(repositories).where(of_iris))

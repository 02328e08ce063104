"""Pushes and pulls with a bucket of moto, of rclone's `serve s3` and of s3rver."""

from __future__ import annotations

import asyncio
import io
import uuid
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_bento import AsyncBentoAPI, BentoStore, Config, ModelStore, NotFoundError
from async_bento.errors import ConfigError
from async_bento.registry.blobs.base import CompletedPart
from async_bento.registry.loading import load_backend
from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.server import LocalRegistry
from tests.builders import KiB, MiB, contents, make_bento, make_model, random_bytes
from tests.registry import s3_stores
from tests.registry.s3_probe import probe
from tests.registry.storage_page import read_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from async_bento import ProgressEvent
    from tests.registry.s3_stores import Store

pytestmark = pytest.mark.stores

WEIGHTS = random_bytes(11 * MiB, 1)
"""The size of three parts, the last of them short."""

Start = "Callable[..., Awaitable[LocalRegistry]]"


@pytest.fixture(scope="module", params=s3_stores.NAMES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each running store in turn."""
    with s3_stores.running(request.param, tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def bucket(store: Store, credentials: None, monkeypatch: pytest.MonkeyPatch) -> S3Bucket:
    """A unique prefix in the bucket of the store."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_stores.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_stores.KEY)
    return S3Bucket(s3_stores.BUCKET, endpoint=store.endpoint, prefix=uuid.uuid4().hex)


@pytest.fixture(params=["presigned_url", "auto", "proxy"])
def transmission(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
async def registry(bucket: S3Bucket, tmp_path: Path, transmission: str) -> AsyncIterator[LocalRegistry]:
    async with LocalRegistry(tmp_path / "registry", bucket=bucket, transmission=transmission) as running:
        yield running


def client(registry: LocalRegistry, home: Path, **options: Any) -> AsyncBentoAPI:
    """Create a client whose parts and ranges are small, so that there are several."""
    return AsyncBentoAPI(
        endpoint=registry.endpoint,
        api_token=registry.api_token,
        bento_store=BentoStore(home / "bentos"),
        model_store=ModelStore(home / "models"),
        config=Config(transfer={"part_size": 5 * MiB, "range_size": 512 * KiB, "window": 2 * MiB}),
        **({"progress": False} | options),
    )


presigned_only = pytest.mark.parametrize("transmission", ["presigned_url"], indirect=True)


async def test_store_matches_its_row(store: Store, bucket: S3Bucket):
    row = read_table()[store.name]
    assert await probe(store.endpoint, s3_stores.BUCKET) == {name: row[name] for name in row if name != "tried"}


async def test_push_pull_force_and_delete(registry: LocalRegistry, transmission: str, home: Path, tmp_path: Path):
    bento = make_bento(home, files={"src/service.py": b"pass\n", "weights": WEIGHTS}, models=["mod:m1"])
    model = make_model(home, files={"weights": random_bytes(MiB, 2), "empty": b""})
    async with client(registry, home) as api:
        pushed = await api.push("svc:v1")
        parts = 3 if transmission == "presigned_url" else 1
        assert (pushed.parts, [each.parts for each in pushed.models]) == (parts, [1])
        assert (await api.push("svc:v1")).skipped
        assert [str(each.tag) for each in await api.list()] == ["svc:v1"]
        assert [str(each.tag) for each in await api.models.list()] == ["mod:m1"]
    async with client(registry, tmp_path / "second") as api:
        pulled = await api.pull("svc:v1", with_models=True)
        assert contents(pulled.path) == contents(bento)
        assert contents(tmp_path / "second" / "models" / "mod" / "m1") == contents(model)

    (bento / "weights").write_bytes(random_bytes(6 * MiB, 3))
    async with client(registry, home) as api:
        await api.push("svc:v1", force=True)
    async with client(registry, tmp_path / "third") as api:
        assert contents((await api.pull("svc:v1")).path) == contents(bento)
        await api.delete("svc:v1")
        await api.models.delete("mod:m1")
        assert not await api.exists("svc:v1")
        with pytest.raises(NotFoundError):
            await api.pull("svc:v1", force=True)


async def interrupt(
    transfer: Callable[[AsyncBentoAPI], Awaitable[object]], registry: LocalRegistry, home: Path
) -> None:
    """Cancel a transfer once three quarters of its bytes are transferred."""
    is_late = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.bytes_total and event.bytes_done > event.bytes_total * 3 / 4:
            is_late.set()

    async with client(registry, home, progress=listen) as api:
        running = asyncio.ensure_future(transfer(api))
        await is_late.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


@presigned_only
async def test_cancelled_transfers_resume(registry: LocalRegistry, store: Store, home: Path, tmp_path: Path):
    model = make_model(home, files={f"weights/{number}": random_bytes(MiB, number) for number in range(21)})
    await interrupt(lambda api: api.models.push("mod:m1", threads=1), registry, home)
    async with client(registry, home) as api:
        pushed = await api.models.push("mod:m1")
    assert pushed.resumed
    assert 0 < pushed.parts < 5

    second = tmp_path / "second"
    await interrupt(lambda api: api.models.pull("mod:m1"), registry, second)
    events: list[ProgressEvent] = []
    async with client(registry, second, progress=events.append) as api:
        assert contents((await api.models.pull("mod:m1")).path) == contents(model)
    # s3rver does not report the parts; a tar with one part below 128 MiB restarts.
    assert (events[-1].bytes_resumed > 0) == (store.name != "s3rver")


async def test_upload_completes_twice(bucket: S3Bucket, tmp_path: Path):
    # The records of a registry answer a repeated request; here, the response of the bucket was lost.
    backend = await load_backend(root=tmp_path, database=None, bucket=bucket)
    async with backend.open(url_expiry=60) as opened, aiohttp.ClientSession() as session:
        key, bodies = "bentos/iris/v1/id", [random_bytes(5 * MiB), b"end"]
        upload_id = await opened.blobs.start_multipart(key)
        parts = []
        for number, body in enumerate(bodies, 1):
            url = await opened.blobs.presign_part(key, upload_id, number)
            async with session.put(url, data=io.BytesIO(body), skip_auto_headers=["Content-Type"]) as response:
                parts.append(CompletedPart(number, response.headers["ETag"]))
        first, second = [await opened.blobs.complete_multipart(key, upload_id, parts) for _ in range(2)]
        assert (first.size, first.etag) == (second.size, second.etag)
        assert await opened.blobs.find_damage(key, first) is None
        async with opened.blobs.open(key, first) as blob:
            assert b"".join([chunk async for chunk in blob.read(0, blob.size)]) == b"".join(bodies)


async def test_restart_serves_bytes(bucket: S3Bucket, home: Path, tmp_path: Path):
    bento = make_bento(home, files={"weights": WEIGHTS})
    async with LocalRegistry(tmp_path / "registry", bucket=bucket) as registry, client(registry, home) as api:
        await api.push("svc:v1")
    second = tmp_path / "second"
    async with LocalRegistry(tmp_path / "registry", bucket=bucket) as registry, client(registry, second) as api:
        assert contents((await api.pull("svc:v1")).path) == contents(bento)


async def test_unknown_bucket_raises(store: Store, bucket: S3Bucket, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot use s3://no-such-bucket/ at .*NoSuchBucket"):
        await LocalRegistry(tmp_path, bucket=S3Bucket("no-such-bucket", endpoint=store.endpoint)).start()

"""The registry on a bucket: SigV4, abandoned uploads, and transfers that bypass the registry."""

from __future__ import annotations

import asyncio
import os
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import aiohttp
import pytest

from async_bento import AsyncBentoAPI, BentoStore, Config, ModelStore, VerifyResult
from async_bento.registry.errors import StorageError
from async_bento.registry.loading import load_backend
from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.server import LocalRegistry
from tests.builders import MiB, contents, make_bento, random_bytes
from tests.eventually import eventually
from tests.registry.conftest import BENTOS, BUCKET, Caller, clean_up, s3_only, sync_client
from tests.registry.s3_probe import probe
from tests.registry.storage_page import read_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.registry.conftest import Serve, Storage, Stored
    from tests.registry.seaweed import Seaweed


pytestmark = s3_only

PART = os.urandom(5 * MiB)


async def test_prefix_separates_registries(serve: Serve):
    one, other = await serve("one"), await serve("one-more")
    await one.create()
    await one.upload(b"bytes")
    assert (await other.list())["total"] == 0
    await other.create()
    assert (await other.download()).status == 404


async def test_seaweedfs_matches_its_row(weed: Seaweed, credentials: None, storage: Storage):
    row = read_table()["SeaweedFS"]
    assert await probe(weed.endpoint, BUCKET) == {name: row[name] for name in row if name != "tried"}


# Presigned URLs


def changed(url: str, **query: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | query)).geturl()


async def test_changed_url_is_denied(caller: Caller):
    await caller.create()
    await caller.create(version="v2")
    for version in ("v1", "v2"):
        await caller.upload(b"bytes", version)
    upload_id = await caller.start_multipart()
    get, put, part = await caller.get_url(), await caller.put_url(), await caller.part_url(upload_id, 1)
    key, other = (urlsplit(url).path for url in (get, await caller.get_url("v2")))
    assert (await caller.bare("GET", changed(get))).status == 200
    for method, url in (
        ("GET", get.replace(key, other)),
        ("GET", changed(get, **{"X-Amz-Expires": "99999"})),
        ("GET", changed(get, **{"X-Amz-Signature": "0" * 64})),
        ("GET", get.partition("?")[0]),
        ("PUT", get),
        ("PUT", put.replace(urlsplit(put).path, other)),
        ("PUT", changed(part, partNumber="2")),
        ("PUT", changed(part, uploadId="0" * 32)),
        ("PUT", changed(put, uploadId=upload_id, partNumber="1")),
    ):
        response = await caller.bare(method, url, data=b"x" if method == "PUT" else None)
        assert response.status == 403, (method, url)
    assert (await caller.download("v2")).body == b"bytes"


async def test_upload_of_any_content_type(caller: Caller):
    await caller.create()
    for content_type in (None, "application/octet-stream", "application/x-tar"):
        headers = {"Content-Type": content_type} if content_type else {}
        response = await caller.bare(
            "PUT", await caller.put_url(), data=b"bytes", headers=headers, skip_auto_headers=["Content-Type"]
        )
        assert response.status == 200, content_type


async def test_url_is_sigv4_for_one_hour(caller: Caller):
    await caller.create()
    await caller.upload(b"bytes")
    part = await caller.part_url(await caller.start_multipart(), 1)
    for url in (await caller.get_url(), await caller.put_url(), part):
        query = dict(parse_qsl(urlsplit(url).query))
        assert query["X-Amz-Algorithm"] == "AWS4-HMAC-SHA256"
        assert query["X-Amz-Expires"] == "3600"
        assert query["X-Amz-SignedHeaders"] == "host"


async def test_presigned_url_expires(serve: Serve):
    caller = await serve(url_expiry=2)
    await caller.create()
    put = await caller.put_url()
    assert (await caller.bare("PUT", put, data=b"bytes")).status == 200
    await caller.finish()
    get = await caller.get_url()
    await asyncio.sleep(3)
    assert (await caller.bare("GET", get)).status == 403
    assert (await caller.bare("PUT", put, data=b"x")).status == 403
    assert (await caller.download()).body == b"bytes"


async def test_url_uses_public_endpoint(weed: Seaweed, storage: Storage, tmp_path: Path):
    storage("registry")
    public = S3Bucket(BUCKET, endpoint=weed.endpoint, public_endpoint="https://s3.example", prefix="public")
    async with LocalRegistry(tmp_path, bucket=public) as registry, aiohttp.ClientSession() as session:
        caller = Caller(registry, session, BENTOS)
        await caller.create()
        assert (await caller.put_url()).startswith(f"https://s3.example/{BUCKET}/public/blobs/bentos/iris/v1/")


# Abandoned and interrupted uploads


async def test_idle_upload_is_aborted(caller: Caller, serve: Serve, stored_files: Stored, weed: Seaweed):
    await caller.create()
    idle, busy = await caller.start_multipart(), await caller.start_multipart()
    await caller.put_part(idle, 1, PART)
    client = sync_client(weed)
    unrecorded = urlsplit(await caller.put_url()).path.removeprefix(f"/{BUCKET}/")
    client.create_multipart_upload(Bucket=BUCKET, Key=unrecorded)
    client.close()
    elsewhere = await serve("elsewhere")
    await elsewhere.create()
    foreign = await elsewhere.start_multipart()
    await asyncio.sleep(6)
    etag = await caller.put_part(busy, 1, PART)
    fresh = await caller.start_multipart()
    await clean_up(caller, hours=24 - 3 / 3600)  # of what is older than three seconds
    assert {*stored_files()} == {f"upload {busy}", f"upload {fresh}"}
    assert (await caller.complete(busy, [(1, etag)])).status == 200
    late = await elsewhere.put_part(foreign, 1, b"all")  # of another registry, which sweeps for itself
    assert (await elsewhere.complete(foreign, [(1, late)])).status == 200


async def test_broken_upload_is_aborted(caller: Caller, stored_files: Stored):
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MiB)
        raise OSError("no more")

    await caller.create()
    with pytest.raises((OSError, aiohttp.ClientError)):
        await caller.upload(body())

    async def failed() -> bool:
        return (await caller.get())["upload_status"] == "failed"

    await eventually(failed)
    assert stored_files() == []


# Transfers


async def test_upload_stores_any_size(caller: Caller):
    for size in (0, 8 * MiB - 1, 8 * MiB, 8 * MiB + 1, 16 * MiB, 33 * MiB):
        data = random_bytes(size, size)

        async def chunks(data: bytes = data) -> AsyncIterator[bytes]:
            for start in range(0, len(data), 3 * MiB):
                yield data[start : start + 3 * MiB]

        for known in (True, False):
            version = f"v{size}-{int(known)}"
            await caller.create(version=version)
            assert (await caller.upload(data if known else chunks(), version)).status == 200, version
            assert (await caller.download(version)).body == data, version


async def test_large_upload_bounds_memory(caller: Caller):
    size, block = 96 * MiB, os.urandom(2**16)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // len(block)):
            yield block

    await caller.create()
    tracemalloc.start()
    try:
        response = await caller.upload(body(), headers={"Content-Length": str(size)})
        read = 0
        url = f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/download"
        token = {"X-YATAI-API-TOKEN": caller.registry.api_token}
        async with caller.session.get(url, headers=token) as stream:
            async for chunk in stream.content.iter_any():
                read += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (response.status, read) == (200, size)
    assert peak < 48 * MiB


@pytest.mark.parametrize(("size", "announced"), [(5, 4), (5, 6), (9 * MiB, 8 * MiB), (9 * MiB, 10 * MiB)])
async def test_upload_of_wrong_size_fails(storage: Storage, stored_files: Stored, size: int, announced: int):
    # aiohttp rejects such a body, but the storage does not rely on that.
    async def body() -> AsyncIterator[bytes]:
        yield bytes(size)

    backend = await load_backend(database=None, **storage("registry"))
    async with backend.open(url_expiry=60) as opened:
        with pytest.raises(StorageError, match=f"{size} bytes received of {announced}"):
            await opened.blobs.put("bentos/iris/v1/id", body(), announced)
    assert stored_files() == []


FILES = {"src/weights": random_bytes(12 * MiB), "src/service.py": b"pass\n", "empty": b""}


def make_api(caller: Caller, at: Path, **options: Any) -> AsyncBentoAPI:
    return AsyncBentoAPI(
        endpoint=caller.registry.endpoint,
        api_token=caller.registry.api_token,
        bento_store=BentoStore(at / "bentos"),
        model_store=ModelStore(at / "models"),
        config=Config.model_validate({"transfer": {"part_size": 5 * MiB, "range_size": MiB}}),
        **({"progress": False} | options),
    )


@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_push_and_pull_round_trip(serve: Serve, home: Path, tmp_path: Path, transmission: str):
    caller = await serve(transmission=transmission)
    bento = make_bento(home, files=FILES)
    async with make_api(caller, home) as api, make_api(caller, tmp_path / "there") as there:
        result = await api.push("svc:v1")
        assert result.parts == (3 if transmission == "presigned_url" else 1)
        pulled = await there.pull("svc")
        assert contents(pulled.path) == contents(bento)
        assert (await api.push("svc:v1")).skipped
        assert not (await api.push("svc:v1", force=True)).skipped


async def test_remote_files_by_strategy(serve: Serve, home: Path, tmp_path: Path):
    """A pull by ranges from the bucket, even if other transfers use the registry."""
    make_bento(home, files=FILES)
    for transmission in ("presigned_url", "auto", "proxy"):
        caller, place = await serve(transmission, transmission=transmission), tmp_path / f"{transmission}-files"
        async with make_api(caller, home) as api:
            await api.push("svc:v1")
            files = api.files("svc")
            listed = {entry.path: entry.size for entry in await files.list() if entry.type == "file"}
            assert listed.pop("bento.yaml")
            assert listed == {path: len(content) for path, content in FILES.items()}
            for path, content in FILES.items():
                assert await api.files("svc:v1").read(path) == content
            async with files.open("src/weights") as file:
                file.seek(11 * MiB)
                assert await file.read(1000) == FILES["src/weights"][11 * MiB : 11 * MiB + 1000]
            await files.extract("src/", place, exclude="*.py")
        assert contents(place) == {"src": None, "src/weights": FILES["src/weights"]}

        address = {
            "BENTO_CLOUD_API_ENDPOINT": caller.registry.endpoint,
            "BENTO_CLOUD_API_KEY": caller.registry.api_token,
        }
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "async_bento", *arguments),
                env=os.environ | address,
                stdout=asyncio.subprocess.PIPE,
            )
            for arguments in (("ls", "svc:v1", "src"), ("cat", "svc", "src/service.py"))
        ]
        ls, cat = [(await process.communicate())[0] for process in processes]
        assert [line.split()[-1] for line in ls.splitlines()] == [b"src/service.py", b"src/weights"]
        assert cat == FILES["src/service.py"]


async def test_copy_from_and_to_bucket(serve: Serve, home: Path, tmp_path: Path):
    made = contents(make_bento(home, files=FILES))
    for transmission in ("presigned_url", "auto", "proxy"):
        caller, here = await serve(f"copy-{transmission}", transmission=transmission), tmp_path / transmission
        disks = [LocalRegistry(here / name, transmission=transmission) for name in ("first", "last")]
        async with disks[0] as first, disks[1] as last, make_api(caller, home) as bucket:
            source = AsyncBentoAPI(
                endpoint=first.endpoint, api_token=first.api_token, bento_store=BentoStore(home / "bentos")
            )
            target = AsyncBentoAPI(endpoint=last.endpoint, api_token=last.api_token)
            async with source, target:
                await source.push("svc:v1")
                assert (await source.copy("svc:v1", bucket)).bytes_sent > 12 * MiB
                await bucket.copy("svc:v1", target)
                await target.pull("svc:v1", path=here / "copy")
        assert contents(here / "copy") == made


async def test_verify_compares_with_bucket(caller: Caller, home: Path, tmp_path: Path):
    bento = make_bento(home, files={"weights": random_bytes(6 * MiB), "src/service.py": b"pass\n"})
    async with make_api(caller, home) as api, make_api(caller, tmp_path / "there") as there:
        assert (await api.push("svc:v1")).parts == 2
        pulled = await there.pull("svc:v1")
        assert (await api.verify("svc:v1")).method == (await there.verify("svc")).method == "checksums"
        (pulled.path / "bento.yaml").chmod(0o600)
        assert await there.verify(pulled) == VerifyResult(pulled.tag, "index")
        (bento / "src/service.py").write_bytes(b"fail\n")
        (difference,) = (await api.verify(bento, full=True)).differences
        assert (difference.path, difference.changes) == ("src/service.py", ("content",))


async def test_pull_cancelled_resumes(caller: Caller, home: Path, tmp_path: Path):
    bento = make_bento(home, files={f"part {number}": random_bytes(2 * MiB, number) for number in range(8)})
    there = tmp_path / "there"
    async with make_api(caller, home) as api:
        await api.push("svc:v1")
    halfway = asyncio.Event()
    async with make_api(caller, there, progress=lambda event: event.bytes_done > 8 * MiB and halfway.set()) as api:
        pulling = asyncio.create_task(api.pull("svc:v1"))
        await halfway.wait()
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
    assert not (there / "bentos" / "svc").exists()
    async with make_api(caller, there) as api:
        assert contents((await api.pull("svc:v1")).path) == contents(bento)


async def test_logs_hold_no_secrets(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    caller = await serve()
    await caller.create()
    await caller.bare("PUT", await caller.put_url(), data=b"bytes")
    await caller.upload(b"bytes")
    assert "X-Amz" not in caplog.text
    assert caller.registry.api_token not in caplog.text + repr(caller.registry)

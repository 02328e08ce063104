"""Uploads: through the registry, in one presigned PUT, in parts; complete, interrupted and rejected."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import shutil
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from async_bento.registry.blobs import disk, disk_files
from async_bento.registry.blobs.base import CompletedPart, Content
from async_bento.registry.blobs.disk import DiskBlobs
from async_bento.registry.blobs.disk_files import DiskFiles, StagedFile
from async_bento.registry.blobs.presign import Presigner
from async_bento.registry.errors import NoSuchUploadError, RecordNotFoundError, StorageError, translate_errors
from async_bento.registry.records import sql
from tests.builders import MiB
from tests.eventually import eventually
from tests.registry.conftest import clean_up, disk_only

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.registry.conftest import Caller, Serve, Stored


DATA = os.urandom(100_000)
ONE, TWO = os.urandom(5 * 2**20), os.urandom(5 * 2**20)  # the minimum part size


def md5(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


async def cut_off(url: str, headers: str, body: bytes) -> None:
    """Send the beginning of a request, then close the connection."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode())
    await asyncio.sleep(0.05)  # the handler is running when the body breaks
    writer.write(body)
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()


async def no_part_url(caller: Caller, upload_id: str, version: str = "v1") -> bool:
    """Whether the registry signs no URL for a part of an upload."""
    body = {"upload_id": upload_id, "part_number": 1}
    path = f"{caller.items()}/{version}/presign_multipart_upload_url"
    response = await caller.api("PATCH", path, json=body)
    return response.status == 404 and "no such upload" in response.json["error"]


# Through the registry


async def test_proxied_upload_round_trip(either: Caller):
    await either.create()
    response = await either.upload(DATA)
    assert (response.status, response.body) == (200, b"")
    item = await either.get()
    assert (item["upload_status"], item["upload_finished_reason"]) == ("success", "")
    assert item["upload_started_at"] <= item["upload_finished_at"]
    assert (await either.download()).body == DATA


async def test_chunked_body_is_stored(caller: Caller):
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(DATA), 1000):
            yield DATA[start : start + 1000]

    await caller.create()
    assert (await caller.upload(body())).status == 200
    assert (await caller.download()).body == DATA


async def test_empty_body_is_stored(caller: Caller):
    await caller.create()
    assert (await caller.upload(b"")).status == 200
    assert (await caller.download()).body == b""


async def test_gzip_stays_compressed(caller: Caller):
    await caller.create()
    assert (await caller.upload(DATA, headers={"Content-Encoding": "gzip"})).status == 200
    assert (await caller.download()).body == DATA


async def test_cut_upload_leaves_nothing(caller: Caller, stored_files: Stored):
    await caller.create()
    url = f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/upload"
    token = caller.registry.api_token
    await cut_off(url, f"X-YATAI-API-TOKEN: {token}\r\nContent-Length: 100000", DATA[:50_000])

    async def failed() -> bool:
        return (await caller.get())["upload_status"] == "failed"

    await eventually(failed)
    assert stored_files() == []
    assert (await caller.get())["upload_finished_reason"] == "the request failed: the connection broke"
    assert (await caller.download()).status == 404


async def test_bad_chunks_leave_nothing(caller: Caller, stored_files: Stored, caplog: pytest.LogCaptureFixture):
    await caller.create()
    url = f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/upload"
    headers = f"X-YATAI-API-TOKEN: {caller.registry.api_token}\r\nTransfer-Encoding: chunked"
    await cut_off(url, headers, b"5\r\nhello\r\nno chunk\r\n")

    async def failed() -> bool:
        return (await caller.get())["upload_status"] == "failed"

    await eventually(failed)
    assert stored_files() == []
    assert (await caller.get())["upload_finished_reason"] == "the request failed: the connection broke"
    assert not [record for record in caplog.records if record.exc_info]  # the client's fault, not the registry's


@pytest.mark.parametrize("error", [ConnectionResetError(), web.RequestPayloadError()])
def test_upload_broken_body_is_400(error: Exception):
    """Which of the two aiohttp raises depends on its parser, in C or in Python."""
    with pytest.raises(StorageError, match=r"^the request failed: the connection broke$") as raised, translate_errors():
        raise error

    assert raised.value.status == 400


def test_timeout_is_no_disk_failure():
    with pytest.raises(TimeoutError), translate_errors():
        raise TimeoutError
    with pytest.raises(StorageError, match="disk failed: Input/output error"), translate_errors():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


async def test_early_download_returns_404(either: Caller):
    await either.create()
    response = await either.download()
    assert response.status == 404
    assert response.json["error"].endswith("record not found")


# In one presigned PUT


async def test_presigned_put_round_trip(either: Caller):
    await either.create()
    put = await either.bare("PUT", await either.put_url(), data=DATA)
    assert (put.status, put.headers["ETag"], put.body) == (200, md5(DATA), b"")
    assert (await either.get())["upload_status"] == "pending"
    await either.finish()
    got = await either.bare("GET", await either.get_url())
    assert (got.body, got.headers["ETag"]) == (DATA, md5(DATA))


@disk_only
async def test_put_without_length_is_411(caller: Caller, stored_files: Stored):
    async def body() -> AsyncIterator[bytes]:
        yield DATA

    await caller.create()
    response = await caller.bare("PUT", await caller.put_url(), data=body())
    assert response.status == 411
    assert b"<Code>MissingContentLength</Code>" in response.body
    assert stored_files() == []


async def test_cut_put_leaves_nothing(caller: Caller, stored_files: Stored):
    await caller.create()
    url = await caller.put_url()
    await cut_off(url, "Content-Length: 100000", DATA[:50_000])
    await eventually(lambda: stored_files() == [])
    await caller.finish()
    assert (await caller.download()).status == 404


def staged(files: DiskFiles, key: str, data: bytes) -> StagedFile:
    """Receive a body."""
    file = StagedFile(files.directory(key))
    file.write([data])
    file.sync()
    return file


def test_repeated_finish_returns_body(tmp_path: Path):
    """A registry that was killed after it has finished an upload finishes it again."""
    files, key = DiskFiles(tmp_path, min_part_size=1), "bentos/iris/v1/id"
    files.start(key)
    files.add_part(key, 1, staged(files, key, DATA))
    expected = Content.of_parts(md5(DATA), [(len(DATA), md5(DATA))])
    assert files.finish_put(key) == files.finish_put(key) == expected
    with pytest.raises(NoSuchUploadError):
        files.add_part(key, 2, staged(files, key, b"late"))
    assert files.finish_put(key) == expected


def test_completion_ignores_discarded_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A client hangs up while another part of its upload completes it."""
    files, key = DiskFiles(tmp_path, min_part_size=1), "bentos/iris/v1/id"
    files.start(key)
    files.add_part(key, 1, staged(files, key, DATA))
    cut, found = staged(files, key, b"half"), files._files(key)
    cut.discard()
    monkeypatch.setattr(files, "_files", lambda _: found)
    assert files.complete(key, [CompletedPart(1, md5(DATA))]).size == len(DATA)
    assert [path.name for path in files.directory(key).iterdir()] == [f"00001.{md5(DATA)[1:-1]}"]


@pytest.mark.posix("a sync of directories")
@pytest.mark.parametrize("way", ["put", "put_part", "add_file"])
async def test_uploads_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    """A loss of power after the response must lose neither the bytes nor their names."""
    synced: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        yield DATA

    def note(handle: int, **_: object) -> None:
        synced.append(os.fstat(handle).st_ino)

    monkeypatch.setattr("async_bento._core.platform.flush", note)
    blobs, key = DiskBlobs(tmp_path, Presigner(b"secret", 60), min_part_size=1), "bentos/iris/v1/id"
    try:
        if way == "put":
            await blobs.put(key, body(), None)
        elif way == "put_part":
            await blobs.start_multipart(key)
            etag = await blobs.put_part(key, 1, body(), None)
            await blobs.complete_multipart(key, "id", [CompletedPart(1, etag)])
        else:
            file = StagedFile(await blobs.start_file(key))
            file.write([DATA])
            await blobs.add_file(key, file)
    finally:
        blobs.close()
    directory = tmp_path / key
    (part,) = directory.iterdir()
    # The part, its name, and the end of the upload.
    assert synced == [part.stat().st_ino, directory.stat().st_ino, directory.stat().st_ino]


async def test_part_after_completion_is_not_received(tmp_path: Path):
    is_read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal is_read
        is_read = True
        yield DATA

    blobs, key = DiskBlobs(tmp_path, Presigner(b"secret", 60), min_part_size=1), "bentos/iris/v1/id"
    try:
        await blobs.start_multipart(key)
        etag = await blobs.put_part(key, 1, body(), None)
        await blobs.complete_multipart(key, "id", [CompletedPart(1, etag)])
        is_read = False
        with pytest.raises(NoSuchUploadError):
            await blobs.put_part(key, 2, body(), None)
    finally:
        blobs.close()
    assert not is_read


async def test_unfinished_upload_is_deleted_alone(tmp_path: Path):
    async def body() -> AsyncIterator[bytes]:
        yield DATA

    blobs = DiskBlobs(tmp_path, Presigner(b"secret", 60), min_part_size=1)
    try:
        content = await blobs.put("bentos/iris/v1/id", body(), None)
        await blobs.start_multipart("bentos/iris/v1/other")
        for key in ("bentos/iris/v1/id", "bentos/iris/v1/other"):
            await blobs.delete_unfinished(key)
        assert await blobs.find_damage("bentos/iris/v1/id", content) is None
    finally:
        blobs.close()
    assert [path.name for path in (tmp_path / "bentos/iris/v1").iterdir()] == ["id"]


def test_delete_waits_for_last_reader(tmp_path: Path):
    files, key = DiskFiles(tmp_path, min_part_size=1), "bentos/iris/v1/id"
    files.start(key)
    files.add_part(key, 1, staged(files, key, DATA))
    for _ in range(3):
        files.acquire(key)
    files.release(key)
    files.delete(key)
    with pytest.raises(RecordNotFoundError):
        files.acquire(key)
    files.release(key)
    assert files.directory(key).exists()
    files.release(key)
    assert [*tmp_path.iterdir()] == []


def test_delete_after_last_reader_is_immediate(tmp_path: Path):
    files, key = DiskFiles(tmp_path, min_part_size=1), "bentos/iris/v1/id"
    files.start(key)
    files.acquire(key)
    files.release(key)
    files.delete(key)
    assert [*tmp_path.iterdir()] == []


def test_delete_of_nothing_is_harmless(tmp_path: Path):
    DiskFiles(tmp_path, min_part_size=1).delete("bentos/iris/v1/id")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("size", [4, 6])
async def test_put_of_wrong_size_fails(tmp_path: Path, size: int):
    # aiohttp rejects such a body, but the storage does not rely on that.
    async def body() -> AsyncIterator[bytes]:
        yield b"12345"

    blobs = DiskBlobs(tmp_path, Presigner(b"secret", 60), min_part_size=1)
    try:
        with pytest.raises(StorageError, match=f"5 bytes received of {size}"):
            await blobs.put("bentos/iris/v1/id", body(), size)
    finally:
        blobs.close()
    assert list(tmp_path.iterdir()) == []


async def cancel_on_busy_disk(blobs: DiskBlobs, task: asyncio.Task[object]) -> None:
    """Cancel a call repeatedly, as a cancelled scope of anyio does, while all threads of the disk are busy."""
    idle = threading.Event()
    for _ in range(disk._THREADS):
        blobs._threads.executor.submit(idle.wait, 30)
    for _ in range(20):
        task.cancel()
        await asyncio.sleep(0)
    idle.set()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("call", ["put", "put_part"])
async def test_upload_cancel_on_busy_disk_cleans_up(tmp_path: Path, call: str):
    is_read = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield bytes(MiB)
        is_read.set()
        await asyncio.Event().wait()

    blobs, key = DiskBlobs(tmp_path, Presigner(b"secret", 60), min_part_size=1), "bentos/iris/v1/id"
    try:
        if call == "put_part":
            await blobs.start_multipart(key)
        before = sorted(tmp_path.rglob("*"))
        putting = blobs.put(key, body(), None) if call == "put" else blobs.put_part(key, 1, body(), None)
        task: asyncio.Task[object] = asyncio.create_task(putting)
        await is_read.wait()
        assert sorted(tmp_path.rglob("*")) != before  # a temporary file

        await cancel_on_busy_disk(blobs, task)
    finally:
        blobs.close()
    assert sorted(tmp_path.rglob("*")) == ([] if call == "put" else before)


async def test_download_cancel_on_busy_disk_releases(tmp_path: Path):
    async def body() -> AsyncIterator[bytes]:
        yield b"12345"

    async def read() -> None:
        async with blobs.open(key, content):
            is_open.set()
            await asyncio.Event().wait()

    blobs, key, is_open = (
        DiskBlobs(tmp_path, Presigner(b"secret", 60), min_part_size=1),
        "bentos/i/v1/id",
        asyncio.Event(),
    )
    try:
        content = await blobs.put(key, body(), 5)
        task: asyncio.Task[object] = asyncio.create_task(read())
        await is_open.wait()

        await cancel_on_busy_disk(blobs, task)
        await blobs.delete(key)
    finally:
        blobs.close()
    assert list(tmp_path.iterdir()) == []


@disk_only
async def test_put_above_max_size_fails(serve: Serve):
    caller = await serve(max_put_size=len(DATA) - 1)
    await caller.create()
    response = await caller.bare("PUT", await caller.put_url(), data=DATA)
    assert response.status == 400
    assert b"<Code>EntityTooLarge</Code>" in response.body
    assert (await caller.bare("PUT", await caller.put_url(), data=DATA[1:])).status == 200


# In parts


async def test_multipart_round_trip(either: Caller, stored_files: Stored):
    await either.create()
    upload_id = await either.start_multipart()
    pieces = [ONE, TWO, DATA]
    etags = [(n, await either.put_part(upload_id, n, pieces[n - 1])) for n in (3, 1, 2)]
    assert [etag for _, etag in sorted(etags)] == [md5(piece) for piece in pieces]
    assert (await either.complete(upload_id, sorted(etags))).status == 200
    await either.finish()
    got = await either.bare("GET", await either.get_url())
    assert got.body == ONE + TWO + DATA
    whole = hashlib.md5(b"".join(hashlib.md5(piece).digest() for piece in pieces)).hexdigest()
    assert got.headers["ETag"] == f'"{whole}-3"'
    assert stored_files.has_count(disk=3, s3=1)


@disk_only
async def test_completion_copies_no_bytes(caller: Caller, tmp_path: Path, stored_files: Stored):
    await caller.create()
    upload_id = await caller.start_multipart()
    etag = await caller.put_part(upload_id, 1, DATA)
    root = tmp_path / "registry" / "blobs"
    before = {(root / file).stat().st_ino for file in stored_files() if (root / file).stat().st_size == len(DATA)}
    await caller.complete(upload_id, [(1, etag)])
    after = {(root / file).stat().st_ino for file in stored_files() if (root / file).stat().st_size == len(DATA)}
    assert before == after
    assert len(after) == 1


async def test_listed_etag_selects_part(caller: Caller, stored_files: Stored):
    await caller.create()
    upload_id = await caller.start_multipart()
    await caller.put_part(upload_id, 1, b"old")
    etag = await caller.put_part(upload_id, 1, b"new")
    assert (await caller.complete(upload_id, [(1, etag)])).status == 200
    await caller.finish()
    assert (await caller.download()).body == b"new"
    assert stored_files.has_count(disk=1, s3=1)


async def test_unlisted_parts_are_dropped(caller: Caller, stored_files: Stored):
    await caller.create()
    upload_id = await caller.start_multipart()
    first = await caller.put_part(upload_id, 1, ONE)
    await caller.put_part(upload_id, 2, TWO)
    third = await caller.put_part(upload_id, 3, b"three")
    assert (await caller.complete(upload_id, [(1, first), (3, third)])).status == 200
    await caller.finish()
    assert (await caller.download()).body == ONE + b"three"
    assert stored_files.has_count(disk=2, s3=1)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "the upload has no parts"),
        ([(1, md5(ONE)), (2, md5(ONE))], "part 2 is invalid: not uploaded"),
        ([(1, md5(ONE)), (3, md5(b"three"))], "part 3 is invalid: not uploaded"),
        ([(2, md5(b"two")), (1, md5(ONE))], "ascending"),
        ([(1, md5(ONE)), (1, md5(ONE))], "ascending"),
        ([(1, "../../upload")], "part 1 is invalid: not uploaded"),
        ([(0, md5(ONE))], "part_number"),
        ([(10_001, md5(ONE))], "part_number"),
    ],
)
async def test_invalid_parts_return_400(caller: Caller, parts: list[tuple[int, str]], why: str):
    await caller.create()
    upload_id = await caller.start_multipart()
    etags = [(1, await caller.put_part(upload_id, 1, ONE)), (2, await caller.put_part(upload_id, 2, b"two"))]
    response = await caller.complete(upload_id, parts)
    assert response.status == 400
    assert why in response.json["error"]
    assert (await caller.download()).status == 404
    assert (await caller.complete(upload_id, etags)).status == 200


async def test_unquoted_etags_are_accepted(caller: Caller):
    await caller.create()
    upload_id = await caller.start_multipart()
    etag = await caller.put_part(upload_id, 1, DATA)
    assert (await caller.complete(upload_id, [(1, etag.strip('"'))])).status == 200


async def test_part_below_min_size_fails(serve: Serve):
    caller = await serve()
    await caller.create()
    upload_id = await caller.start_multipart()
    least = 5 * 2**20
    sizes = (least, least - 1, least)
    etags = [(n, await caller.put_part(upload_id, n, bytes(size))) for n, size in enumerate(sizes, start=1)]
    response = await caller.complete(upload_id, etags)
    assert response.status == 400
    assert f"part 2 is too small: {least - 1} bytes" in response.json["error"]
    assert (await caller.complete(upload_id, etags[:2])).status == 200


async def test_completion_twice_succeeds(caller: Caller):
    await caller.create()
    upload_id = await caller.start_multipart()
    etags = [(1, await caller.put_part(upload_id, 1, DATA))]
    assert [(await caller.complete(upload_id, etags)).status for _ in range(2)] == [200, 200]
    assert (await caller.complete(upload_id, [(1, md5(b"other"))])).status == 404


async def test_last_completed_upload_is_downloaded(caller: Caller):
    """Like Yatai's, without the request that ends the upload."""
    await caller.create()
    for data in (b"first", b"second"):
        upload_id = await caller.start_multipart()
        etag = await caller.put_part(upload_id, 1, data)
        assert (await caller.complete(upload_id, [(1, etag)])).status == 200
        assert (await caller.download()).body == data


async def test_racing_completions_succeed(caller: Caller):
    await caller.create()
    upload_id = await caller.start_multipart()
    etags = [(1, await caller.put_part(upload_id, 1, DATA))]
    responses = await asyncio.gather(*(caller.complete(upload_id, etags) for _ in range(5)))
    assert {response.status for response in responses} == {200}
    await caller.finish()
    assert (await caller.download()).body == DATA


async def test_late_part_returns_404(caller: Caller):
    await caller.create()
    upload_id = await caller.start_multipart()
    url = await caller.part_url(upload_id, 1)
    etag = await caller.put_part(upload_id, 1, DATA)
    await caller.complete(upload_id, [(1, etag)])
    for _ in range(2):
        late = await caller.bare("PUT", url, data=b"late")
        assert late.status == 404
        assert b"<Code>NoSuchUpload</Code>" in late.body
        await caller.finish()
    assert (await caller.download()).body == DATA


@pytest.mark.parametrize("upload_id", ["0" * 32, "..", "../objects", "x\ny", "é", ""])
async def test_unknown_completion_is_404(caller: Caller, upload_id: str, stored_files: Stored):
    await caller.create()
    response = await caller.complete(upload_id, [(1, md5(DATA))])
    assert response.status == 404
    assert "no such upload" in response.json["error"]
    assert stored_files() == []


@pytest.mark.parametrize("upload_id", ["0" * 32, "..", "../objects", "x\ny", "é"])
async def test_unknown_part_upload_is_404(caller: Caller, upload_id: str, stored_files: Stored):
    await caller.create()
    assert await no_part_url(caller, upload_id)
    assert stored_files() == []


async def test_finish_ignores_incomplete_parts(caller: Caller):
    await caller.create()
    upload_id = await caller.start_multipart()
    etag = await caller.put_part(upload_id, 1, DATA)
    await caller.finish()
    assert (await caller.download()).status == 404
    assert (await caller.complete(upload_id, [(1, etag)])).status == 200


@disk_only
async def test_upload_id_has_no_aliases(caller: Caller, tmp_path: Path):
    await caller.create()
    upload_id = await caller.start_multipart()
    directory = tmp_path / "registry" / "blobs" / "bentos" / "iris" / "v1" / upload_id
    for other in (f"../v1/{upload_id}", str(directory), f"{upload_id}/", f"{upload_id}\n", f"{upload_id}\0"):
        assert await no_part_url(caller, other), other
        assert (await caller.complete(other, [(1, md5(DATA))])).status == 404, other


async def test_foreign_upload_id_is_404(caller: Caller):
    await caller.create(version="v1")
    await caller.create(version="v2")
    upload_id = await caller.start_multipart("v1")
    assert await no_part_url(caller, upload_id, "v2")
    etag = await caller.put_part(upload_id, 1, DATA)
    assert (await caller.complete(upload_id, [(1, etag)], "v2")).status == 404


@disk_only
async def test_cut_part_leaves_nothing(caller: Caller, stored_files: Stored):
    await caller.create()
    upload_id = await caller.start_multipart()
    await cut_off(await caller.part_url(upload_id, 1), "Content-Length: 100000", DATA[:50_000])
    await eventually(lambda: stored_files() == [])


async def test_multipart_survives_restart(serve: Serve):
    caller = await serve()
    await caller.create()
    upload_id = await caller.start_multipart()
    first = await caller.put_part(upload_id, 1, ONE)
    await caller.registry.close()
    await caller.registry.start()
    second = await caller.put_part(upload_id, 2, b"two")
    assert (await caller.complete(upload_id, [(1, first), (2, second)])).status == 200
    await caller.finish()
    assert (await caller.download()).body == ONE + b"two"


async def test_abandoned_upload_is_removed(caller: Caller, stored_files: Stored, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    await caller.create()
    upload_id = await caller.start_multipart()
    await caller.put_part(upload_id, 1, ONE)
    etag = await caller.put_part(upload_id, 2, b"two")
    await caller.upload(DATA)
    await clean_up(caller, hours=23)
    assert not await no_part_url(caller, upload_id)
    await clean_up(caller, hours=25)
    assert await no_part_url(caller, upload_id)
    assert (await caller.complete(upload_id, [(1, md5(ONE)), (2, etag)])).status == 404
    assert stored_files.has_count(disk=1, s3=1)
    assert (await caller.download()).body == DATA
    assert re.search("(removed|aborted) an abandoned upload of ", caplog.text)


async def test_unfinished_put_is_removed(caller: Caller, stored_files: Stored):
    await caller.create()
    url = await caller.put_url()
    await caller.bare("PUT", url, data=DATA)
    await clean_up(caller, hours=23)
    assert stored_files.has_count(disk=1, s3=1)
    await clean_up(caller, hours=25)
    assert stored_files() == []
    await caller.finish()
    assert (await caller.download()).status == 404


# Replacement of an object


async def test_replacement_waits_for_finish(caller: Caller, stored_files: Stored):
    await caller.create()
    await caller.upload(b"old")
    upload_id = await caller.start_multipart()
    etag = await caller.put_part(upload_id, 1, b"new")
    await caller.ok("PATCH", f"{caller.items()}/v1/start_upload")
    assert (await caller.download()).body == b"old"
    await caller.complete(upload_id, [(1, etag)])
    assert (await caller.download()).body == b"old"
    await caller.finish()
    assert (await caller.download()).body == b"new"
    assert stored_files.has_count(disk=2, s3=2)
    await clean_up(caller, hours=2)
    assert stored_files.has_count(disk=1, s3=1)
    assert (await caller.download()).body == b"new"


async def test_cut_replacement_keeps_bytes(caller: Caller, stored_files: Stored):
    await caller.create()
    await caller.upload(b"old")
    await cut_off(await caller.put_url(), "Content-Length: 100000", DATA[:50_000])
    await eventually(lambda: stored_files.has_count(disk=1, s3=1))
    assert (await caller.download()).body == b"old"


async def test_failed_replace_keeps_item(caller: Caller):
    await caller.create()
    await caller.upload(b"old")
    url = f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/upload"
    token = caller.registry.api_token
    await cut_off(url, f"X-YATAI-API-TOKEN: {token}\r\nContent-Length: 100000", DATA[:50_000])

    async def ended() -> bool:
        return bool((await caller.get())["upload_finished_reason"])

    await eventually(ended)
    item = await caller.get()
    assert (item["upload_status"], item["upload_finished_reason"]) == (
        "success",
        "the request failed: the connection broke",
    )
    assert (await caller.download()).body == b"old"


async def test_failure_keeps_other_upload(caller: Caller):
    await caller.create()
    upload_id = await caller.start_multipart()
    etag = await caller.put_part(upload_id, 1, b"complete")
    await caller.complete(upload_id, [(1, etag)])
    url = f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/upload"
    token = caller.registry.api_token
    await cut_off(url, f"X-YATAI-API-TOKEN: {token}\r\nContent-Length: 100000", DATA[:50_000])

    async def ended() -> bool:
        return bool((await caller.get())["upload_finished_reason"])

    await eventually(ended)
    assert (await caller.get())["upload_status"] == "failed"
    await caller.finish()
    assert (await caller.download()).body == b"complete"


async def test_upload_race_keeps_one_body(caller: Caller, stored_files: Stored):
    await caller.create()
    bodies = [bytes([number]) * 50_000 for number in range(6)]
    await asyncio.gather(*(caller.upload(body) for body in bodies))
    assert (await caller.download()).body in bodies
    await clean_up(caller, hours=2)
    assert stored_files.has_count(disk=1, s3=1)


# Faults and memory


@pytest.mark.parametrize(("number", "status"), [(errno.ENOSPC, 507), (errno.EIO, 500)])
@disk_only
async def test_disk_error_leaves_nothing(
    caller: Caller,
    stored_files: Stored,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    status: int,
    caplog: pytest.LogCaptureFixture,
):
    await caller.create()
    put_url, upload_id = await caller.put_url(), await caller.start_multipart()
    part_url = await caller.part_url(upload_id, 1)

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number), "/secret/path")

    monkeypatch.setattr(disk_files.os, "fsync", fail)
    for url in (put_url, part_url):
        response = await caller.bare("PUT", url, data=DATA)
        assert response.status == status
        assert b"<Error>" in response.body
        assert b"/secret/path" not in response.body
    response = await caller.upload(DATA)
    assert (response.status, list(response.json)) == (status, ["error"])
    assert "/secret/path" not in response.json["error"]
    assert stored_files() == []
    item = await caller.get()
    assert (item["upload_status"], item["upload_finished_reason"]) == ("failed", response.json["error"])
    assert "a request failed: the disk failed" in caplog.text


@disk_only
async def test_reserved_space_returns_507(serve: Serve, stored_files: Stored, monkeypatch: pytest.MonkeyPatch):
    caller = await serve(min_free=1 * MiB)
    size = 3 * MiB
    usage = type(shutil.disk_usage("/"))

    def measure(root: Path) -> Any:
        used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        return usage(size, used, size - used)

    monkeypatch.setattr(disk_files.shutil, "disk_usage", measure)
    await caller.create()
    url, part_url = await caller.put_url(), await caller.part_url(await caller.start_multipart(), 1)
    body = bytes(2 * MiB + 1)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    for each in (url, part_url):
        assert (await caller.bare("PUT", each, data=body)).status == 507
    for data in (body, pieces()):  # with and without Content-Length
        refused = await caller.upload(data)
        assert refused.status == 507
        assert refused.json == {"error": "the registry's disk is full but for 1.0 MiB that stay free"}
    assert stored_files() == []
    body = body[:-1]
    assert (await caller.upload(pieces())).status == 200
    assert (await caller.api("PATCH", f"{caller.items()}/v1/start_multipart_upload")).status == 200
    body, size = body[:MiB], 4 * MiB
    assert (await caller.upload(pieces())).status == 200
    size -= 1
    refused = await caller.api("PATCH", f"{caller.items()}/v1/start_multipart_upload")
    assert refused.status == 507


@disk_only
async def test_full_disk_leaves_nothing(caller: Caller, stored_files: Stored, monkeypatch: pytest.MonkeyPatch):
    await caller.create()
    url = await caller.put_url()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk_files, "fsync_path", fail)
    assert (await caller.bare("PUT", url, data=DATA)).status == 507
    assert (await caller.upload(DATA)).status == 507
    assert stored_files() == []


async def test_full_database_leaves_nothing(caller: Caller, stored_files: Stored, monkeypatch: pytest.MonkeyPatch):
    await caller.create()

    async def fail(*_: object) -> None:
        raise StorageError("InsufficientStorage", "the registry's disk is full", status=507)

    monkeypatch.setattr(sql, "publish", fail)
    assert (await caller.upload(DATA)).status == 507
    assert stored_files() == []
    assert (await caller.get())["upload_status"] == "failed"


async def test_large_body_bounds_memory(caller: Caller):
    size = 64 * 2**20
    block = os.urandom(2**16)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // len(block)):
            yield block

    await caller.create()
    url = await caller.put_url()
    tracemalloc.start()
    try:
        put = await caller.bare("PUT", url, data=body(), headers={"Content-Length": str(size)})
        await caller.finish()
        read = 0
        async with caller.session.get(await caller.get_url()) as stream:
            async for chunk in stream.content.iter_any():
                read += len(chunk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (put.status, read) == (200, size)
    assert peak < 16 * 2**20

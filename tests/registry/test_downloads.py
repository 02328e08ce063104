"""Downloads: ranges, preconditions, and what a presigned URL permits."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

import aiohttp
import pytest

from async_bento.registry.blobs.presign import Grant, Presigner
from async_bento.registry.downloads import parse_range
from async_bento.registry.errors import ForbiddenError, StorageError
from tests.registry.conftest import clean_up, disk_only

if TYPE_CHECKING:
    from tests.registry.conftest import Caller, Serve, Stored


PIECES = [os.urandom(size) for size in (1000, 1, 0, 2**20 + 7, 500)]
DATA = b"".join(PIECES)
SIZE = len(DATA)


async def fill(caller: Caller) -> Caller:
    """Create an item with parts of very different sizes, one of them empty."""
    await caller.create()
    upload_id = await caller.start_multipart()
    etags = [(n, await caller.put_part(upload_id, n, piece)) for n, piece in enumerate(PIECES, start=1)]
    assert (await caller.complete(upload_id, etags)).status == 200
    await caller.finish()
    return caller


RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-", 0, SIZE),
    ("bytes=999-1001", 999, 1002),
    ("bytes=1000-1000", 1000, 1001),
    ("bytes=990-1048999", 990, 1_049_000),
    (f"bytes={SIZE - 1}-", SIZE - 1, SIZE),
    (f"bytes=500-{SIZE * 9}", 500, SIZE),
    ("bytes=-1", SIZE - 1, SIZE),
    ("bytes=-600", SIZE - 600, SIZE),
    (f"bytes=-{SIZE * 9}", 0, SIZE),
]


@disk_only
async def test_range_spans_parts(serve: Serve, words):
    caller = await fill(await serve(words=words, min_part_size=0))
    url = await caller.get_url()
    for header, start, stop in RANGES:
        got = await caller.bare("GET", url, headers={"Range": header})
        assert got.status == 206, header
        assert got.body == DATA[start:stop], header
        assert got.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}", header
        assert got.headers["Content-Length"] == str(stop - start), header


@pytest.fixture
async def simple(caller: Caller) -> Caller:
    await caller.create()
    assert (await caller.upload(DATA)).status == 200
    return caller


async def test_full_get_has_size_and_etag(simple: Caller):
    got = await simple.bare("GET", await simple.get_url())
    assert (got.status, got.body) == (200, DATA)
    assert got.headers["Content-Length"] == str(SIZE)
    assert got.headers["Accept-Ranges"] == "bytes"
    assert got.headers["ETag"].startswith('"')
    assert "Content-Range" not in got.headers


@pytest.mark.parametrize("header", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
async def test_range_past_end_returns_416(simple: Caller, header: str):
    got = await simple.bare("GET", await simple.get_url(), headers={"Range": header})
    assert got.status == 416
    assert b"<Code>InvalidRange</Code>" in got.body
    assert got.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "bytes=5-1", "bytes=-", "bytes=x-", "items=0-1", ""])
@disk_only
async def test_invalid_range_is_ignored(simple: Caller, header: str):
    got = await simple.bare("GET", await simple.get_url(), headers={"Range": header})
    assert (got.status, got.body) == (200, DATA)


def test_range_of_empty_returns_416():
    assert parse_range(None, 0) is None
    with pytest.raises(StorageError):
        parse_range("bytes=0-", 0)


async def test_if_match_compares_etag(simple: Caller):
    url = await simple.get_url()
    etag = (await simple.bare("GET", url)).headers["ETag"]
    for header in (etag, f'"other", {etag}', "*"):
        assert (await simple.bare("GET", url, headers={"If-Match": header})).status == 200, header
    got = await simple.bare("GET", url, headers={"If-Match": '"other"', "Range": "bytes=0-1"})
    assert got.status == 412
    assert b"<Code>PreconditionFailed</Code>" in got.body


async def test_url_before_upload_is_404(caller: Caller):
    await caller.create()
    for status in ("failed", "success"):
        response = await caller.api("PATCH", f"{caller.items()}/v1/presign_download_url")
        assert response.status == 404
        assert response.json["error"] == "the bytes of iris:v1: record not found"
        await caller.finish(status=status)


async def test_proxied_download_has_ranges(simple: Caller):
    path = f"{simple.items()}/v1/download"
    whole = await simple.api("GET", path)
    assert (whole.status, whole.body, whole.headers["Content-Length"]) == (200, DATA, str(SIZE))
    etag = whole.headers["ETag"]
    assert etag == (await simple.bare("GET", await simple.get_url())).headers["ETag"]
    for header, start, stop in RANGES:
        part = await simple.api("GET", path, headers={"Range": header, "If-Match": etag})
        assert (part.status, part.body) == (206, DATA[start:stop]), header
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}", header
    beyond = await simple.api("GET", path, headers={"Range": f"bytes={SIZE}-"})
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert (await simple.api("GET", path, headers={"If-Match": '"other"'})).status == 412


async def test_http_1_0_download_is_whole(simple: Caller):
    url = urlsplit(simple.registry.endpoint)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    path = f"/api/v1{simple.items()}/v1/download"
    writer.write(f"GET {path} HTTP/1.0\r\nX-YATAI-API-TOKEN: {simple.registry.api_token}\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.0 200")
    assert body == DATA


@disk_only
async def test_replace_keeps_open_download(caller: Caller, stored_files: Stored):
    old = os.urandom(24 * 2**20)
    await caller.create()
    await caller.bare("PUT", await caller.put_url(), data=_stream(old), headers={"Content-Length": str(len(old))})
    await caller.finish()
    async with caller.session.get(await caller.get_url()) as response:
        head = await response.content.readexactly(10)
        await caller.upload(b"new")
        assert (await caller.download()).body == b"new"
        await clean_up(caller, hours=2)
        assert head + await response.content.read() == old
    await caller.registry.close()  # the old parts are removed by then
    assert len(stored_files()) == 1


async def test_client_abort_releases_blob(caller: Caller, stored_files: Stored, caplog: pytest.LogCaptureFixture):
    large = os.urandom(24 * 2**20)
    await caller.create()
    await caller.upload(_stream(large))
    for way in ("presigned", "proxy"):
        url = await caller.get_url() if way == "presigned" else None
        url = url or f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/download"
        response = await caller.session.get(url, headers={"X-YATAI-API-TOKEN": caller.registry.api_token})
        await response.content.readexactly(10)
        response.close()
    await caller.upload(b"new")
    await clean_up(caller, hours=2)
    await caller.registry.close()
    assert stored_files.has_count(disk=1, s3=1)
    assert [record for record in caplog.records if record.levelname != "DEBUG"] == []


async def _stream(data: bytes):
    for start in range(0, len(data), 2**20):
        yield data[start : start + 2**20]


@disk_only
async def test_truncated_part_disconnects(simple: Caller, tmp_path, stored_files):
    (part,) = stored_files()
    os.truncate(tmp_path / "registry" / "blobs" / part, SIZE - 10)
    with pytest.raises(aiohttp.ClientPayloadError):
        await simple.bare("GET", await simple.get_url())
    with pytest.raises(aiohttp.ClientPayloadError):
        await simple.download()


# Presigned URLs


def changed(url: str, **query: str) -> str:
    parts = urlsplit(url)
    return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | query)).geturl()


async def denied(caller: Caller, method: str, url: str, **kwargs) -> bool:
    response = await caller.bare(method, url, **kwargs)
    return response.status == 403 and (
        method == "HEAD"
        or b"<Code>AccessDenied</Code>" in response.body
        or b"<Code>SignatureDoesNotMatch" in response.body
    )


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE"])
async def test_get_url_allows_get_only(simple: Caller, method: str):
    assert await denied(simple, method, await simple.get_url())
    assert (await simple.download()).body == DATA


async def test_put_url_allows_put_only(simple: Caller):
    for method in ("GET", "HEAD", "DELETE"):
        assert await denied(simple, method, await simple.put_url()), method


@disk_only
async def test_url_rejects_other_methods(simple: Caller):
    for url in (await simple.get_url(), await simple.put_url()):
        for method in ("POST", "OPTIONS", "PATCH"):
            assert await denied(simple, method, url), method


@disk_only
async def test_changed_url_is_denied(simple: Caller):
    await simple.create(version="v2")
    await simple.upload(b"two", "v2")
    upload_id = await simple.start_multipart()
    get, part = await simple.get_url(), await simple.part_url(upload_id, 1)
    key, other = (urlsplit(url).path for url in (get, await simple.get_url("v2")))
    assert await denied(simple, "GET", get.replace(key, other))
    assert await denied(simple, "GET", get.replace("/bentos/", "/models/"))
    assert await denied(simple, "GET", changed(get, expires="9999999999999"))
    assert await denied(simple, "GET", changed(get, signature="0" * 64))
    assert await denied(simple, "GET", changed(get, signature=""))
    assert await denied(simple, "GET", changed(get, signature="é"))
    assert await denied(simple, "GET", get.partition("?")[0])
    assert await denied(simple, "GET", changed(get, expires="x"))
    assert await denied(simple, "PUT", changed(part, partNumber="2"), data=b"x")
    assert await denied(simple, "PUT", changed(part, uploadId="0" * 32), data=b"x")
    assert await denied(simple, "PUT", changed(await simple.put_url(), uploadId=upload_id, partNumber="1"), data=b"x")
    assert await denied(simple, "PUT", part.replace("&uploadId", "&x").replace("&partNumber", "&y"), data=b"x")


@disk_only
async def test_presigned_url_expires(serve: Serve):
    caller = await serve(url_expiry=0.4)
    await caller.create()
    await caller.upload(DATA)
    get, put = await caller.get_url(), await caller.put_url()
    part = await caller.part_url(await caller.start_multipart(), 1)
    assert (await caller.bare("GET", get)).status == 200
    await asyncio.sleep(0.45)
    assert await denied(caller, "GET", get)
    assert await denied(caller, "PUT", put, data=b"x")
    assert await denied(caller, "PUT", part, data=b"x")
    assert (await caller.download()).body == DATA


def test_presigned_url_ends_at_expiry(monkeypatch: pytest.MonkeyPatch):
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    presigner = Presigner(b"secret", 60)
    query = dict(parse_qsl(urlsplit(presigner.sign(Grant("GET", "key"))).query))
    now += 59.999
    assert presigner.check("GET", "key", query) == Grant("GET", "key")
    now += 0.001
    with pytest.raises(ForbiddenError, match="Request has expired"):
        presigner.check("GET", "key", query)


async def test_url_survives_restart(serve: Serve):
    caller = await serve()
    await caller.create()
    await caller.upload(DATA)
    url, before = await caller.get_url(), caller.registry.endpoint
    await caller.registry.close()
    await caller.registry.start()
    assert (await caller.bare("GET", url.replace(before, caller.registry.endpoint))).body == DATA


@disk_only
async def test_url_uses_request_host(simple: Caller):
    path = f"{simple.items()}/v1/presign_download_url"
    item = await simple.ok("PATCH", path, headers={"Host": "forwarded.example:1234"})
    assert item["presigned_download_url"].startswith("http://forwarded.example:1234/blobs/")


@disk_only
async def test_url_uses_public_url(serve: Serve):
    caller = await serve(public_url="https://registry.example/prefix/")
    await caller.create()
    assert (await caller.put_url()).startswith("https://registry.example/prefix/blobs/bentos/iris/v1/")

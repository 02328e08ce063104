"""Faults of a bucket, at the start and later."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import pytest

from async_bento.cli import main
from async_bento.errors import ConfigError
from async_bento.registry.blobs import bucket
from async_bento.registry.blobs.base import CompletedPart, Content
from async_bento.registry.errors import NoSuchUploadError, StorageError
from async_bento.registry.s3_bucket import S3Bucket
from async_bento.registry.server import LocalRegistry
from tests.cli_runner import make_runner
from tests.registry.conftest import BENTOS, BUCKET, Caller, clean_up, s3_only
from tests.registry.faulty_s3 import FaultyS3, faulty_s3

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.registry.seaweed import Seaweed

pytestmark = s3_only


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> str:
    """Replace the parametrized storage by `faulty`."""
    return str(request.param)


@pytest.fixture
async def faulty(credentials: None, monkeypatch: pytest.MonkeyPatch, storage: str) -> AsyncIterator[FaultyS3]:
    monkeypatch.setattr(bucket, "_MAX_ATTEMPTS", 2)
    async with faulty_s3() as running:
        yield running


@pytest.fixture
async def caller(faulty: FaultyS3, tmp_path: Path) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        registry = LocalRegistry(tmp_path, bucket=S3Bucket("bucket", endpoint=faulty.endpoint), grace=0.1)
        await stack.enter_async_context(registry)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Caller(registry, session, BENTOS)


async def rejection(where: S3Bucket, **options: Any) -> str:
    with tempfile.TemporaryDirectory() as root, pytest.raises(ConfigError) as caught:
        await LocalRegistry(root, bucket=where, **options).start()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Start


async def test_unknown_bucket_raises(weed: Seaweed, credentials: None, storage: str):
    message = await rejection(S3Bucket("no-such-bucket", endpoint=weed.endpoint))
    assert message.startswith(f"cannot use s3://no-such-bucket/ (at {weed.endpoint}): ")
    assert "NoSuchBucket" in message


async def test_wrong_credentials_raise(weed: Seaweed, credentials: None, storage: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong one")
    message = await rejection(S3Bucket(BUCKET, endpoint=weed.endpoint))
    assert "SignatureDoesNotMatch" in message
    assert "a wrong one" not in message


async def test_read_only_bucket_raises(weed: Seaweed, credentials: None, storage: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "reader")
    assert "AccessDenied" in await rejection(S3Bucket(BUCKET, endpoint=weed.endpoint))


def test_missing_credentials_fail(credentials: None, storage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    command = [sys.executable, "-m", "async_bento", "registry", "serve", "--root", tmp_path, "--s3", "bucket"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: cannot connect to S3: there are no AWS credentials. Set AWS_ACCESS_KEY_ID")
    assert len(result.stderr.splitlines()) == 1


async def test_unreachable_endpoint_raises(faulty: FaultyS3):
    message = await rejection(S3Bucket("bucket", endpoint="http://127.0.0.1:1"))
    assert message == "cannot use s3://bucket/ (at http://127.0.0.1:1): cannot reach the registry's bucket"


@pytest.mark.parametrize(("is_aws", "ours"), [(True, None), (True, "us-west-2"), (True, "eu-west-1"), (False, None)])
async def test_wrong_region_raises(
    faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_aws: bool, ours: str | None
):
    faulty.region = "eu-west-1"
    if ours:
        monkeypatch.setenv("AWS_DEFAULT_REGION", ours)
    if is_aws:
        monkeypatch.setattr(bucket, "_AWS_DOMAINS", (faulty.endpoint,))
    where = S3Bucket("bucket", endpoint=faulty.endpoint)
    if is_aws and ours != "eu-west-1":
        assert (await rejection(where)).endswith("the bucket is in region eu-west-1. Set AWS_DEFAULT_REGION=eu-west-1.")
    else:
        async with LocalRegistry(tmp_path, bucket=where):
            pass


async def test_newer_format_raises(faulty: FaultyS3):
    faulty.objects["registry.json"] = b'{"format": 99}'
    assert "newer async-bento" in await rejection(S3Bucket("bucket", endpoint=faulty.endpoint))


async def test_bucket_of_other_database_raises(faulty: FaultyS3, tmp_path: Path):
    """The cleanup of one registry would remove the bytes of the other."""
    where = S3Bucket("bucket", endpoint=faulty.endpoint)
    for _ in range(2):
        async with LocalRegistry(tmp_path, bucket=where):
            layout = json.loads(faulty.objects["registry.json"])
    assert (layout.keys(), layout["format"]) == ({"format", "database"}, 2)
    assert (await rejection(where)).endswith(
        "it holds the bytes of another database. Use that database, or another prefix."
    )


@pytest.mark.parametrize("stored", [b"a page", b"{}", b"[]", b'{"format": null}', b'{"format": "two"}'])
async def test_foreign_json_raises(faulty: FaultyS3, stored: bytes):
    faulty.objects["registry.json"] = stored
    message = await rejection(S3Bucket("bucket", endpoint=faulty.endpoint))
    assert "async-bento did not write its registry.json" in message


@pytest.mark.parametrize("options", [{"url_expiry": 604_801}, {"url_expiry": 0}])
async def test_invalid_url_expiry_raises(faulty: FaultyS3, tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(ConfigError, match="url_expiry"):
        await LocalRegistry(tmp_path, bucket=S3Bucket("bucket", endpoint=faulty.endpoint), **options).start()


@pytest.mark.parametrize(("url_expiry", "signed"), [(0.4, "1"), (604_800, "604800")])
async def test_url_expiry_is_rounded(faulty: FaultyS3, tmp_path: Path, url_expiry: float, signed: str):
    where = S3Bucket("bucket", endpoint=faulty.endpoint)
    registry = LocalRegistry(tmp_path, bucket=where, url_expiry=url_expiry)
    async with registry, aiohttp.ClientSession() as session:
        caller = Caller(registry, session, BENTOS)
        await caller.create()
        assert dict(parse_qsl(urlsplit(await caller.put_url()).query))["X-Amz-Expires"] == signed


def serve(*arguments: str) -> tuple[int, str]:
    result = make_runner().invoke(main, ["registry", "serve", "--port", "0", *arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_serve_error_is_one_line(credentials: None, storage: str, tmp_path: Path):
    code, message = serve("--root", str(tmp_path), "--s3", "bucket", "--s3-endpoint", "http://127.0.0.1:1")
    assert code == 2
    assert [line for line in message.splitlines() if line.startswith("Error")] == [
        "Error: cannot use s3://bucket/ (at http://127.0.0.1:1): cannot reach the registry's bucket"
    ]


def test_serve_names_missing_extra(monkeypatch: pytest.MonkeyPatch, storage: str, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "async_bento.registry.blobs.bucket", None)
    code, message = serve("--root", str(tmp_path), "--s3", "bucket")
    assert code == 2
    assert 'pip install "async-bento[s3]"' in message


# Requests


@pytest.mark.parametrize(
    ("fault", "status", "retry_after", "message"),
    [
        ((503, "SlowDown"), 503, "5", "slow down"),
        ((429, "TooManyRequests"), 503, "5", "slow down"),
        ((403, "AccessDenied"), 500, None, "AccessDenied"),
        ((404, "NoSuchBucket"), 500, None, "NoSuchBucket"),
        ((507, "XMinioStorageFull"), 507, None, "XMinioStorageFull"),
        ("lost", 503, "5", "cannot reach"),
    ],
)
async def test_bucket_error_returns_json(
    caller: Caller,
    faulty: FaultyS3,
    fault: tuple[int, str] | str,
    status: int,
    retry_after: str | None,
    message: str,
    caplog: pytest.LogCaptureFixture,
):
    await caller.create()
    faulty.fault = lambda _: fault
    response = await caller.api("PATCH", f"{caller.items()}/v1/start_multipart_upload")
    assert (response.status, response.headers.get("Retry-After")) == (status, retry_after)
    assert message in response.json["error"]
    assert ("cannot reach S3: " if fault == "lost" else "S3 rejected CreateMultipartUpload: ") in caplog.text


async def test_bucket_error_hides_message(caller: Caller, faulty: FaultyS3):
    await caller.create()
    faulty.fault = lambda _: (403, "AccessDenied")
    response = await caller.api("PATCH", f"{caller.items()}/v1/start_multipart_upload")
    assert response.json["error"] == "the registry's bucket failed: AccessDenied"
    ready = await caller.bare("GET", f"{caller.registry.endpoint}/readyz")
    assert (ready.status, ready.json) == (503, {"status": "unavailable"} | response.json)


async def test_lost_object_returns_404(caller: Caller, faulty: FaultyS3):
    await caller.create()
    await caller.upload(b"bytes")
    (key,) = [key for key in faulty.objects if key.endswith(".tar")]
    del faulty.objects[key]
    response = await caller.download()
    assert response.status == 404
    assert response.json["error"].startswith("the bytes of bentos/iris/v1/")


async def test_cut_download_disconnects(caller: Caller, faulty: FaultyS3, caplog: pytest.LogCaptureFixture):
    await caller.create()
    await caller.upload(bytes(2**20))
    faulty.fault = lambda request: "cut" if request.method == "GET" and request.path.endswith(".tar") else None
    with pytest.raises(aiohttp.ClientPayloadError):
        await caller.download()
    assert "a download was aborted: the storage failed" in caplog.text


@pytest.mark.s3
@pytest.mark.parametrize(
    "name", ["EndpointConnectionError", "HTTPClientError", "ClientError", "OSError", "TimeoutError", "ConnectionError"]
)
def test_unreachable_bucket_is_503(name: str, caplog: pytest.LogCaptureFixture):
    from botocore import exceptions

    error = {
        "EndpointConnectionError": exceptions.EndpointConnectionError(endpoint_url="https://s3.example"),
        "HTTPClientError": exceptions.HTTPClientError(error="reset"),
        "ClientError": aiohttp.ClientError(),
        "OSError": OSError(errno.ENETUNREACH, "unreachable"),
        "TimeoutError": asyncio.TimeoutError(),
        "ConnectionError": ConnectionResetError(),
    }[name]
    expected = pytest.raises(StorageError, match="cannot reach the registry's bucket")
    with expected as raised, bucket.translate_s3_errors():
        raise error
    assert (raised.value.status, raised.value.retry_after) == (503, 5)
    assert caplog.messages == [f"cannot reach S3: {str(error) or type(error).__name__}"]


@pytest.mark.s3
@pytest.mark.parametrize(("status", "code"), [(400, "Throttling"), (503, "ServiceUnavailable"), (429, "SomethingElse")])
def test_throttled_bucket_is_503(status: int, code: str):
    from botocore.exceptions import ClientError

    response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    expected = pytest.raises(StorageError, match="the registry's bucket is overloaded")
    with expected as raised, bucket.translate_s3_errors():
        raise ClientError(response, "PutObject")
    assert (raised.value.status, raised.value.code, raised.value.retry_after) == (503, "SlowDown", 5)


@pytest.mark.s3
@pytest.mark.parametrize(
    "name", ["ResponseStreamingError", "StorageError", "ClientPayloadError", "ConnectionError", "TimeoutError"]
)
async def test_failed_read_of_object_is_oserror(name: str):
    """Errors of the connection to the client are of other classes."""
    from botocore.exceptions import ResponseStreamingError

    from async_bento.registry.blobs.s3 import Content, _OpenObject

    error = {
        "ResponseStreamingError": ResponseStreamingError(error="cut off"),
        "StorageError": StorageError("PreconditionFailed", "the object has changed", status=412),
        "ClientPayloadError": aiohttp.ClientPayloadError(),
        "ConnectionError": ConnectionResetError(),
        "TimeoutError": asyncio.TimeoutError(),
    }[name]

    class Body(AsyncExitStack):
        async def read(self, _: int) -> bytes:
            raise error

    async def get_object(**_: object) -> dict[str, Any]:
        return {"ETag": '"a"', "Body": Body()}

    client: Any = SimpleNamespace(get_object=get_object)
    opened = _OpenObject(client, {"Bucket": "bucket", "Key": "key"}, Content(1, '"a"'))
    with pytest.raises(OSError, match=f"the registry's bucket failed: {type(error).__name__}"):
        async for _ in opened.read(0, 1):
            pass


@pytest.mark.s3
@pytest.mark.parametrize(
    ("code", "status"), [("NoSuchUpload", 404), ("NotImplemented", 501), ("MethodNotAllowed", 405)]
)
async def test_unlistable_parts_have_no_time(code: str, status: int):
    """Some storages do not list the parts of an upload, or cannot abort it; the cleanup removes its record anyway."""
    from botocore.exceptions import ClientError

    from async_bento.registry.blobs.s3 import S3Blobs

    deleted: list[str] = []

    def refuse(name: str) -> Any:
        raise ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, name)

    async def abort(**_: object) -> None:
        refuse("AbortMultipartUpload")

    async def delete(**options: str) -> None:
        deleted.append(options["Key"])

    client: Any = SimpleNamespace(get_paginator=refuse, abort_multipart_upload=abort, delete_object=delete)
    blobs = S3Blobs(bucket.Bucket(client, "bucket", ""), client, url_expiry=60)
    assert await blobs.uploaded_at("bentos/iris/v1", "upload") is None
    await blobs.delete("bentos/iris/v1", "upload")
    assert len(deleted) == 1


@pytest.mark.s3
@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(404, "NoSuchKey", "NoSuchUpload"), (400, "InvalidArgument", "NoSuchUpload"), (503, "SlowDown", "SlowDown")],
)
async def test_unlistable_upload_is_unknown(status: int, code: str, expected: str):
    """Storages refuse a malformed id of an upload in several ways."""
    with pytest.raises(StorageError) as raised:
        await complete_again((status, code), None)
    assert raised.value.code == expected


@pytest.mark.s3
@pytest.mark.parametrize(
    ("etag", "is_found"),
    [
        (f'"{hashlib.md5(bytes(16)).hexdigest()}-1"', True),
        (f'"{"1" * 32}"', True),
        (f'"{"1" * 32}-1"', False),
        (None, False),
    ],
)
async def test_repeated_completion_checks_etag(etag: str | None, is_found: bool):
    """The upload is unknown, since the response to a first call was lost, or since its parts are others."""
    if is_found:
        assert (await complete_again((404, "NoSuchUpload"), etag)).etag == etag
    else:
        with pytest.raises(NoSuchUploadError):
            await complete_again((404, "NoSuchUpload"), etag)


@pytest.mark.s3
async def test_repeated_completion_without_part_list():
    """s3rver lists no parts, and fails where a completion is repeated."""
    etag = '"11111111111111111111111111111111-1"'
    assert await complete_again((501, "NotImplemented"), etag) == Content(5, etag)


async def complete_again(listing: tuple[int, str], etag: str | None) -> Content:
    """Complete an upload of one part, whose list fails, and whose object has an ETag."""
    from botocore.exceptions import ClientError

    from async_bento.registry.blobs.s3 import S3Blobs

    def refuse(status: int, code: str) -> Any:
        raise ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "ListParts")

    async def head_object(**_: object) -> dict[str, Any]:
        return {"ETag": etag, "ContentLength": 5} if etag else refuse(404, "404")

    client: Any = SimpleNamespace(get_paginator=lambda _: refuse(*listing), head_object=head_object)
    blobs = S3Blobs(bucket.Bucket(client, "bucket", ""), client, url_expiry=60)
    return await blobs.complete_multipart("bentos/iris/v1/id", "upload", [CompletedPart(1, "0" * 32)])


@pytest.mark.s3
async def test_read_of_object_requests_its_range():
    from async_bento.registry.blobs.s3 import Content, _OpenObject

    ranges: list[str] = []

    class Body(AsyncExitStack):
        chunks = (b"0123456789", b"")

        async def read(self, _: int) -> bytes:
            chunk, *self.chunks = self.chunks
            return chunk

    async def get_object(**options: str) -> dict[str, Any]:
        ranges.append(options["Range"])
        return {"ETag": '"a"', "Body": Body()}

    client: Any = SimpleNamespace(get_object=get_object)
    opened = _OpenObject(client, {"Bucket": "bucket", "Key": "key"}, Content(100, '"a"'))
    assert [chunk async for chunk in opened.read(10, 20)] == [b"0123456789"]
    assert [chunk async for chunk in opened.read(20, 20)] == []
    assert ranges == ["bytes=10-19"]


async def test_cleanup_failure_is_logged(caller: Caller, faulty: FaultyS3, caplog: pytest.LogCaptureFixture):
    await caller.create()
    await caller.upload(b"old")
    await caller.upload(b"new")
    faulty.fault = lambda request: (507, "StorageFull") if "uploads" in request.query else None
    await clean_up(caller, hours=2)
    assert "the cleanup failed: the registry's bucket failed: StorageFull" in caplog.text
    assert len([key for key in faulty.objects if key.endswith(".tar")]) == 1  # other steps continue


@pytest.mark.parametrize("status", [405, 501])
async def test_unlistable_uploads_log_once(
    caller: Caller, faulty: FaultyS3, caplog: pytest.LogCaptureFixture, status: int
):
    await caller.create()
    await caller.upload(b"bytes")
    faulty.fault = lambda request: (status, "NotImplemented") if "uploads" in request.query else None
    for _ in range(2):
        await clean_up(caller, hours=2)
    (record,) = caplog.records
    assert "stay in the bucket: the registry's bucket does not support ListMulti" in record.getMessage()


async def test_download_detects_change(caller: Caller, faulty: FaultyS3):
    await caller.create()
    await caller.upload(bytes(2**20))

    def replace(request: Any) -> None:
        if request.method == "GET" and request.path.endswith(".tar"):
            faulty.objects[request.match_info["key"]] = b"x" * 2**20  # like some servers, it ignores If-Match

    faulty.fault = replace
    with pytest.raises(aiohttp.ClientPayloadError):
        await caller.download()


async def test_upload_without_100_continue(caller: Caller):
    """Some servers and proxies know no `Expect`, and aiohttp would wait for `100 Continue` until it times out."""
    await caller.create()
    assert (await caller.upload(b"bytes")).status == 200
    assert (await caller.download()).body == b"bytes"


async def test_upload_sends_no_checksums(caller: Caller, faulty: FaultyS3):
    """botocore sends these checksums by default, and Backblaze B2 refuses them."""
    sent: set[str] = set()
    faulty.fault = lambda request: sent.update(map(str.lower, request.headers))
    await caller.create()
    assert (await caller.upload(b"bytes")).status == 200
    assert "x-amz-date" in sent
    assert {name for name in sent if "checksum" in name or name in {"expect", "x-amz-trailer"}} == set()

"""Faults of a bucket, at the start and later."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_bento.cli import main
from async_bento.errors import ConfigError
from async_bento.registry import s3_backend
from async_bento.registry.blobs import bucket
from async_bento.registry.s3_backend import S3Bucket
from async_bento.registry.server import LocalRegistry
from tests.cli_runner import make_runner
from tests.eventually import eventually
from tests.registry.conftest import BENTOS, BUCKET, Caller, s3_only
from tests.registry.faulty_s3 import FaultyS3, faulty_s3

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

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
async def caller(faulty: FaultyS3) -> AsyncIterator[Caller]:
    async with AsyncExitStack() as stack:
        registry = LocalRegistry(S3Bucket("bucket", endpoint=faulty.endpoint), grace=0.1)
        await stack.enter_async_context(registry)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Caller(registry, session, BENTOS)


async def rejection(where: S3Bucket, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        await LocalRegistry(where, **options).start()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Conditional writes


@pytest.mark.parametrize(
    ("honours", "atomic", "why"),
    [
        ({"If-Match"}, True, "If-None-Match: *: 4 of 4 racing PUTs won"),
        ({"If-None-Match"}, True, "If-Match: 4 of 4 racing PUTs won"),
        (set(), True, "If-None-Match: *: 4 of 4 racing PUTs won"),
        ({"If-None-Match", "If-Match"}, False, "If-None-Match: *: 4 of 4 racing PUTs won"),
    ],
)
async def test_bucket_ignoring_conditions_is_rejected(faulty: FaultyS3, honours: set[str], atomic: bool, why: str):
    faulty.honours, faulty.atomic = frozenset(honours), atomic
    message = await rejection(S3Bucket("bucket", endpoint=faulty.endpoint))
    assert "does not honour conditional writes" in message
    assert why in message
    assert [key for key in faulty.objects if key.startswith("probes/")] == []


async def test_bucket_honouring_conditions_is_accepted(caller: Caller, faulty: FaultyS3):
    await caller.create()
    assert [key for key in faulty.objects if key.startswith("probes/")] == []


async def test_bucket_without_conditions_is_rejected(faulty: FaultyS3):
    def not_implemented(request: web.Request) -> tuple[int, str] | None:
        return (501, "NotImplemented") if "If-Match" in request.headers else None

    faulty.fault = not_implemented
    assert "NotImplemented" in await rejection(S3Bucket("bucket", endpoint=faulty.endpoint))


# Start


async def test_start_with_unknown_bucket_raises(weed: Seaweed, credentials: None, storage: str):
    message = await rejection(S3Bucket("no-such-bucket", endpoint=weed.endpoint))
    assert message.startswith(f"cannot use s3://no-such-bucket/ at {weed.endpoint}: ")
    assert "NoSuchBucket" in message


async def test_start_with_wrong_credentials_raises(
    weed: Seaweed, credentials: None, storage: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong one")
    message = await rejection(S3Bucket(BUCKET, endpoint=weed.endpoint))
    assert "SignatureDoesNotMatch" in message
    assert "a wrong one" not in message


async def test_start_without_write_permission_raises(
    weed: Seaweed, credentials: None, storage: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "reader")
    assert "AccessDenied" in await rejection(S3Bucket(BUCKET, endpoint=weed.endpoint))


def test_start_without_credentials_prints_one_line(credentials: None, storage: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    command = [sys.executable, "-m", "async_bento", "registry", "serve", "--s3", "bucket"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: cannot connect to S3: there are no AWS credentials. Set AWS_ACCESS_KEY_ID")
    assert len(result.stderr.splitlines()) == 1


async def test_start_with_unreachable_endpoint_raises(faulty: FaultyS3):
    message = await rejection(S3Bucket("bucket", endpoint="http://127.0.0.1:1"))
    assert message == "cannot use s3://bucket/ at http://127.0.0.1:1: cannot reach the registry's bucket"


@pytest.mark.parametrize(("is_aws", "ours"), [(True, None), (True, "us-west-2"), (True, "eu-west-1"), (False, None)])
async def test_start_in_another_region_raises(
    faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, is_aws: bool, ours: str | None
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
        async with LocalRegistry(where):
            pass


async def test_start_with_newer_format_raises(faulty: FaultyS3):
    faulty.objects["registry.json"] = b'{"format": 99}'
    assert "newer async-bento" in await rejection(S3Bucket("bucket", endpoint=faulty.endpoint))


async def test_start_with_foreign_registry_json_raises(faulty: FaultyS3):
    faulty.objects["registry.json"] = b"a page"
    message = await rejection(S3Bucket("bucket", endpoint=faulty.endpoint))
    assert "async-bento did not write its registry.json" in message


@pytest.mark.parametrize("options", [{"url_expiry": 604_801}, {"url_expiry": 0}])
async def test_url_expiry_out_of_range_raises(faulty: FaultyS3, options: dict[str, Any]):
    with pytest.raises(ConfigError, match="url_expiry"):
        await LocalRegistry(S3Bucket("bucket", endpoint=faulty.endpoint), **options).start()


def serve(*arguments: str) -> tuple[int, str]:
    result = make_runner().invoke(main, ["registry", "serve", "--port", "0", *arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_serve_command_reports_an_error_in_one_line(credentials: None, storage: str):
    code, message = serve("--s3", "bucket", "--s3-endpoint", "http://127.0.0.1:1")
    assert code == 2
    assert [line for line in message.splitlines() if line.startswith("Error")] == [
        "Error: cannot use s3://bucket/ at http://127.0.0.1:1: cannot reach the registry's bucket"
    ]


def test_serve_command_without_extra_names_it(monkeypatch: pytest.MonkeyPatch, storage: str):
    monkeypatch.setitem(sys.modules, "async_bento.registry.blobs.bucket", None)
    code, message = serve("--s3", "bucket")
    assert code == 2
    assert 'pip install "async-bento[s3]"' in message


# Requests


async def test_create_after_lost_response_succeeds(caller: Caller, faulty: FaultyS3):
    lost: list[str] = []

    def lose_first(request: web.Request) -> str | None:
        if request.method != "PUT" or request.path in lost:
            return None
        lost.append(request.path)
        return "lost"

    faulty.fault = lose_first
    body = {"name": "iris", "description": ""}
    assert (await caller.api("POST", "/bento_repositories", json=body)).status == 200
    faulty.fault = lambda _: None
    assert (await caller.api("POST", "/bento_repositories", json=body)).status == 400
    faulty.fault = lose_first
    await caller.create()
    lost.clear()
    updated = await caller.ok("PATCH", f"{caller.items()}/v1", json={"description": "new"})
    assert updated["description"] == "new"
    assert lost == ["/bucket/items/bentos/iris/v1.json"]


async def test_write_conflict_is_retried(caller: Caller, faulty: FaultyS3):
    conflicts = [(409, "ConditionalRequestConflict")]
    faulty.fault = lambda request: conflicts.pop() if conflicts and request.method == "PUT" else None
    await caller.create()
    assert conflicts == []
    conflicts.append((409, "ConditionalRequestConflict"))
    await caller.ok("PATCH", f"{caller.items()}/v1", json={"description": "new"})
    assert (await caller.get())["description"] == "new"


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
    caller: Caller, faulty: FaultyS3, fault: tuple[int, str] | str, status: int, retry_after: str | None, message: str
):
    await caller.create()
    faulty.fault = lambda _: fault
    for method, path in (
        ("GET", f"{caller.items()}/v1"),
        ("GET", "/bentos"),
        ("PATCH", f"{caller.items()}/v1/start_upload"),
        ("POST", caller.items()),
    ):
        body = {"version": "v2", "build_at": "2024-05-01 10:20:30.123456"} if method == "POST" else None
        response = await caller.api(method, path, json=body)
        assert (response.status, response.headers.get("Retry-After")) == (status, retry_after), path
        assert message in response.json["error"], path


async def test_download_cut_by_bucket_breaks_the_connection(caller: Caller, faulty: FaultyS3):
    await caller.create()
    await caller.upload(bytes(2**20))
    faulty.fault = lambda request: "cut" if request.method == "GET" and request.path.endswith(".tar") else None
    with pytest.raises(aiohttp.ClientPayloadError):
        await caller.download()


async def test_list_reads_changed_records_only(caller: Caller, faulty: FaultyS3):
    for number in range(5):
        await caller.create(version=f"v{number}")
    await caller.list()
    await caller.ok("PATCH", f"{caller.items()}/v3", json={"description": "new"})
    faulty.requests.clear()
    page = await caller.list()
    assert [item["description"] for item in page["items"]] == ["", "new", "", "", ""]
    assert [request for request in faulty.requests if request.startswith("GET items/")] == [
        "GET items/bentos/iris/v3.json"
    ]


async def test_record_deleted_by_hand_disappears(caller: Caller, faulty: FaultyS3):
    await caller.create(version="v1")
    await caller.create(version="v2")
    await caller.list()
    del faulty.objects["items/bentos/iris/v2.json"]
    assert [item["version"] for item in (await caller.list())["items"]] == ["v1"]
    assert (await caller.ok("GET", "/bento_repositories/iris"))["latest_bento"]["version"] == "v1"


async def test_abandoned_uploads_sweep_failure_is_retried(
    faulty: FaultyS3, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(s3_backend, "_SWEEP_INTERVAL", 0.01)
    faulty.fault = lambda request: (501, "NotImplemented") if "uploads" in request.query else None
    async with LocalRegistry(S3Bucket("bucket", endpoint=faulty.endpoint)):
        await eventually(lambda: caplog.text.count("cannot abort abandoned uploads") > 1)
    assert "cannot abort abandoned uploads: the registry's bucket failed: NotImplemented" in caplog.text

"""A mirror between clients and another registry: its requests, and its responses without the upstream."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shutil
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import anyio
import pytest
from aiohttp import web
from pydantic import SecretStr
from yarl import URL

from async_bento import (
    APIConnectionError,
    APIStatusError,
    AsyncBentoAPI,
    BentoStore,
    ClosedError,
    Config,
    ConfigError,
    ModelStore,
    RateLimitError,
    ServerError,
)
from async_bento.cli import main
from async_bento.registry import LocalRegistry, S3Bucket
from async_bento.registry.errors import StorageError
from async_bento.registry.mirror import fetch as fetch_module, mirror as mirror_module
from async_bento.registry.mirror.storage import MirrorStorage, Stored
from async_bento.registry.mirror.upstream import Remote, Upstream, _pass_on
from async_bento.registry.records.audit import AuditLog
from async_bento.registry.records.sql import Records
from async_bento.rest.session import _warn_of_stale_mirror
from tests.builders import MiB, contents, make_bento, make_model, random_bytes
from tests.cli.test_cli import start
from tests.cli_runner import make_runner
from tests.eventually import eventually
from tests.fault_proxy import DOWNLOAD, GET, Exchange, FaultProxy
from tests.fixtures import FEW_RANGES
from tests.platforms import IS_WINDOWS, KILLED
from tests.registry.conftest import BENTOS, MODELS, Caller
from tests.registry.test_access import create_token
from tests.servers import free_ports
from tests.silent import say_nothing, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from async_bento.registry.item_types import ItemRef

    StartMirror = Callable[..., Awaitable[LocalRegistry]]
    MakeApi = Callable[..., AsyncBentoAPI]

FETCHES = f"{GET}|{DOWNLOAD}"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the mirror retry without waits, and use ranges so small that a small model has many."""
    monkeypatch.setattr("async_bento.registry.mirror.upstream._PAUSE", 0)
    for name, value in {
        "RETRY_ATTEMPTS": "2",
        "RETRY_WAIT_INITIAL": "0",
        "RETRY_WAIT_MAX": "0",
        "TRANSFER_RANGE_SIZE": str(MiB // 4),
    }.items():
        monkeypatch.setenv(f"ASYNC_BENTO_{name}", value)


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[FaultProxy]:
    """The upstream behind a fault proxy."""
    async with (
        LocalRegistry(tmp_path / "upstream", grace=0.1, api_token="upstream-secret") as registry,
        FaultProxy(registry, streams_downloads=False) as proxy,
    ):
        yield proxy


@pytest.fixture
async def start_mirror(tmp_path: Path, upstream: FaultProxy) -> AsyncIterator[StartMirror]:
    """Start mirrors of the upstream, which stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(name: str = "mirror", **options: Any) -> LocalRegistry:
            defaults: dict[str, Any] = {
                "upstream": upstream.endpoint,
                "upstream_token": upstream.registry.api_token,
                "grace": 0.1,
            }
            return await stack.enter_async_context(LocalRegistry(tmp_path / name, **(defaults | options)))

        yield start


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> LocalRegistry:
    return await start_mirror()


@pytest.fixture
async def make_api(tmp_path: Path) -> AsyncIterator[MakeApi]:
    """Make clients of a registry, each with its own home."""
    async with AsyncExitStack() as stack:

        def make(registry: Any, home: str, **config: Any) -> AsyncBentoAPI:
            retry = {"attempts": 3, "wait_initial": 0, "wait_max": 0}
            api = AsyncBentoAPI(
                endpoint=registry.endpoint,
                api_token=getattr(registry, "registry", registry).api_token,
                bento_store=BentoStore(tmp_path / home / "bentos"),
                model_store=ModelStore(tmp_path / home / "models"),
                config=Config(**({"retry": retry} | config)),
                progress=False,
            )
            stack.push_async_callback(api.aclose)
            return api

        yield make


@pytest.fixture
async def publisher(upstream: FaultProxy, make_api: MakeApi) -> AsyncBentoAPI:
    """A client of the upstream, whose home is `publisher`."""
    return make_api(upstream, "publisher", transfer={"part_size": 5 * MiB})


async def push_model(publisher: AsyncBentoAPI, home: Path, tag: str, size: int, seed: int = 0) -> Path:
    path = await asyncio.to_thread(make_model, home / "publisher", tag, {"weights": random_bytes(size, seed)})
    await publisher.models.push(tag, force=True)
    return path


class Switch:
    """A fault for all requests of the upstream: it can go down, and hold the bytes after a number of ranges."""

    def __init__(self) -> None:
        self.is_down = False
        self.n_free: int | None = None
        self.released = asyncio.Event()
        self.held = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        is_fetch = exchange.request.path.startswith("/blobs/") or exchange.request.path.endswith("/download")
        if is_fetch and self.n_free is not None:
            self.n_free -= 1
            if self.n_free < 0:
                self.held.set()
                await self.released.wait()
        if self.is_down:
            return exchange.disconnect()
        return await exchange.forward()

    def go_down(self) -> None:
        self.is_down = True
        self.released.set()

    def come_back(self) -> None:
        self.is_down = False
        self.n_free = None


@pytest.fixture
def switch(upstream: FaultProxy) -> Switch:
    switch = Switch()
    upstream.add_fault("", switch, times=None)
    return switch


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


@pytest.fixture
def ask(mirror: LocalRegistry, session: aiohttp.ClientSession) -> Caller:
    """A plain client of the mirror, about models."""
    return Caller(mirror, session, MODELS)


async def sha256(response: aiohttp.ClientResponse) -> str:
    digest = hashlib.sha256()
    async for chunk in response.content.iter_any():
        digest.update(chunk)
    return digest.hexdigest()


def fetched_ranges(upstream: FaultProxy) -> list[str]:
    """Return the ranges requested from the upstream."""
    return [request.headers.get("Range", "whole") for request in upstream.matching(FETCHES)]


def is_once(upstream: FaultProxy, size: int) -> bool:
    """Return whether the ranges requested from the upstream cover an object exactly once."""
    bounds = sorted(tuple(map(int, each.removeprefix("bytes=").split("-"))) for each in fetched_ranges(upstream))
    ends = [0, *(stop + 1 for _, stop in bounds)]
    return [start for start, _ in bounds] == ends[:-1] and ends[-2] < size <= ends[-1]


async def test_many_pulls_fetch_once(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, make_api: MakeApi, ask: Caller
):
    source = await push_model(publisher, tmp_path, "mod:m1", 20 * MiB)
    url = f"{ask.registry.endpoint}/api/v1{ask.items('mod')}/m1/download"
    upstream.requests.clear()

    async def download() -> tuple[int, str]:
        headers = {"X-YATAI-API-TOKEN": ask.registry.api_token}
        async with ask.session.get(url, headers=headers) as response:
            assert response.status == 200
            return int(response.headers["Content-Length"]), await sha256(response)

    async def pull(number: int) -> None:
        model = await make_api(ask.registry, f"home-{number}", transfer=FEW_RANGES).models.pull("mod:m1")
        assert contents(model.path) == contents(source)

    downloads, _ = await asyncio.gather(
        asyncio.gather(*(download() for _ in range(45))), asyncio.gather(*(pull(number) for number in range(5)))
    )
    ((size, _),) = {*downloads}
    assert is_once(upstream, size)
    await eventually(lambda: is_hit(ask, "m1"))
    assert is_once(upstream, size)


async def test_late_request_fetches_once(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, monkeypatch: pytest.MonkeyPatch
):
    """A request that missed the bytes before they were stored finds them later, and fetches nothing."""
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    looked, stored = asyncio.Event(), asyncio.Event()
    find = MirrorStorage.find

    async def find_slowly(self: MirrorStorage, ref: ItemRef) -> Stored | None:
        found = await find(self, ref)
        if not looked.is_set():
            looked.set()
            await stored.wait()
        return found

    monkeypatch.setattr(MirrorStorage, "find", find_slowly)
    slow = asyncio.create_task(is_hit(ask, "m1"))
    await looked.wait()
    await eventually(lambda: is_hit(ask, "m1"))
    stored.set()
    assert await slow
    assert len(fetched_ranges(upstream)) == 1


async def test_fetch_streams_arrived_bytes(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, switch: Switch, ask: Caller
):
    await push_model(publisher, tmp_path, "mod:m1", 4 * MiB)
    switch.n_free = 4
    headers = {"X-YATAI-API-TOKEN": ask.registry.api_token}
    url = f"{ask.registry.endpoint}/api/v1{ask.items('mod')}/m1/download"
    async with ask.session.get(url, headers=headers) as first:
        assert first.headers["Cache-Status"] == "async-bento; fwd=miss; stored"
        size = int(first.headers["Content-Length"])
        beginning = await first.content.readexactly(MiB // 4)
        assert switch.held.is_set()
        wanted = headers | {"Range": f"bytes={size - 100}-", "If-Match": first.headers["ETag"]}
        async with ask.session.get(url, headers=wanted) as second:
            assert second.status == 206
            assert second.headers["Cache-Status"] == "async-bento; fwd=miss; stored; collapsed"
            assert second.headers["Content-Range"] == f"bytes {size - 100}-{size - 1}/{size}"
            switch.released.set()
            end = await second.read()
        rest = await first.read()
    assert len(beginning) + len(rest) == size
    assert rest.endswith(end)
    assert is_once(upstream, size)


def first_byte_fetched(upstream: FaultProxy) -> int:
    return min(int(each.removeprefix("bytes=").partition("-")[0]) for each in fetched_ranges(upstream))


async def break_fetch(ask: Caller, switch: Switch) -> None:
    """Download a model from the mirror, while its upstream goes down."""
    headers = {"X-YATAI-API-TOKEN": ask.registry.api_token}
    url = f"{ask.registry.endpoint}/api/v1{ask.items('mod')}/m1/download"
    async with ask.session.get(url, headers=headers) as response:
        await response.content.readexactly(MiB // 4)
        await switch.held.wait()
        switch.go_down()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_fetch_resumes_after_outage(
    tmp_path: Path,
    upstream: FaultProxy,
    publisher: AsyncBentoAPI,
    switch: Switch,
    ask: Caller,
    make_api: MakeApi,
    caplog: pytest.LogCaptureFixture,
):
    source = await push_model(publisher, tmp_path, "mod:m1", 12 * MiB)  # three parts
    switch.n_free = 30
    await break_fetch(ask, switch)
    refused = await ask.api("GET", f"{ask.items('mod')}/m1/download")
    assert refused.status == 502
    assert "cannot fetch model mod:m1 from the upstream" in refused.json["error"]
    assert (await ask.list())["items"] == []
    switch.come_back()
    upstream.requests.clear()
    model = await make_api(ask.registry, "home").models.pull("mod:m1")
    assert contents(model.path) == contents(source)
    assert first_byte_fetched(upstream) == 5 * MiB
    assert "upstream-secret" not in caplog.text


@pytest.mark.parametrize("etag", ['"one object"', 'W/"any object"', None], ids=["strong", "weak", "none"])
async def test_fetch_resumes_by_strong_etag(
    etag: str | None,
    tmp_path: Path,
    upstream: FaultProxy,
    publisher: AsyncBentoAPI,
    switch: Switch,
    ask: Caller,
    make_api: MakeApi,
    monkeypatch: pytest.MonkeyPatch,
):
    """Without checksums, only a strong ETag shows that the rest belongs to the same object."""
    source = await push_model(publisher, tmp_path, "mod:m1", MiB)
    upstream.hides_checksums = True
    forward = Exchange.forward

    async def forward_with_etag(exchange: Exchange) -> web.Response:
        response = await forward(exchange, without=["if-match"])
        if response.headers.pop("ETag", None) is not None and etag is not None:
            response.headers["ETag"] = etag
        return response

    monkeypatch.setattr(Exchange, "forward", forward_with_etag)
    switch.n_free = 3
    await break_fetch(ask, switch)
    switch.come_back()
    upstream.requests.clear()
    model = await make_api(ask.registry, "home").models.pull("mod:m1")
    assert contents(model.path) == contents(source)
    assert (first_byte_fetched(upstream) > 0) is (etag == '"one object"')


async def test_recent_record_is_not_requested(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, monkeypatch: pytest.MonkeyPatch
):
    """A client gets the bytes of the record it has just read; the mirror keeps some records for a time."""
    now = 0.0
    monkeypatch.setattr(mirror_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(mirror_module, "_MAX_RECORDS", 2)
    for number in range(3):
        await push_model(publisher, tmp_path, f"mod:m{number}", 1000, seed=number)

    async def requested_by_download(*versions: str) -> list[str]:
        upstream.requests.clear()
        for version in versions:
            await is_hit(ask, version)
        return [request.path[-2:] for request in upstream.matching(r"GET .*/models/m\d$")]

    for number in range(3):
        await ask.get("mod", f"m{number}")
    assert await requested_by_download("m1", "m2", "m0") == ["m0"]
    now += mirror_module._FRESH
    await ask.get("mod", "m1")
    assert await requested_by_download("m0", "m1") == []
    now += 0.1
    assert await requested_by_download("m0", "m1") == ["m0"]


async def test_range_of_object_requests_no_record(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, monkeypatch: pytest.MonkeyPatch
):
    """A client names the object of its first range by the ETag."""
    monkeypatch.setattr(mirror_module, "_FRESH", -1)
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    await eventually(lambda: is_hit(ask, "m1"))
    path = f"{ask.items('mod')}/m1/download"
    etag = (await ask.api("GET", path)).headers["ETag"]
    upstream.requests.clear()
    assert (await ask.api("GET", path, headers={"If-Match": etag, "Range": "bytes=1-2"})).status == 206
    assert upstream.requests == []
    assert (await ask.api("GET", path, headers={"If-Match": '"another"'})).status == 412
    assert len(upstream.requests) == 1


async def test_damaged_bytes_are_refetched(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, make_api: MakeApi
):
    source = await push_model(publisher, tmp_path, "mod:m1", 4 * MiB)

    async def damage(exchange: Exchange) -> web.StreamResponse:
        response = await exchange.forward()
        assert isinstance(response.body, bytes)
        response.body = response.body[:1000] + bytes(1) + response.body[1001:]
        return response

    upstream.add_fault(GET, damage, times=1, skip=15)
    headers = {"X-YATAI-API-TOKEN": ask.registry.api_token}
    url = f"{ask.registry.endpoint}/api/v1{ask.items('mod')}/m1/download"
    async with ask.session.get(url, headers=headers) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    model = await make_api(ask.registry, "home").models.pull("mod:m1")
    assert contents(model.path) == contents(source)
    assert len(fetched_ranges(upstream)) > len({*fetched_ranges(upstream)})


async def test_silent_upstream_times_out(
    start_mirror: StartMirror, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("async_bento.registry.mirror.upstream._ANSWER_TIMEOUT", 0.5)
    async with serving(say_nothing) as address:
        ask = Caller(await start_mirror(upstream=f"http://{address}"), session, MODELS)
        answer = await ask.api("GET", "/models")
    assert (answer.status, answer.json["items"]) == (200, [])
    assert answer.headers["Cache-Status"] == "async-bento; hit; detail=upstream-down"


@pytest.mark.parametrize(
    "error",
    [
        APIConnectionError("gone"),
        ServerError("busy", status=503),
        RateLimitError("slow down", status=429),
        asyncio.TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_upstream_failure_counts_as_outage(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
):
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Upstream, "_send", fail)
    reached: list[bool] = []
    upstream = Upstream("http://127.0.0.1:9", SecretStr("token"), reached.append)
    assert await upstream.get("bentos") is None
    assert reached == [True, False]
    assert f"so the mirror serves what it has: {str(error) or 'no response within 10 s'}" in caplog.text
    await upstream.aclose()


async def test_upstream_rests_after_failure(monkeypatch: pytest.MonkeyPatch):
    requested: list[str] = []

    async def fail(_: Upstream, path: str) -> None:
        requested.append(path)
        raise APIConnectionError("gone")

    monkeypatch.setattr("async_bento.registry.mirror.upstream._PAUSE", 60)
    monkeypatch.setattr(Upstream, "_send", fail)
    upstream = Upstream("http://127.0.0.1:9", SecretStr("token"), lambda _: None)
    for path in ("first", "second"):
        assert await upstream.get(path) is None
    assert requested == ["first"]
    await upstream.aclose()


async def test_one_request_probes_upstream(monkeypatch: pytest.MonkeyPatch):
    """While the upstream is away, one request waits for it, and the others get what the mirror has."""
    requested: list[str] = []
    probing, released = asyncio.Event(), asyncio.Event()

    async def send(_: Upstream, path: str) -> Any:
        requested.append(path)
        if path == "lost":
            raise APIConnectionError("gone")
        probing.set()
        await released.wait()
        return SimpleNamespace(status=200, body=b"{}")

    monkeypatch.setattr(Upstream, "_send", send)
    reached: list[bool] = []
    upstream = Upstream("http://127.0.0.1:9", SecretStr("token"), reached.append)
    with anyio.fail_after(10):
        for _ in range(2):
            assert await upstream.get("lost") is None
        probe = asyncio.create_task(upstream.get("probe"))
        await probing.wait()
        assert await upstream.get("meanwhile") is None
        released.set()
        assert await probe is not None
        assert await upstream.get("after") is not None
    assert requested == ["lost", "lost", "probe", "after"]
    assert reached == [True, False, False, True, True]
    await upstream.aclose()


@pytest.mark.parametrize(
    ("finished", "updated", "created", "marker"), [(3, 2, 1, 3), (None, 2, 1, 2), (None, None, 1, 1)]
)
def test_marker_is_time_of_push(finished: Any, updated: Any, created: Any, marker: Any):
    """A change of labels also sets `updated_at`, and is no reason for a fetch."""
    record: Any = SimpleNamespace(upload_finished_at=finished, updated_at=updated, created_at=created)
    assert Remote(record, {}).marker == marker


@pytest.mark.parametrize(
    ("finished", "etag", "expected"),
    [(1, '"a"', True), (1, None, True), (1, '"b"', False), (2, '"a"', False), (2, None, False)],
)
def test_stored_bytes_match_record(finished: Any, etag: str | None, expected: bool):
    checksums = None if etag is None else SimpleNamespace(etag=etag)
    record: Any = SimpleNamespace(upload_finished_at=finished, checksums=checksums)
    item: Any = SimpleNamespace(upload_finished_at=1)
    content: Any = SimpleNamespace(etag='"a"')
    assert Stored(item, "key", content).is_of(Remote(record, {})) is expected


def test_records_in_any_response_are_changed():
    """Clients download from the mirror; what a user wrote into a manifest stays."""
    record = {"upload_status": "success", "presigned_download_url": "https://s3", "manifest": {"upload_status": 1}}
    changed = record | {"transmission_strategy": "proxy", "presigned_download_url": "", "presigned_upload_url": ""}

    def within(each: object) -> list[Any]:
        return [{"items": [each], "models": [each], "repository": {"latest_bento": each, "latest_model": each}}]

    assert json.loads(_pass_on(json.dumps(within(record)).encode())) == within(changed)


@pytest.mark.parametrize(("size", "evicted"), [(0, 0), (1, 0), (2, 1), (4, 1), (5, 2), (10, 3)], ids=str)
async def test_eviction_makes_room(size: int, evicted: int):
    """A mirror of 10 bytes has three versions of 3 bytes."""
    stored = {f"m{number}": 3 for number in range(3)}  # the version that was pulled least recently comes first
    deleted: list[str] = []

    async def usage() -> Any:
        return SimpleNamespace(current=sum(stored.values()))

    async def unused_since(_: datetime) -> list[Any]:
        return []

    async def least_recently_pulled(_: int) -> list[Any]:
        return [SimpleNamespace(kind="model", name="mod", version=version) for version in stored]

    async def delete(ref: ItemRef, *, by: object, force: bool) -> None:
        assert force  # also a model that a bento uses
        deleted.append(ref.version)
        del stored[ref.version]

    opened: Any = SimpleNamespace(
        records=None,
        blob_records=SimpleNamespace(usage=usage, unused_since=unused_since),
        retention=SimpleNamespace(least_recently_pulled=least_recently_pulled),
        audit=None,
        uploads=SimpleNamespace(delete=delete),
    )
    await MirrorStorage(opened, cast("Any", None), 10, "http://upstream").make_room(size)
    assert deleted == ["m0", "m1", "m2"][:evicted]


@pytest.mark.parametrize("running", ["old", "new", None])
async def test_ended_fetch_spares_newer_one(running: str | None):
    """The item may have been pushed again while its bytes arrived."""
    published: list[str] = []

    async def publish(fetched: Any) -> None:
        published.append(fetched.key)

    fetches = {} if running is None else {"mod:m1": SimpleNamespace(key=running)}
    mirror: Any = SimpleNamespace(_storage=SimpleNamespace(publish=publish), _fetches=fetches, _n_ended=0)
    await mirror_module.Mirror._publish(mirror, cast("Any", SimpleNamespace(ref="mod:m1", key="old")))
    assert published == ["old"]
    assert [fetch.key for fetch in fetches.values()] == (["new"] if running == "new" else [])
    assert mirror._n_ended == 1


@pytest.mark.parametrize("name", ["build_at", "created_at", None])
async def test_mirrored_record_keeps_its_time(monkeypatch: pytest.MonkeyPatch, name: str | None):
    class CreatedError(Exception):
        """Instead of a record."""

    def create(fields: dict[str, Any]) -> None:
        raise CreatedError(fields["build_at"])

    record: Any = SimpleNamespace(build_at=None, created_at=None, labels=[])
    if name:
        setattr(record, name, datetime(2024, 5, 6, 7, 8, 9, 10, timezone.utc))
    monkeypatch.setattr("async_bento.registry.schemas.CreateRequest.model_validate", create)
    storage, ref, remote = SimpleNamespace(), SimpleNamespace(version="m1"), Remote(record, {})
    with pytest.raises(CreatedError) as created:
        await MirrorStorage._publish(cast("Any", storage), cast("Any", ref), remote, None)
    assert created.value.args[0].startswith("2024-05-06 07:08:09" if name else f"{datetime.now(timezone.utc):%Y-}")


@pytest.mark.parametrize(
    ("record", "name"),
    [({"repository": {"name": "mod"}}, "mod"), ({"repository": None}, ""), ({}, ""), ([], ""), ("mod", "")],
)
def test_repository_of_any_json_is_found(record: Any, name: str):
    assert mirror_module._repository_of(record) == name


async def test_start_removes_stale_fetches(tmp_path: Path, start_mirror: StartMirror):
    left = tmp_path / "mirror" / "blobs" / "models" / "mod" / "m1" / "3f9c"
    left.mkdir(parents=True)
    for name in ("upload", ".5d41"):
        (left / name).write_bytes(b"x")
    await start_mirror()
    assert not left.exists()


async def test_lost_bytes_are_refetched(tmp_path: Path, publisher: AsyncBentoAPI, ask: Caller):
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    await eventually(lambda: is_hit(ask, "m1"))
    shutil.rmtree(tmp_path / "mirror" / "blobs" / "models")
    assert not await is_hit(ask, "m1")
    await eventually(lambda: is_hit(ask, "m1"))


async def test_unstorable_bytes_are_served(
    tmp_path: Path,
    publisher: AsyncBentoAPI,
    ask: Caller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    await push_model(publisher, tmp_path, "mod:m1", 1000)

    async def fail(*_: object, **__: object) -> None:
        raise StorageError("InternalError", "the registry's database cannot be reached", status=503)

    with monkeypatch.context() as patch:
        patch.setattr(Records, "create_item", fail)
        for _ in range(2):
            assert not await is_hit(ask, "m1")
            await eventually(lambda: stored_bytes(tmp_path / "mirror") == 0)
    await eventually(lambda: is_hit(ask, "m1"))
    assert "database cannot be reached" in caplog.text


async def test_own_upstream_is_refused(start_mirror: StartMirror):
    (port,) = free_ports(1)
    with pytest.raises(ConfigError, match="a mirror cannot be its own upstream"):
        await start_mirror(port=port, upstream=f"http://127.0.0.1:{port}")


async def test_fetch_outlives_first_client(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, switch: Switch, ask: Caller
):
    await push_model(publisher, tmp_path, "mod:m1", 4 * MiB)
    switch.n_free = 4
    headers = {"X-YATAI-API-TOKEN": ask.registry.api_token}
    url = f"{ask.registry.endpoint}/api/v1{ask.items('mod')}/m1/download"
    first = await ask.session.get(url, headers=headers)
    async with ask.session.get(url, headers=headers) as second:
        first.close()
        switch.released.set()
        body = await second.read()
    assert len(body) == int(second.headers["Content-Length"])
    assert is_once(upstream, len(body))


async def test_outage_serves_cached_items(
    tmp_path: Path,
    publisher: AsyncBentoAPI,
    switch: Switch,
    ask: Caller,
    make_api: MakeApi,
    caplog: pytest.LogCaptureFixture,
):
    source = await push_model(publisher, tmp_path, "mod:m1", 1000)
    await push_model(publisher, tmp_path, "mod:m2", 1000, seed=1)
    await make_api(ask.registry, "first").models.pull("mod:m1")
    assert {item["version"] for item in (await ask.list())["items"]} == {"m1", "m2"}
    fresh = await ask.api("GET", f"{ask.items('mod')}/m1")
    assert fresh.headers["Cache-Status"] == "async-bento; fwd=request"
    assert await metric(ask, "upstream_up") == 1
    switch.go_down()
    _warn_of_stale_mirror.cache_clear()
    model = await make_api(ask.registry, "second").models.pull("mod:latest")
    assert model.tag.version == "m1"
    (warning,) = (each.message for each in caplog.records if each.name == "async_bento.rest")
    assert warning.startswith(f"the registry at {ask.registry.endpoint} is a mirror and cannot reach its upstream")
    assert contents(model.path) == contents(source)
    for path in (ask.items("mod"), f"{ask.items('mod')}/m1", f"{ask.items('mod')}/m1/download", "/models", "/labels"):
        answer = await ask.api("GET", path)
        assert (answer.status, answer.headers["Cache-Status"]) == (200, "async-bento; hit; detail=upstream-down"), path
    assert (await ask.ok("PATCH", f"{ask.items('mod')}/m1/presign_download_url"))["presigned_download_url"] == ""
    lost = await ask.api("GET", f"{ask.items('mod')}/m2")
    assert lost.status == 503
    assert lost.json["error"].endswith("this mirror does not have what you ask for. Try again later.")
    assert (await ask.api("GET", f"{ask.items('mod')}/m2/download")).status == 503
    assert await metric(ask, "upstream_up") == 0
    switch.come_back()
    assert {item["version"] for item in (await ask.list())["items"]} == {"m1", "m2"}

    async def is_up() -> bool:
        await ask.list()
        return await metric(ask, "upstream_up") == 1

    await eventually(is_up)  # a fetch that began before may have failed after the list
    warnings = [record.message for record in caplog.records if record.name.startswith("async_bento.registry")]
    assert [message.partition(":")[0] for message in warnings if "upstream" in message] == [
        "the upstream is away, so the mirror serves what it has",
        "the upstream http",
    ]


async def test_repushed_version_is_fetched(tmp_path: Path, publisher: AsyncBentoAPI, ask: Caller, make_api: MakeApi):
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    old = await make_api(ask.registry, "first").models.pull("mod:m1")
    source = await push_model(publisher, tmp_path, "mod:m1", 1000, seed=1)
    new = await make_api(ask.registry, "second").models.pull("mod:m1")
    assert contents(old.path) != contents(source)
    assert contents(new.path) == contents(source)
    await eventually(lambda: is_hit(ask, "m1"))
    await push_model(publisher, tmp_path, "mod:m1", 1000, seed=2)
    await ask.get("mod", "m1")
    any_object = await ask.api("GET", f"{ask.items('mod')}/m1/download", headers={"If-Match": "*"})
    assert any_object.headers["Cache-Status"] == "async-bento; fwd=miss; stored"


async def test_missing_record_is_requested_again(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller
):
    origin = Caller(upstream.registry, ask.session, MODELS)
    for path, status in ((f"{ask.items('mod')}/m1", 404), ("/models?count=x", 400)):
        refused, expected = await ask.api("GET", path), await origin.api("GET", path)
        assert (refused.status, refused.json) == (status, expected.json)
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    assert not await is_hit(ask, "m1")


async def test_restarted_mirror_keeps_items(tmp_path: Path, publisher: AsyncBentoAPI, ask: Caller):
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    await eventually(lambda: is_hit(ask, "m1"))
    await ask.registry.close()
    await ask.registry.start()
    assert await is_hit(ask, "m1")


async def test_abandoned_fetch_is_removed(
    tmp_path: Path, publisher: AsyncBentoAPI, switch: Switch, ask: Caller, monkeypatch: pytest.MonkeyPatch
):
    now = 1000.0
    monkeypatch.setattr(fetch_module, "time", SimpleNamespace(monotonic=lambda: now))
    for number, size in ((1, MiB), (2, 1000), (3, 1000)):
        await push_model(publisher, tmp_path, f"mod:m{number}", size, seed=number)
    switch.n_free = 3
    await break_fetch(ask, switch)
    switch.come_back()
    arrived = tmp_path / "mirror" / "blobs" / "models" / "mod" / "m1"
    now += fetch_module._ABANDONED_AFTER
    assert not await is_hit(ask, "m2")
    assert arrived.exists()
    now += 1
    assert not await is_hit(ask, "m3")
    assert not arrived.exists()


async def test_deleted_version_is_gone(tmp_path: Path, publisher: AsyncBentoAPI, ask: Caller, make_api: MakeApi):
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    await make_api(ask.registry, "first").models.pull("mod:m1")
    await publisher.models.delete("mod:m1")
    for path in ("m1", "m1/download"):
        assert (await ask.api("GET", f"{ask.items('mod')}/{path}")).status == 404


async def test_eviction_by_last_pull(
    tmp_path: Path,
    publisher: AsyncBentoAPI,
    start_mirror: StartMirror,
    make_api: MakeApi,
    session: Any,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level("INFO")
    for number in range(3):
        await push_model(publisher, tmp_path, f"mod:m{number}", MiB, seed=number)
    size = 2 * stored_bytes(tmp_path / "upstream") // 3
    mirror = await start_mirror(mirror_size=size)
    ask = Caller(mirror, session, MODELS)
    path = f"{ask.items('mod')}/m%d/download"
    for number in (0, 1, 0, 2):
        await eventually(lambda version=f"m{number}": is_hit(ask, version))
    states = [(await ask.api("GET", path % number)).headers["Cache-Status"] for number in (0, 2, 1)]
    assert [state.partition("; ")[2] for state in states] == ["hit", "hit", "fwd=miss; stored"]
    await eventually(lambda: stored_bytes(tmp_path / "mirror") <= size)
    await push_model(publisher, tmp_path, "mod:large", 3 * MiB)
    refused = await ask.api("GET", f"{ask.items('mod')}/large/download")
    assert refused.status == 409
    assert "more than this mirror may keep: 2.0 MiB" in refused.json["error"]
    assert "evicted model mod:m1, which nobody has pulled" in caplog.text


async def test_push_and_delete_are_refused(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, make_api: MakeApi
):
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    make_model(tmp_path / "home", "mod:m2")
    api = make_api(ask.registry, "home")
    with pytest.raises(APIStatusError, match=f"it only passes on pulls. Push to {upstream.endpoint}") as caught:
        await api.models.push("mod:m2")
    assert caught.value.status == 409
    with pytest.raises(APIStatusError, match=f"cannot change a record of a mirror.*Change it in {upstream.endpoint}"):
        await api.models.set_labels("mod:m1", {"stage": "prod"})
    with pytest.raises(APIStatusError, match="cannot delete from a mirror"):
        await api.models.delete("mod:m1")
    for method, action in (("PUT", "upload"), ("PATCH", "start_upload")):
        refused = await ask.api(method, f"{ask.items('mod')}/m1/{action}")
        assert (refused.status, "cannot push to a mirror" in refused.json["error"]) == (409, True)
    assert not upstream.matching("(POST|PUT|DELETE) .*m2")


async def test_upstream_token_is_secret(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    upstream.requests.clear()
    answers = [await ask.api("GET", f"{ask.items('mod')}/m1{end}") for end in ("", "/download")]
    for request in upstream.requests:
        token = request.headers.get("X-YATAI-API-TOKEN")
        assert token == (None if request.path.startswith("/blobs/") else "upstream-secret")
        assert ask.registry.api_token not in str(request.headers)
    assert (await ask.api("GET", "/models", token="upstream-secret")).status == 403
    assert "upstream-secret" not in f"{caplog.text} {ask.registry!r} {vars(ask.registry)} {answers}"
    assert "signature=" not in str(answers).lower()


async def test_hostile_name_is_rejected(upstream: FaultProxy, ask: Caller):
    """An encoded slash in a name would be another path of the upstream."""
    upstream.requests.clear()
    for path in ("..%2Fapi_tokens/models", "mod/models/..%2F..", "mod/models/..%2Fx/download", "..%2Fx"):
        url = URL(f"{ask.registry.endpoint}/api/v1/model_repositories/{path}", encoded=True)
        answer = await ask.bare("GET", url, headers={"X-YATAI-API-TOKEN": ask.registry.api_token})
        assert answer.status in {400, 404}, path
    assert upstream.requests == []


async def test_rejected_token_is_reported(start_mirror: StartMirror, session: aiohttp.ClientSession):
    ask = Caller(await start_mirror(upstream_token="wrong"), session, MODELS)
    answer = await ask.api("GET", "/models")
    assert answer.status == 502
    assert "rejects the token of this mirror" in answer.json["error"]


@pytest.mark.parametrize(
    ("status", "body"), [(200, "<html>"), (200, '"text"'), (200, "7"), (302, "<html>"), (404, "<html>")]
)
async def test_invalid_upstream_response_is_reported(upstream: FaultProxy, ask: Caller, status: int, body: str):
    async def answer(_: Exchange) -> web.StreamResponse:
        headers = {"Location": "/login"} if status == 302 else {}
        return web.Response(status=status, text=body, content_type="text/html", headers=headers)

    upstream.add_fault("GET .*/models", answer, times=None)
    reported = await ask.api("GET", "/models?count=3")
    assert reported.status == 502
    assert reported.json["error"] == (
        f"the upstream {upstream.endpoint} sent no valid response to models. Check its URL."
    )


async def test_client_resumes_download(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, mirror: LocalRegistry, make_api: MakeApi
):
    source = await push_model(publisher, tmp_path, "mod:m1", 4 * MiB)
    async with FaultProxy(mirror, streams_downloads=False) as between:
        cut = 0

        async def cut_off(exchange: Exchange) -> web.StreamResponse:
            nonlocal cut
            cut += 1
            return exchange.disconnect()

        between.add_fault(DOWNLOAD, cut_off, times=3, skip=4)
        transfer = {"range_size": MiB // 4}
        model = await make_api(between, "home", transfer=transfer).models.pull("mod:m1")
        assert contents(model.path) == contents(source)
        assert cut == 3
        assert len(between.matching(DOWNLOAD)) > 10


async def test_close_cancels_fetches(
    tmp_path: Path, publisher: AsyncBentoAPI, switch: Switch, start_mirror: StartMirror, session: aiohttp.ClientSession
):
    await push_model(publisher, tmp_path, "mod:m1", 4 * MiB)
    mirror = await start_mirror()
    before = asyncio.all_tasks()
    ask = Caller(mirror, session, MODELS)
    switch.n_free = 4
    url = f"{mirror.endpoint}/api/v1{ask.items('mod')}/m1/download"
    async with session.get(url, headers={"X-YATAI-API-TOKEN": mirror.api_token}) as response:
        await response.content.readexactly(1000)
        await mirror.close()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    switch.released.set()
    assert [*(tmp_path / "mirror" / "blobs").rglob("*")] == []
    await eventually(lambda: not [task for task in asyncio.all_tasks() - before if "mirror" in repr(task.get_coro())])


async def test_bento_pull_includes_models(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, make_api: MakeApi
):
    await asyncio.to_thread(make_model, tmp_path / "publisher", "mod:m1", {"weights": random_bytes(1000)})
    await asyncio.to_thread(make_bento, tmp_path / "publisher", "svc:v1", models=["mod:m1"])
    await publisher.push("svc:v1")
    body = {"labels": [{"key": "stage", "value": "prod"}]}
    origin = Caller(upstream.registry, ask.session, BENTOS)
    await origin.ok("PATCH", f"{origin.items('svc')}/v1", json=body)
    api = make_api(ask.registry, "home")
    bento = await api.pull("svc:latest", with_models=True)
    assert str(bento.tag) == "svc:v1"
    assert (tmp_path / "home" / "models" / "mod" / "m1" / "weights").exists()
    record = await api.get("svc:v1")
    assert [str(model.tag) for model in record.models] == ["mod:m1"]
    assert [(label.key, label.value) for label in record.labels] == [("stage", "prod")]
    assert record.transmission_strategy == "proxy"


async def test_hub_model_records_are_kept(upstream: FaultProxy, switch: Switch, ask: Caller):
    """Their files are on the Hub, so that no client downloads them from the mirror."""
    origin = Caller(upstream.registry, ask.session, MODELS)
    manifest = {"metadata": {"registry": "huggingface", "model_id": "org/model", "revision": "abc"}}
    labels = [{"key": "stage", "value": "prod"}]
    await origin.create("hub", "abc", manifest=manifest, description="about it", labels=labels)
    for _ in range(2):  # the second push replaces the record
        await origin.ok("PATCH", f"{origin.items('hub')}/abc/finish_upload", json={"status": "success", "reason": ""})
        fresh = await ask.get("hub", "abc")
    switch.go_down()
    kept = await ask.get("hub", "abc")
    names = ("manifest", "description", "labels", "upload_status", "upload_finished_at", "build_at")
    assert {name: kept[name] for name in names} == {name: fresh[name] for name in names}
    assert kept["creator"]["name"] == fresh["creator"]["name"] == "admin"


async def test_token_sees_own_prefix(tmp_path: Path, publisher: AsyncBentoAPI, ask: Caller, make_api: MakeApi):
    await push_model(publisher, tmp_path, "mod:m1", 1000)
    await asyncio.to_thread(make_bento, tmp_path / "publisher", "team-svc:v1", models=["mod:m1"])
    await publisher.push("team-svc:v1")
    token = await create_token(ask, "team", "push", prefix="team-")
    bentos = ask.about(BENTOS)
    record = await bentos.ok("GET", f"{bentos.items('team-svc')}/v1", token=token)
    assert record["models"] == []
    assert [each["version"] for each in (await bentos.ok("GET", bentos.items("team-svc"), token=token))["items"]] == [
        "v1"
    ]
    assert (await bentos.api("GET", f"{bentos.items('team-svc')}/v1/download", token=token)).status == 200
    for path in (ask.items("mod"), f"{ask.items('mod')}/m1", f"{ask.items('mod')}/m1/download"):
        assert (await ask.api("GET", path, token=token)).status == 403
    for path in ("/models", "/bentos", "/labels", "/bento_repositories"):
        refused = await ask.api("GET", path, token=token)
        assert refused.status == 501
        assert "List one repository by its name." in refused.json["error"]
    running = ask.registry._running
    assert running is not None
    pulls = [
        (each.actor, each.subject) for each in await AuditLog(running.retention._database).list(count=9, action="pull")
    ]
    assert pulls == [("team", "team-svc:v1")]


def hide_lengths(upstream: FaultProxy) -> None:
    """Let the upstream answer like Yatai, which streams downloads without a length, and has no checksums."""
    upstream.streams_downloads = upstream.hides_checksums = True

    async def refuse(exchange: Exchange) -> web.StreamResponse:
        response = await exchange.forward()
        record = json.loads(response.body)
        response.body = json.dumps(record | {"presigned_download_url": ""}).encode()
        return response

    upstream.add_fault("presign_download_url", refuse, times=None)


async def test_full_mirror_evicts_after_unknown_length(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, start_mirror: StartMirror, session: Any
):
    for number in range(2):
        await push_model(publisher, tmp_path, f"mod:m{number}", 1000, seed=number)
    size = stored_bytes(tmp_path / "upstream") * 3 // 4
    hide_lengths(upstream)
    ask = Caller(await start_mirror(mirror_size=size), session, MODELS)
    for number in range(2):
        assert not await is_hit(ask, f"m{number}")
    await eventually(lambda: stored_bytes(tmp_path / "mirror") <= size)


async def test_unknown_length_streams(
    tmp_path: Path, upstream: FaultProxy, publisher: AsyncBentoAPI, ask: Caller, make_api: MakeApi
):
    source = await push_model(publisher, tmp_path, "mod:m1", 2 * MiB)
    hide_lengths(upstream)
    models = await asyncio.gather(*(make_api(ask.registry, f"home-{n}").models.pull("mod:m1") for n in range(3)))
    for model in models:
        assert contents(model.path) == contents(source)
    assert len(fetched_ranges(upstream)) == 1
    await eventually(lambda: is_hit(ask, "m1"))
    stored = await ask.api("GET", f"{ask.items('mod')}/m1/download")
    assert (await ask.get("mod", "m1"))["checksums"]["etag"] == stored.headers["ETag"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"upstream_token": None}, "no token for its upstream"),
        ({"upstream": None}, "require upstream"),
        ({"upstream": "nowhere"}, "not the URL of a server"),
        ({"mirror_size": 0}, "not above 0 bytes"),
        ({"immutable": True}, "no versions of its own"),
        ({"bucket": S3Bucket("bucket")}, "in a directory"),
    ],
)
def test_invalid_arguments_raise(tmp_path: Path, options: dict[str, Any], problem: str):
    defaults = {"upstream": "http://127.0.0.1:9", "upstream_token": "token"}
    with pytest.raises(ConfigError, match=problem):
        LocalRegistry(tmp_path, **(defaults | options))
    LocalRegistry(tmp_path, **defaults, mirror_size=1)


def test_serve_names_upstream(tmp_path: Path):
    """The token comes from a file, and appears nowhere."""
    (tmp_path / "token").write_text("upstream-secret\n")
    arguments = ["registry", "serve", "--root", str(tmp_path / "mirror"), "--port", "0", "--mirror-size", "200G"]
    arguments += ["--upstream", "http://127.0.0.1:9", "--upstream-token-file", str(tmp_path / "token")]
    with start(*arguments) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert line.startswith(f"Serving {tmp_path / 'mirror'} as a mirror of http://127.0.0.1:9 on http://127.0.0.1:")
    assert "upstream-secret" not in out + err
    assert process.returncode == (KILLED if IS_WINDOWS else 0)


def test_invalid_upstream_token_fails(tmp_path: Path):
    (tmp_path / "token").write_bytes(b"\xff")
    options = ["--upstream", "http://x.example", "--upstream-token-file", str(tmp_path / "token")]
    result = make_runner().invoke(main, ["registry", "serve", "--root", str(tmp_path), *options])
    assert result.exit_code == 2
    assert "token: it is not ASCII." in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--upstream", "http://x.example"], "--upstream requires --upstream-token-file"),
        (["--mirror-size", "1G"], "require --upstream"),
        (["--mirror-size", "1"], "'1' is no size. Use MiB, GiB or TiB, like 500M, 200G or 2T."),
        (["--mirror-size", "0G"], "'0G' is no size"),
        (
            ["--upstream", "http://x.example", "--upstream-token-file", "missing"],
            "in missing: No such file or directory.",
        ),
        (["--upstream", "http://x.example", "--upstream-token-file", os.devnull], "is empty. Write the token"),
    ],
)
def test_invalid_serve_options_fail(tmp_path: Path, options: list[str], problem: str):
    result = make_runner().invoke(main, ["registry", "serve", "--root", str(tmp_path), *options])
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())


async def is_hit(ask: Caller, version: str) -> bool:
    """Download a version, and return whether the mirror had it."""
    answer = await ask.api("GET", f"{ask.items('mod')}/{version}/download")
    assert answer.status == 200, answer
    return bool(answer.headers["Cache-Status"] == "async-bento; hit")


def stored_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "blobs").rglob("*") if path.is_file())


async def metric(ask: Caller, name: str) -> float:
    text = (await ask.bare("GET", f"{ask.registry.endpoint}/metrics")).body.decode()
    (value,) = re.findall(rf"^async_bento_registry_{name} (\S+)$", text, re.MULTILINE)
    return float(value)


async def test_closed_upstream_has_no_clients(upstream: FaultProxy):
    closed = Upstream(upstream.endpoint, SecretStr("token"), lambda _: None)
    await closed.aclose()
    for client in (closed.client, closed._records):
        with pytest.raises(ClosedError):
            await client.bentos.get("iris", "v1")

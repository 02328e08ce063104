"""Downloads of tars: the requests, and the handling of the received bytes."""

from __future__ import annotations

import asyncio
import gzip
import io
import re
import tarfile
import threading
import time
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from async_bento import IntegrityError, PartError, StalledError, TransferError
from async_bento.errors import APIConnectionError, APIResponseError, ArchiveError, BentoError, StoreError
from async_bento.rest.storages import Storages
from async_bento.transfer import download as download_module, ranges as ranges_module
from async_bento.transfer.adaptive import AdaptiveRanges
from async_bento.transfer.download_source import DownloadSource
from async_bento.transfer.http import ByteRange
from async_bento.transfer.tar.writer import TreeWriter
from async_bento.transfer.verify import ObjectChangedError
from tests.builders import KiB, MiB, contents, left_in_scratch, make_model, random_bytes
from tests.calls import calls_of
from tests.eventually import eventually
from tests.fault_proxy import (
    DOWNLOAD,
    GET,
    FaultProxy,
    Hold,
    answer_json,
    answer_page,
    disconnect,
    disconnect_while_sending,
    end_early,
    ignore_range,
    in_sequence,
    no_fault,
    pause_sending,
    refuse,
    stop_sending,
    with_headers,
)
from tests.platforms import IS_WINDOWS, REFUSED, link_if_possible
from tests.transfer.quiet import nothing_left, round_trips

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange, Fault
    from tests.fixtures import MakeClient, StartProxy


SMALL = {"weights": random_bytes(300_000, 5), "sub/tool.sh": b"#!/bin/sh\n", "empty": b""}
LARGE = {"weights": random_bytes(3 * MiB + 7, 6)}
RANGE = 64 * KiB


@pytest.fixture
def pushed(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> StartProxy:
    """A proxy of a registry with `mod:m1`, without the requests of the push."""

    async def push(transmission: str = "presigned_url", files: dict[str, bytes] | None = None) -> FaultProxy:
        model = make_model(home, files=files or SMALL)
        if "sub/tool.sh" in (files or SMALL):
            (model / "sub/tool.sh").chmod(0o755)
            link_if_possible(model / "link", "sub/tool.sh")
        proxy = await start_proxy(transmission)
        await make_client(proxy).models.push("mod:m1")
        proxy.requests.clear()
        return proxy

    return push


def nothing_came(elsewhere: Path) -> bool:
    """Return whether the store and the staging area hold nothing except resumable state."""
    stored = [path for path in (elsewhere / "models").rglob("*") if path.is_file()]
    return not stored and not left_in_scratch(elsewhere, kept=False)


def came(home: Path, elsewhere: Path) -> bool:
    """Return whether the store has the model as it was pushed, and nothing else."""
    there = contents(elsewhere / "models/mod/m1")
    return there == contents(home / "models/mod/m1") and not left_in_scratch(elsewhere)


def ranges(proxy: FaultProxy) -> list[tuple[int, int]]:
    """Return the requested ranges, each as start and stop."""
    asked = [
        re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers["Range"]) for request in proxy.matching("GET (blob|bytes)")
    ]
    return [(int(match[1]), int(match[2]) + 1) for match in asked if match]


# Without faults


@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_download_equals_pushed_item(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    proxy = await pushed(transmission)

    model = await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")
    assert IS_WINDOWS or (model.path / "sub/tool.sh").stat().st_mode & 0o777 == 0o755
    assert not left_in_scratch(elsewhere)


async def test_each_range_requested_once(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    asked = sorted(ranges(proxy))
    assert asked[0] == (0, RANGE)
    assert all(before[1] == after[0] for before, after in pairwise(asked))
    assert len(asked) == -(-asked[-1][1] // RANGE)


@pytest.mark.parametrize("action", ["pull", "read"])
async def test_range_clock_is_precise(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """Before Python 3.13, `time.monotonic` has steps of 16 ms on Windows: ranges would arrive at once."""
    seconds: list[float] = []
    proxy = await pushed()
    clocks = SimpleNamespace(monotonic=lambda: 0.0, perf_counter=time.perf_counter)
    for module in (download_module, ranges_module):
        monkeypatch.setattr(module, "time", clocks)
    monkeypatch.setattr(AdaptiveRanges, "record", lambda _self, _size, took, _now: seconds.append(took))
    models, started = make_client(proxy, elsewhere).models, time.perf_counter()

    await (models.pull("mod:m1") if action == "pull" else models.files("mod:m1").read("weights"))

    assert len(seconds) == len(ranges(proxy))
    assert min(seconds) > 0
    assert max(seconds) <= time.perf_counter() - started


async def test_ranges_send_if_match(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    etags: list[str] = []

    async def note(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        etags.append(answer.headers["ETag"])
        return answer

    proxy.add_fault(GET, note)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    first, *others = proxy.matching("GET bytes")
    assert "If-Match" not in first.headers
    assert others
    assert {request.headers["If-Match"] for request in others} == set(etags)


async def test_weak_etag_sends_no_if_match(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, with_headers(ETag='W/"abc"'), times=None)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert not any("If-Match" in request.headers for request in proxy.requests)


async def test_no_token_sent_to_storage(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    for request in proxy.matching("GET bytes"):
        assert not {key.lower() for key in request.headers} & {"x-yatai-api-token", "authorization", "cookie"}
        assert request.headers["Accept-Encoding"] == "identity"


async def test_out_of_order_ranges_reordered(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await pushed()
    second = Hold()
    others = 0

    async def release_the_second_last(exchange: Exchange) -> web.StreamResponse:
        nonlocal others
        answer = await exchange.forward()
        others += 1
        if others == 3:
            second.released.set()
        return answer

    proxy.add_fault(GET, in_sequence(no_fault, second, release_the_second_last), times=None)

    model = await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")
    assert others >= 3


async def test_first_headers_start_next_ranges(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    """The headers of the first range state the size, so the others need not wait for its bytes."""
    proxy = await pushed()
    asked_next = asyncio.Event()

    async def ask(exchange: Exchange) -> web.StreamResponse:
        asked_next.set()
        return await exchange.forward()

    proxy.add_fault(GET, in_sequence(pause_sending(KiB, asked_next), ask), times=None)

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert ranges(proxy).count((0, RANGE)) == 1


async def test_ranges_limited_by_window(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed(files=LARGE)
    second = Hold()
    proxy.add_fault(GET, in_sequence(no_fault, second, no_fault), times=None)
    api = make_client(proxy, elsewhere, transfer={"range_size": 256 * KiB, "window": MiB})

    pulling = asyncio.create_task(api.models.pull("mod:m1"))
    await second.arrived.wait()
    await round_trips(api)
    asked = len(ranges(proxy))
    second.released.set()
    await pulling

    assert asked == 1 + 4  # the first range, already extracted, and a window of four
    assert len(ranges(proxy)) == 13


async def test_shared_window_starves_no_pull(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await pushed()
    for number in range(4):
        make_model(home, f"mod{number}:m1", files=SMALL)
        await make_client(proxy).models.push(f"mod{number}:m1")
    api = make_client(proxy, elsewhere, transfer={"window": MiB, "range_size": MiB // 2, "concurrency": 1})

    await asyncio.gather(*(api.models.pull(f"mod{number}:m1") for number in range(4)))

    assert proxy.max_concurrent["GET"] == 1
    for number in range(4):
        assert contents(elsewhere / f"models/mod{number}/m1").keys() == contents(home / f"models/mod{number}/m1").keys()


async def test_concurrency_limits_downloads(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed(files=LARGE)
    held = Hold(count=3)
    proxy.add_fault(GET, held, times=None, skip=1)
    api = make_client(proxy, elsewhere, transfer={"concurrency": 3})

    pulling = asyncio.create_task(api.models.pull("mod:m1"))
    await held.arrived.wait()
    await round_trips(api)
    held.released.set()
    await pulling

    assert proxy.max_concurrent["GET"] == 3


async def test_no_range_support_is_streamed(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, ignore_range, times=None)

    model = await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")
    assert len(proxy.matching("GET bytes")) == 1


@pytest.mark.parametrize(
    ("strategy", "asks"), [("proxy", [True, False]), ("presigned_url", [False, False])], ids=["proxy", "presigned"]
)
def test_download_asks_storage_once(strategy: str, asks: list[bool]) -> None:
    """A repetition would reach another storage without ranges, without end."""
    record = SimpleNamespace(transmission_strategy=strategy, version="m1")
    source = DownloadSource(SimpleNamespace(kind="model"), "mod", record, action="pull", verify=True)

    assert [source.ask_storage(), source.ask_storage()] == asks


class Registry:
    """The routes of a registry that presigns a URL."""

    kind = "model"

    def __init__(self, url: str = "http://storage") -> None:
        self.url = url
        self.session = SimpleNamespace(storages=Storages(), storage_target=lambda _: STORAGE)

    async def presign_download(self, *_: str) -> Any:
        return SimpleNamespace(presigned_download_url=SecretStr(self.url), checksums=None)

    def download_target(self, *_: str) -> str:
        return "registry"


STORAGE: Any = SimpleNamespace(storage="http://storage", credentials=None)


def source_of(registry: Any, strategy: str | None) -> DownloadSource:
    record: Any = SimpleNamespace(transmission_strategy=strategy, version="m1", checksums=None)
    return DownloadSource(registry, "mod", record, action="pull", verify=False)


@pytest.mark.parametrize(
    ("strategy", "asks", "url", "is_storage"),
    [
        ("presigned_url", False, "http://storage", True),
        (None, False, "http://storage", True),
        (None, False, "", False),  # an old Yatai without a strategy
        ("proxy", False, "http://storage", False),
        ("proxy", True, "http://storage", True),
        ("proxy", True, "", False),
    ],
)
async def test_download_target_by_strategy(strategy: str | None, asks: bool, url: str, is_storage: bool) -> None:
    source = source_of(Registry(url), strategy)
    if asks:
        assert source.ask_storage()
    assert await source.target() == (STORAGE if is_storage else "registry")


@pytest.mark.parametrize("is_resumed", [True, False])
@pytest.mark.parametrize("strategy", ["presigned_url", "proxy"])
async def test_download_avoids_unreachable_storage(strategy: str, is_resumed: bool) -> None:
    """A storage from which an interrupted pull got bytes works."""
    registry = Registry()
    registry.session.storages.unreachable["http://storage"] = "cannot reach the storage"
    source = source_of(registry, strategy)
    source.ask_storage()
    source.is_resumed = is_resumed
    assert await source.target() == (STORAGE if is_resumed else "registry")
    assert source.unreachable == (None if strategy == "proxy" else "cannot reach the storage")


@pytest.mark.parametrize(
    ("status", "start", "is_changed"),
    [(412, 0, True), (416, 0, False), (416, 1, True), (404, 1, False), (500, 1, False)],
)
def test_download_refusal_shows_change(status: int, start: int, is_changed: bool) -> None:
    """An object that has become shorter has no such range; an empty one has none at all."""
    source, error = source_of(Registry(), "presigned_url"), PartError("", status=status)
    if not is_changed:
        source.check_refusal(error, STORAGE, ByteRange(start, start + 1))
        return
    with pytest.raises(ObjectChangedError):
        source.check_refusal(error, STORAGE, ByteRange(start, start + 1))


@pytest.mark.parametrize(
    ("status", "credentials", "is_expired"), [(403, None, True), (403, "t", False), (500, None, False)]
)
async def test_download_refused_url_expires(status: int, credentials: str | None, is_expired: bool) -> None:
    registry = Registry()
    storage: Any = SimpleNamespace(storage="http://storage", credentials=credentials)
    registry.session.storage_target = lambda _: storage
    source = source_of(registry, "presigned_url")
    assert await source.target() is storage
    registry.session.storage_target = lambda _: STORAGE

    source.check_refusal(PartError("", status=status), storage, ByteRange(0, 1))

    assert await source.target() is (STORAGE if is_expired else storage)


@pytest.mark.parametrize("status", [200, 206])
async def test_content_range_overrules_status(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, status: int
) -> None:
    async def answer(exchange: Exchange) -> web.StreamResponse:
        response = await exchange.forward()
        assert response.status == 206
        response.set_status(status)
        return response

    proxy = await pushed()
    proxy.add_fault(GET, answer, times=None)  # rclone's `serve s3` sends 200

    model = await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")
    assert len(proxy.matching("GET bytes")) > 4


async def test_content_encoding_is_decoded(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await pushed("auto")

    async def compressed(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward(without=["range"])
        assert isinstance(answer.body, bytes)
        return web.Response(body=gzip.compress(answer.body), headers={"Content-Encoding": "gzip"})

    proxy.add_fault(GET, compressed)

    model = await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")


async def test_incomplete_item_not_in_store(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    last = Hold()
    proxy.add_fault(GET, last, skip=3, times=None)
    api = make_client(proxy, elsewhere)

    pulling = asyncio.create_task(api.models.pull("mod:m1"))
    await last.arrived.wait()
    # The tar is extracted during the download.
    await eventually(lambda: any("model.yaml" in name for name in left_in_scratch(elsewhere)))
    staged = left_in_scratch(elsewhere)
    stored = [*(elsewhere / "models").rglob("*")]
    last.released.set()
    await pulling

    assert not stored
    assert not any(name.endswith(".tar") for name in staged)


async def test_progress_ends_at_tar_size(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, disconnect_while_sending(10_000), skip=2)
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    assert events[-1].bytes_done == events[-1].bytes_total == max(ranges(proxy))[1]
    assert max(event.bytes_done for event in events) == events[-1].bytes_done
    assert events[-1].phase == "done"


# Faults that are retried


TRANSIENT = {
    "500": refuse(500),
    "503": refuse(503),
    "hang-up": disconnect,
    "hang-up in mid-range": disconnect_while_sending(10_000),
    "too short": end_early(10_000),
}


@pytest.mark.parametrize("nth", [0, 2], ids=["first", "later"])
@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT.keys())
async def test_retry_repeats_failed_range_only(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, fault: Fault, nth: int
) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, fault, skip=nth)

    model = await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")
    asked = ranges(proxy)
    assert len(asked) == len(set(asked)) + 1
    assert len(proxy.matching("presign_download")) == 1


@pytest.mark.parametrize("action", ["pull", "read"])
async def test_retries_of_range_restart_after_others(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, action: str
) -> None:
    """The attempts count from the last range that has arrived: the storage works."""
    proxy = await pushed(files=LARGE)
    failed: list[str] = []
    failed_again, other_sent = asyncio.Event(), asyncio.Event()

    async def fail_twice(exchange: Exchange) -> web.StreamResponse:
        asked = exchange.logged.headers["Range"]
        if asked == f"bytes={RANGE}-{2 * RANGE - 1}" and len(failed) < 2:
            failed.append(asked)
            if len(failed) == 2:
                failed_again.set()
                await other_sent.wait()
                await asyncio.sleep(0.1)  # until the client has read the other range
            return await refuse(500)(exchange)
        if asked == f"bytes={2 * RANGE}-{3 * RANGE - 1}":
            await failed_again.wait()
        response = await exchange.forward()
        if failed_again.is_set():
            other_sent.set()
        return response

    proxy.add_fault(GET, fail_twice, times=None)
    models = make_client(proxy, elsewhere, transfer={"concurrency": 2}, retry={"attempts": 2}).models

    await (models.pull("mod:m1") if action == "pull" else models.files("mod:m1").read("weights"))

    assert len(failed) == 2


@pytest.mark.parametrize(("status", "is_busy"), [(503, True), (429, True), (500, False)])
async def test_download_busy_is_throttled(
    pushed: StartProxy,
    make_client: MakeClient,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    is_busy: bool,
) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, refuse(status), skip=1)
    throttled = calls_of(monkeypatch, AdaptiveRanges, "throttle")

    await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert len(throttled) == is_busy


@pytest.mark.parametrize("status", [403, 400])
@pytest.mark.parametrize("nth", [0, 2], ids=["first", "later"])
async def test_expired_url_presigned_once(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, nth: int, status: int
) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, refuse(status, code="AccessDenied"), skip=nth)  # rclone's `serve s3` sends 400

    model = await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")
    assert len(proxy.matching("presign_download")) == 2


async def test_late_refusal_presigns_once(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    late = Hold(fault=refuse(403, code="AccessDenied"))
    proxy.add_fault(GET, in_sequence(no_fault, late, refuse(403, code="AccessDenied"), no_fault), times=None)

    pulling = asyncio.create_task(make_client(proxy, elsewhere).models.pull("mod:m1"))
    await late.arrived.wait()
    await proxy.wait_for("GET bytes", 5 + 1)  # the other range uses the new URL before the last refusal of the old one
    late.released.set()
    await pulling

    assert len(proxy.matching("presign_download")) == 2


@pytest.mark.parametrize("transmission", ["proxy", "auto"])
async def test_broken_stream_restarts(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    proxy = await pushed(transmission, files=LARGE)
    whole = in_sequence(ignore_range, ignore_range)
    proxy.add_fault(f"{GET}|{DOWNLOAD}", in_sequence(disconnect_while_sending_whole(2 * MiB), whole), times=None)
    events: list[ProgressEvent] = []

    model = await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")
    assert len(proxy.matching(f"{DOWNLOAD}|GET bytes|GET blob")) == 2
    assert events[-1].bytes_done == max(event.bytes_done for event in events)
    assert not left_in_scratch(elsewhere)


def disconnect_while_sending_whole(size: int) -> Fault:
    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward(without=["range"])
        assert isinstance(answer.body, bytes)
        response = await exchange.start_response(answer)
        await response.write(answer.body[:size])
        return exchange.disconnect()

    return fault


async def test_retry_after_stall_succeeds(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, forever: asyncio.Event
) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, stop_sending(10_000, forever), skip=1)

    model = await make_client(proxy, elsewhere, timeouts={"stall": 0.5}).models.pull("mod:m1")
    forever.set()

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")


# Errors that end a pull


def sends(body: bytes) -> Fault:
    async def fault(exchange: Exchange) -> web.StreamResponse:
        return web.Response(body=body)

    return fault


LIES: dict[str, tuple[Fault, type[BentoError], str]] = {
    "another range": (
        with_headers(Content_Range="bytes 5-65540/999999"),
        PartError,
        "sent bytes 5-65540 of 999999 instead of 0-65535",
    ),
    "no Content-Range": (with_headers(Content_Range=None), PartError, "without Content-Range"),
    "a Content-Range that is none": (with_headers(Content_Range="all of it"), PartError, "without Content-Range"),
    "no total size": (with_headers(Content_Range="bytes 0-65535/*"), PartError, "without Content-Range"),
    "redirect": (refuse(307, headers={"Location": "http://127.0.0.1:9/"}), PartError, REFUSED),
    "refusal": (refuse(400, code="InvalidRequest"), PartError, "400 InvalidRequest"),
    "page": (answer_page(), IntegrityError, r"mod:m1: the storage sent a tar with \d+ bytes instead of \d+: it was"),
    "nothing": (in_sequence(sends(b"")), IntegrityError, "mod:m1: the storage sent a tar with 0 bytes"),
}


@pytest.mark.parametrize(("fault", "error", "message"), LIES.values(), ids=LIES.keys())
async def test_wrong_response_leaves_nothing(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, fault: Fault, error: type[BentoError], message: str
) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, fault, times=None)
    api = make_client(proxy, elsewhere)

    async with nothing_left(api):
        with pytest.raises(error, match=message) as caught:
            await api.models.pull("mod:m1")

    assert "signature" not in str(caught.value)
    assert "secret words" not in str(caught.value)
    assert nothing_came(elsewhere)


async def test_overlong_range_cut_off(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    gone = 0

    async def without_end(exchange: Exchange) -> web.StreamResponse:
        nonlocal gone
        answer = await exchange.forward()
        response = await exchange.start_response(answer, content_length=None)
        try:
            while gone < 64 * MiB:
                await response.write(bytes(MiB))
                gone += MiB
        except ConnectionError:
            pass
        return response

    proxy.add_fault(GET, without_end, skip=1, times=None)

    with pytest.raises(IntegrityError, match="more"):
        await make_client(proxy, elsewhere, retry={"attempts": 1}).models.pull("mod:m1")

    assert gone < 64 * MiB
    assert nothing_came(elsewhere)


async def test_lost_range_support_restarts(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, ignore_range, skip=2, times=None)
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    assert came(home, elsewhere)
    assert events[-1].bytes_done == events[-1].bytes_total
    assert [event.message for event in events if event.message] == [
        "restarting: the server no longer supports range requests"
    ]


async def test_toggling_range_support_fails(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    proxy.add_fault("GET /blobs/", in_sequence(*[no_fault, ignore_range] * 2, no_fault), times=None)

    with pytest.raises(TransferError, match="cannot pull mod:m1: the server no longer supports range requests, twice"):
        await make_client(proxy, elsewhere, transfer={"concurrency": 1}).models.pull("mod:m1")

    assert nothing_came(elsewhere)


CHANGED: dict[str, Fault] = {
    "refused": refuse(412, code="PreconditionFailed"),
    "another ETag": with_headers(ETag='"another"'),
}


@pytest.mark.parametrize("fault", CHANGED.values(), ids=CHANGED.keys())
async def test_new_etag_never_mixed(pushed: StartProxy, make_client: MakeClient, elsewhere: Path, fault: Fault) -> None:
    proxy = await pushed()
    proxy.hides_checksums = True
    proxy.add_fault(GET, fault, skip=2, times=None)

    with pytest.raises(
        TransferError, match=r"mod:m1: the item was pushed again during the download, twice\. Try again"
    ):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert nothing_came(elsewhere)


async def test_new_size_never_mixed(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()

    async def other_size(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        content_range, _, _ = answer.headers["Content-Range"].partition("/")
        answer.headers["Content-Range"] = f"{content_range}/99999999"
        return answer

    proxy.add_fault(GET, other_size, skip=1, times=None)

    with pytest.raises(TransferError):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert nothing_came(elsewhere)


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
async def test_pushed_again_never_mixed(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, transmission: str
) -> None:
    """A presigned URL still serves the old bytes; the registry itself serves the new ones."""
    proxy = await pushed(transmission)
    proxy.streams_downloads = False
    old = contents(home / "models/mod/m1")
    make_model(home, files=SMALL | {"weights": random_bytes(300_000, 99)})  # of the same size
    pusher = make_client(proxy)

    async def push_anew(exchange: Exchange) -> web.StreamResponse:
        await pusher.models.push("mod:m1", force=True)
        return await exchange.forward()

    proxy.add_fault(f"{GET}|{DOWNLOAD}", push_anew, skip=1)
    events: list[ProgressEvent] = []

    await make_client(proxy, elsewhere, progress=events.append).models.pull("mod:m1")

    restarted = "restarting: the item was pushed again during the download" in [event.message for event in events]
    assert restarted == (transmission == "proxy")
    assert came(home, elsewhere) if restarted else contents(elsewhere / "models/mod/m1") == old


async def test_truncated_stream_fails(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed("proxy")
    proxy.hides_checksums = True
    proxy.add_fault(DOWNLOAD, end_early(100_000), times=None)

    with pytest.raises(ArchiveError, match="the tar is truncated"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert nothing_came(elsewhere)


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


OTHER = (
    b"name: other\nversion: m1\nmodule: ''\ncontext: {framework_name: '', framework_versions: {}}\napi_version: v1\n"
)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (tar_of({"weights": b"x"}), StoreError, "mod:m1.*model.yaml"),
        (tar_of({"model.yaml": OTHER}), StoreError, "other:m1"),
        (tar_of({"model.yaml": b"{"}), StoreError, "model.yaml"),
        (tar_of({"../outside": b"x"}), ArchiveError, "outside"),
        (random_bytes(20_000), ArchiveError, "mod:m1"),
        (b"", ArchiveError, "truncated"),
        (bytes(1024), StoreError, "model.yaml"),
    ],
    ids=["no yaml", "another model", "broken yaml", "unsafe", "noise", "empty", "empty tar"],
)
async def test_wrong_tar_not_in_store(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, body: bytes, error: type[BentoError], message: str
) -> None:
    proxy = await pushed("proxy")
    proxy.hides_checksums = True
    proxy.add_fault(DOWNLOAD, sends(body), times=None)
    api = make_client(proxy, elsewhere)

    async with nothing_left(api):
        with pytest.raises(error, match=message):
            await api.models.pull("mod:m1")

    assert nothing_came(elsewhere)
    assert not (elsewhere / "outside").exists()


@pytest.mark.parametrize("transmission", ["presigned_url", "proxy"])
async def test_stalled_download_times_out(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, forever: asyncio.Event, transmission: str
) -> None:
    proxy = await pushed(transmission)
    proxy.add_fault(f"{GET}|{DOWNLOAD}", stop_sending(10_000, forever), times=None)
    api = make_client(proxy, elsewhere, timeouts={"stall": 0.2}, retry={"attempts": 1})

    async with nothing_left(api):
        with pytest.raises(StalledError, match=r"no byte was transferred for 0\.2 s"):
            await api.models.pull("mod:m1")
    forever.set()

    assert nothing_came(elsewhere)


async def test_last_retry_reports_storage_error(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed()
    proxy.add_fault(GET, refuse(503, code="SlowDown"), skip=1, times=None)
    api = make_client(proxy, elsewhere)

    async with nothing_left(api):
        with pytest.raises(PartError, match="503 SlowDown: injected fault"):
            await api.models.pull("mod:m1")

    assert nothing_came(elsewhere)


async def test_last_retry_reports_connection(pushed: StartProxy, make_client: MakeClient, elsewhere: Path) -> None:
    proxy = await pushed("proxy")
    proxy.add_fault(DOWNLOAD, disconnect_while_sending(50_000), times=None)

    with pytest.raises(APIConnectionError, match="the connection to the registry"):
        await make_client(proxy, elsewhere).models.pull("mod:m1")

    assert nothing_came(elsewhere)


@pytest.mark.parametrize("action", ["pull", "read", "copy"])
async def test_no_presigned_url_fails(
    pushed: StartProxy, start_proxy: StartProxy, make_client: MakeClient, elsewhere: Path, action: str
) -> None:
    proxy = await pushed()
    proxy.add_fault("presign_download", answer_json(200, {"version": "m1"}), times=None)
    models, target = make_client(proxy, elsewhere).models, make_client(await start_proxy(name="target"))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "pull": partial(models.pull, "mod:m1"),
        "read": models.files("mod:m1").list,
        "copy": partial(models.copy, "mod:m1", target),
    }

    failed = f"^cannot {action} mod:m1: the registry's response has no presigned download URL$"
    with pytest.raises(APIResponseError, match=failed):
        await calls[action]()


# Cancellation


@pytest.mark.parametrize(
    ("transmission", "step", "nth"),
    [
        ("presigned_url", r"GET .*/models/m1$", 0),
        ("presigned_url", "presign_download", 0),
        ("presigned_url", GET, 0),
        ("presigned_url", GET, 3),
        ("proxy", DOWNLOAD, 0),
    ],
)
async def test_cancelled_at_any_step(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, transmission: str, step: str, nth: int
) -> None:
    proxy = await pushed(transmission)
    held = Hold()
    proxy.add_fault(step, held, skip=nth, times=None)
    api = make_client(proxy, elsewhere)

    async with nothing_left(api):
        pulling = asyncio.create_task(api.models.pull("mod:m1"))
        await held.arrived.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
    held.released.set()

    assert nothing_came(elsewhere)


async def test_cancelled_in_mid_stream(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, forever: asyncio.Event
) -> None:
    proxy = await pushed("proxy", files=LARGE)
    proxy.add_fault(DOWNLOAD, stop_sending(2 * MiB, forever))
    unpacked = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.bytes_done >= 2 * MiB:
            unpacked.set()

    api = make_client(proxy, elsewhere, progress=listen)

    async with nothing_left(api):
        pulling = asyncio.create_task(api.models.pull("mod:m1"))
        await unpacked.wait()
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
    forever.set()

    assert nothing_came(elsewhere)


async def test_cancel_waits_for_write_threads(
    pushed: StartProxy, make_client: MakeClient, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await pushed()
    writing, go_on = threading.Event(), threading.Event()
    write = TreeWriter.write

    def slowly(self: TreeWriter, data: memoryview) -> None:
        writing.set()
        go_on.wait(10)
        write(self, data)

    monkeypatch.setattr(TreeWriter, "write", slowly)
    api = make_client(proxy, elsewhere)

    async with nothing_left(api):
        pulling = asyncio.create_task(api.models.pull("mod:m1"))
        await asyncio.to_thread(writing.wait, 10)
        pulling.cancel()
        await round_trips(api, 8)
        ended_before_its_thread = pulling.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await pulling

    assert not ended_before_its_thread
    assert nothing_came(elsewhere)


async def test_pull_after_cancel_is_complete(
    pushed: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await pushed()
    held = Hold()
    proxy.add_fault(GET, held, skip=2)
    api = make_client(proxy, elsewhere)
    pulling = asyncio.create_task(api.models.pull("mod:m1"))
    await held.arrived.wait()
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    held.released.set()

    model = await api.models.pull("mod:m1")

    assert model is not None
    assert contents(model.path) == contents(home / "models/mod/m1")

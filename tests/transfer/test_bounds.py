"""Bounds of transfers whose storage, registry or proxy never answers, and calls that must not wait for them."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from async_bento import Config, PartError, RestApiClient, StalledError
from async_bento._core import platform
from async_bento._core.concurrency import ByteBudget, Threads
from async_bento.progress.events import Progress
from async_bento.transfer import body, http, upload as upload_module
from async_bento.transfer.body import TarBody, UploadBody
from async_bento.transfer.http import ByteRange, TransferPool
from async_bento.transfer.tar.plan import TarPlan
from async_bento.transfer.tar.reader import TarReader
from tests.builders import MiB, contents, make_model, random_bytes
from tests.fault_proxy import (
    GET,
    PART,
    PUT,
    UPLOAD,
    FaultProxy,
    Hold,
    answer_json,
    read_slowly,
    refuse,
    stop_reading,
)
from tests.silent import error_of, flood, say_nothing, serving, trickle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy
    from tests.silent import Answer

    Transfer = Callable[..., Awaitable[None]]

SMALL = {"weights": random_bytes(100_000, 7)}
QUICK = Config(
    timeouts={"connect": 0.5, "stall": 0.6, "complete": 0.6}
)  # `complete` is the bound where the system does not report sent bytes
STALLED = "no byte was transferred for "
NO_CONNECTION = "no connection within 0.5 s"
REFUSED = b"HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n"


# One request


@pytest.fixture
async def transfers(tmp_path: Path) -> AsyncIterator[dict[str, Transfer]]:
    """A GET and a PUT of a presigned URL."""
    (tmp_path / "tree").mkdir()
    await asyncio.to_thread((tmp_path / "tree/weights").write_bytes, SMALL["weights"])
    threads = Threads(2)
    plan = await threads.run(TarPlan.scan, tmp_path / "tree")
    pool = TransferPool(QUICK, threads, asyncio.Semaphore(1), ByteBudget(1))
    async with AsyncExitStack() as stack:

        async def target(url: str, proxy: str | None) -> Any:
            client = RestApiClient("http://127.0.0.1:1", "token", proxy=proxy)
            await stack.enter_async_context(client)
            return client.bentos.session.storage_target(SecretStr(url))

        async def get(url: str, proxy: str | None = None) -> None:
            async with http.get(await target(url, proxy), ByteRange(0, 1000), QUICK) as received:
                while await received.response.content.readany():
                    pass

        async def put(url: str, proxy: str | None = None) -> None:
            progress = Progress("push", "model", "mod:m1", None)
            body = TarBody(plan, ByteRange(0, plan.size), pool, progress, digest=False)
            await http.put(await target(url, proxy), body, QUICK)

        yield {"GET": get, "PUT": put}
    threads.close()


@pytest.fixture(params=["GET", "PUT"])
def transfer(request: pytest.FixtureRequest, transfers: dict[str, Transfer]) -> Transfer:
    return transfers[request.param]


async def test_silent_connect_proxy_fails(transfer: Transfer) -> None:
    async with serving(say_nothing) as proxy:
        error = await error_of(transfer("https://storage.example/key?sig=5ignature", f"http://ada:5ecret@{proxy}"))

    assert isinstance(error, PartError)
    assert f"{NO_CONNECTION} through the proxy at {proxy}" in str(error)
    assert "5ecret" not in str(error)
    assert "5ignature" not in str(error)


async def test_endless_tls_handshake_fails(transfer: Transfer) -> None:
    async with serving(say_nothing) as storage:
        error = await error_of(transfer(f"https://{storage}/key?sig=5ignature"))

    assert isinstance(error, PartError)
    assert NO_CONNECTION in str(error)
    assert "5ignature" not in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        say_nothing,
        trickle(b"HTTP/1.1 206 Partial Content\r\nX-Slow: ", b"a"),
        trickle(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        trickle(REFUSED, b"1\r\n \r\n"),
    ],
    ids=["nothing", "header", "informational", "error"],
)
async def test_endless_response_fails(transfer: Transfer, answer: Answer) -> None:
    async with serving(answer) as storage:
        error = await error_of(transfer(f"http://{storage}/key"))

    assert isinstance(error, (StalledError, PartError))


async def test_endless_error_body_cut_off(transfer: Transfer) -> None:
    reason = b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"
    start = REFUSED + b"%x\r\n%b\r\n" % (len(reason), reason)
    async with serving(flood(start, b"1000\r\n" + b" " * 0x1000 + b"\r\n")) as storage:
        error = await error_of(transfer(f"http://{storage}/key"))

    assert isinstance(error, PartError)
    assert error.status == 500
    assert "SlowDown: busy" in str(error)


async def test_split_error_body_read_whole(transfer: Transfer) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n<Error><Code>")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(b"AccessDenied</Code></Error>")
        writer.write_eof()
        await reader.read()

    async with serving(answer) as storage:
        error = await error_of(transfer(f"http://{storage}/key"))

    assert isinstance(error, PartError)
    assert "403 AccessDenied" in str(error)


# A push, a pull


@pytest.mark.parametrize("direction", ["push", "pull"])
async def test_silent_storage_proxy_ends(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
    direction: str,
) -> None:
    make_model(home, files=SMALL)
    proxy = await start_proxy("auto")
    await make_client(proxy).models.push("mod:m1")
    url = "https://storage.example/key?sig=5ignature"
    record = {"version": "m1", "presigned_upload_url": url, "presigned_download_url": url}
    proxy.add_fault("presign", answer_json(200, record), times=None)
    api = make_client(proxy, home if direction == "push" else elsewhere, timeouts={"connect": 0.5, "stall": 0.5})
    async with serving(say_nothing) as silent:
        monkeypatch.setenv("https_proxy", f"http://{silent}")
        call = api.models.push("mod:m1", force=True) if direction == "push" else api.models.pull("mod:m1")
        error = await error_of(call)

    assert error is None or NO_CONNECTION in str(error)


async def test_download_endless_trailer_fails(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home, files=SMALL)
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    api = make_client(proxy, elsewhere, timeouts={"connect": 0.5, "stall": 0.5}, retry={"attempts": 1})
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Slow: "
    async with serving(trickle(start, b"a")) as storage:
        record = {"version": "m1", "presigned_download_url": f"http://{storage}/key"}
        proxy.add_fault("presign", answer_json(200, record), times=None)
        error = await error_of(api.models.pull("mod:m1"))

    assert isinstance(error, StalledError)


def open_files() -> int:
    return len([*Path("/dev/fd").iterdir()])


@pytest.mark.posix("/dev/fd")
async def test_upload_stall_closes_connections(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    """The storage has closed none of them, and will never read what was buffered."""
    make_model(home, files={"weights": random_bytes(32 * MiB)})
    proxy = await start_proxy("auto")
    accepted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        await say_nothing(reader, writer)

    async with serving(answer) as storage:
        record = {"version": "m1", "presigned_upload_url": f"http://{storage}/key"}
        proxy.add_fault("presign", answer_json(200, record), times=None)
        before = open_files()
        await error_of(make_client(proxy, timeouts={"stall": 0.2}, retry={"attempts": 12}).models.push("mod:m1"))
        opened = open_files() - before

    assert accepted == 12
    assert opened < 12 + 8  # the sockets of the storage itself, and a few connections to the registry


async def test_upload_completion_requested_once(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files=SMALL)
    proxy = await start_proxy()
    silent = Hold()
    proxy.add_fault("complete_multipart_upload", silent, times=None)
    api = make_client(proxy, timeouts={"complete": 1, "api": 1}, retry={"attempts": 8})

    error = await error_of(api.models.push("mod:m1"))
    asked = len(proxy.matching("complete_multipart_upload"))
    silent.released.set()

    assert "no response within 1 s" in str(error)
    assert asked == 1


async def without_response(exchange: Exchange) -> web.StreamResponse:
    """Forward the request and send no response."""
    await exchange.forward()
    await asyncio.Event().wait()
    return web.Response()


async def test_upload_completed_no_response(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files=SMALL)
    proxy = await start_proxy()
    proxy.add_fault("complete_multipart_upload", without_response, times=None)
    api = make_client(proxy, timeouts={"complete": 1, "api": 1}, retry={"attempts": 8})

    error = await error_of(api.models.push("mod:m1"))

    assert error is None
    assert len(proxy.matching("complete_multipart_upload")) == 1


async def silent_after_body(exchange: Exchange) -> web.StreamResponse:
    """Read the body and send no response."""
    await exchange.read()
    await asyncio.Event().wait()
    return web.Response()


async def test_upload_silent_registry_sent_once(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files=SMALL)
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, silent_after_body, times=None)

    error = await error_of(make_client(proxy, timeouts={"stall": 0.5, "complete": 1}).models.push("mod:m1"))

    assert isinstance(error, StalledError)
    assert "sent no response within 1 s" in str(error)
    assert len(proxy.matching(UPLOAD)) == 1


async def test_upload_stopped_registry_retried(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    forever: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body, "WRITE_SIZE", 64 * MiB)  # all bytes are sent, and the buffers hold them
    make_model(home, files={"weights": random_bytes(32 * MiB)})
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, stop_reading(forever))
    api = make_client(proxy, timeouts={"stall": 1, "complete": 5}, transfer={"io_chunk": 64 * MiB})

    error = await error_of(api.models.push("mod:m1"))

    assert error is None
    assert len(proxy.matching(UPLOAD)) == 2


async def test_upload_recorded_no_response(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files=SMALL)
    proxy = await start_proxy("proxy")
    proxy.add_fault(UPLOAD, without_response, times=None)

    error = await error_of(make_client(proxy, timeouts={"stall": 0.5, "complete": 1}).models.push("mod:m1"))

    assert error is None
    assert len(proxy.matching(UPLOAD)) == 1


async def test_upload_slow_without_ack_counter(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel soon buffers all bytes, and the system does not report how many have arrived."""
    monkeypatch.setattr(platform, "unacknowledged", lambda _: None)
    make_model(home, files={"weights": random_bytes(3 * MiB)})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, read_slowly(MiB, 3 * MiB))
    api = make_client(proxy, timeouts={"stall": 0.5}, retry={"attempts": 1})

    assert await error_of(api.models.push("mod:m1")) is None


async def test_upload_slow_disk_no_stall(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TarReader.read

    def read_after_a_while(self: TarReader, limit: int | None = None) -> bytes:
        time.sleep(2)
        return read(self, limit)

    monkeypatch.setattr(TarReader, "read", read_after_a_while)
    make_model(home, files=SMALL)
    proxy = await start_proxy("auto")
    api = make_client(proxy, timeouts={"stall": 0.5}, retry={"attempts": 1})

    assert await error_of(api.models.push("mod:m1")) is None


async def test_upload_after_wait_has_new_url(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload_module, "FRESH", -1.0, raising=False)
    make_model(home, files=SMALL)
    proxy = await start_proxy()

    await make_client(proxy).models.push("mod:m1")

    (put,) = proxy.matching("PUT part")
    *_, presigned = proxy.matching("presign")
    assert presigned.at < put.at


# A throttled host


@pytest.fixture
async def two_hosts(start_proxy: StartProxy) -> AsyncIterator[tuple[FaultProxy, FaultProxy]]:
    """A registry, and another host of its storage, which serves the URLs of `busy` models."""
    proxy = await start_proxy()
    async with FaultProxy(proxy.registry) as storage:

        async def presign(exchange: Exchange) -> web.StreamResponse:
            answer = await exchange.forward()
            assert isinstance(answer.body, bytes)
            text = answer.body.decode().replace(proxy.endpoint, storage.endpoint)
            return web.json_response(json.loads(text))

        proxy.add_fault("busy.*presign", presign, times=None)
        yield proxy, storage


async def test_upload_paused_host_holds_no_slot(
    two_hosts: tuple[FaultProxy, FaultProxy], make_client: MakeClient, home: Path
) -> None:
    proxy, storage = two_hosts
    make_model(home, "busy:m1", files={"weights": random_bytes(30 * MiB, 8)})
    make_model(home, files=SMALL)
    storage.add_fault(PART, refuse(503, headers={"Retry-After": "100"}), times=None)
    api = make_client(proxy, transfer={"concurrency": 2})

    busy = asyncio.create_task(api.models.push("busy:m1", threads=6))
    await storage.wait_for("PUT part", 1)
    error = await error_of(api.models.push("mod:m1"))
    busy.cancel()
    with suppress(asyncio.CancelledError):
        await busy

    assert error is None


async def test_download_paused_host_frees_slot(
    two_hosts: tuple[FaultProxy, FaultProxy], make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy, storage = two_hosts
    names = [f"busy{number}:m1" for number in range(4)]
    for name in (*names, "mod:m1"):
        make_model(home, name, files=SMALL)
        await make_client(proxy).models.push(name)
    storage.add_fault(GET, refuse(503, headers={"Retry-After": "100"}), times=None)
    api = make_client(proxy, elsewhere, transfer={"concurrency": 2})

    busy = [asyncio.create_task(api.models.pull(name)) for name in names]
    await storage.wait_for(GET, 1)
    error = await error_of(api.models.pull("mod:m1"))
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)

    assert error is None
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


async def test_aborted_body_drops_connection() -> None:
    class Body(UploadBody):
        async def _write(self, writer: object) -> None:
            assert not aborted

    aborted: list[bool] = []
    writer: Any = SimpleNamespace(transport=SimpleNamespace(abort=lambda: aborted.append(True)))
    source: Any = SimpleNamespace()
    body = Body(source, ByteRange(0, 0), source)
    body.abort()
    await body.write(writer)
    writer.transport = None  # as aiohttp's writer does once the connection is being closed
    body.abort()
    assert aborted == [True]

"""Transfers through the registry if the storage cannot be reached."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from contextlib import closing, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from async_bento import BentoError, PartError, StalledError
from async_bento.transfer import fallback
from tests.builders import KiB, MiB, contents, left_in_scratch, make_bento, make_model, random_bytes
from tests.fault_proxy import DOWNLOAD, FINISH, GET, PART, PUT, UPLOAD, FaultProxy, answer_json, refuse
from tests.platforms import REFUSED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator
    from pathlib import Path

    from aiohttp import web

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange, Fault
    from tests.fixtures import MakeClient, StartProxy

WEIGHTS = random_bytes(11 * MiB, 8)
WAITS = {"attempts": 8, "wait_initial": 0.5, "wait_max": 15}
"""The default policy, whose whole schedule lasts at least 22 seconds."""
WARNING = "All bytes go through the registry instead"


async def error_of(call: Awaitable[object]) -> BentoError | None:
    """Return the error of a call, or None."""
    try:
        await call
    except BentoError as error:
        return error
    return None


def presign_at(origin: str) -> Fault:
    """Forward the request; its presigned URL names another host."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        answer.body = answer.body.replace(exchange.proxy.endpoint.encode(), origin.encode())
        answer.headers.pop("Content-Length", None)
        return answer

    return fault


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent_port() -> Iterator[str]:
    """A port with a full accept queue, which accepts no connection."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(server.getsockname())
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for client in waiting:
            client.close()


@pytest.fixture
def unknown_host(monkeypatch: pytest.MonkeyPatch) -> str:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if host == "minio.yatai.svc":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return "http://minio.yatai.svc:9000"


@pytest.mark.parametrize("storage", ["closed_port", "unknown_host", "silent_port"])
@pytest.mark.parametrize("transmission", ["presigned_url", "auto"])
async def test_unreachable_storage_bypassed(
    storage: str,
    transmission: str,
    request: pytest.FixtureRequest,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    origin: str = request.getfixturevalue(storage)
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy(transmission)
    proxy.add_fault("presign", presign_at(origin), times=None)
    timeouts = {"connect": 1}
    events: list[ProgressEvent] = []
    began = time.monotonic()

    pushing = make_client(proxy, progress=events.append, retry=WAITS, timeouts=timeouts)
    pushed = await error_of(pushing.models.push("mod:m1"))
    pulled = await error_of(make_client(proxy, elsewhere, retry=WAITS, timeouts=timeouts).models.pull("mod:m1"))

    assert (pushed, pulled) == (None, None)
    assert time.monotonic() - began < 30  # two whole schedules last for 44 seconds at least
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")
    assert len(proxy.matching(UPLOAD)) == len(proxy.matching(DOWNLOAD)) == 1
    assert not proxy.matching(FINISH)  # the registry records the success itself
    assert not left_in_scratch(home)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "restarting through the registry: the storage cannot be reached" in [event.message for event in events]
    assert len(warnings) == 2  # of two clients
    assert all(origin in warning and WARNING in warning for warning in warnings)
    assert not any("signature" in record.getMessage() for record in caplog.records)


async def test_unreachable_storage_remembered(
    closed_port: str,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = [f"mod:m{number}" for number in range(4)]
    for tag in models:
        make_model(home, tag, files={"weights": random_bytes(100 * KiB)})
    make_bento(home, models=models)
    proxy = await start_proxy()
    proxy.add_fault("presign", presign_at(closed_port), times=None)
    caplog.set_level(logging.INFO, logger="async_bento")
    api = make_client(proxy)

    assert await error_of(api.models.push("mod:m0")) is None
    retries = sum("retrying" in record.getMessage() for record in caplog.records)
    assert await error_of(api.push("svc:v1")) is None
    assert await error_of(api.pull("svc:v1", force=True, with_models=True)) is None

    assert sum(WARNING in record.getMessage() for record in caplog.records) == 1
    assert sum("retrying" in record.getMessage() for record in caplog.records) == retries
    assert len(proxy.matching(UPLOAD)) == 5


@pytest.mark.parametrize("transmission", ["presigned_url", "auto"])
async def test_error_names_both_causes(
    transmission: str,
    closed_port: str,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
) -> None:
    make_model(home)
    proxy = await start_proxy(transmission)
    await make_client(proxy).models.push("mod:m1")
    proxy.add_fault("presign", presign_at(closed_port), times=None)
    proxy.add_fault(UPLOAD, answer_json(413, {"error": "too large for the registry"}), times=None)
    proxy.add_fault(DOWNLOAD, answer_json(405, {"error": "no such way"}), times=None)

    pushed = str(await error_of(make_client(proxy).models.push("mod:m1", force=True)))
    pulled = str(await error_of(make_client(proxy, elsewhere).models.pull("mod:m1")))

    unreachable = f"cannot reach the storage at {closed_port}: {REFUSED}"
    assert unreachable in pushed
    assert "413" in pushed
    assert "too large for the registry" in pushed
    assert unreachable in pulled
    assert "no such way" in pulled


async def test_reached_storage_is_retried(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, waits: list[float], closed_port: str
) -> None:
    make_model(home, files={"weights": WEIGHTS})
    make_model(home, "mod:m2", files={"weights": WEIGHTS})
    proxy = await start_proxy()
    storage = await _Port.open(proxy)
    proxy.add_fault("presign", presign_at(storage.origin), times=None)
    api = make_client(proxy, retry={"attempts": 8})
    assert await error_of(api.models.push("mod:m1")) is None
    await storage.close()

    error = await error_of(api.models.push("mod:m2", threads=1))

    assert isinstance(error, PartError)
    assert REFUSED in str(error)
    assert len(waits) == 7
    assert not proxy.matching(UPLOAD)


class _Port:
    """A port that leads to a proxy until it is closed."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._host, self._port = proxy.endpoint.removeprefix("http://").split(":")

    @classmethod
    async def open(cls, proxy: FaultProxy) -> _Port:
        port = cls(proxy)
        port._writers = []
        port._server = await asyncio.start_server(port._connect, "127.0.0.1", 0)
        port.origin = f"http://127.0.0.1:{port._server.sockets[0].getsockname()[1]}"
        return port

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.1)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._host, int(self._port))
        self._writers += [writer, there_writer]
        with suppress(ConnectionError):
            await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64 * KiB):
            writer.write(data)
            await writer.drain()
        writer.close()


async def test_resumed_push_not_bypassed(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, closed_port: str
) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy()
    proxy.add_fault("PUT .*partNumber=3", refuse(400, code="InvalidRequest"))
    await error_of(make_client(proxy).models.push("mod:m1", threads=1))
    proxy.add_fault("presign", presign_at(closed_port), times=None)

    error = await error_of(make_client(proxy).models.push("mod:m1", threads=1))

    assert isinstance(error, PartError)
    assert not proxy.matching(UPLOAD)
    proxy._rules.clear()
    proxy.requests.clear()
    assert await error_of(make_client(proxy).models.push("mod:m1")) is None
    assert proxy.steps("PUT part") == ["PUT part 3"]


async def test_resumed_pull_not_bypassed(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, closed_port: str
) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    proxy.add_fault(GET, refuse(400, code="InvalidRequest"), skip=150, times=None)
    await error_of(make_client(proxy, elsewhere).models.pull("mod:m1"))
    assert left_in_scratch(elsewhere, kept=True)
    proxy._rules.clear()
    proxy.add_fault("presign", presign_at(closed_port), times=None)

    error = await error_of(make_client(proxy, elsewhere).models.pull("mod:m1"))

    assert isinstance(error, PartError)
    assert not proxy.matching(DOWNLOAD)
    proxy._rules.clear()
    proxy.requests.clear()
    assert await error_of(make_client(proxy, elsewhere).models.pull("mod:m1")) is None
    assert len(proxy.matching(GET)) < 150


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_storage_unknown_to_http_proxy(
    status: int,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault("presign", presign_at("http://minio.yatai.svc:9000"), times=None)

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(gateway, "127.0.0.1", 0) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        pushed = await error_of(make_client(proxy).models.push("mod:m1"))
        pulled = await error_of(make_client(proxy, elsewhere).models.pull("mod:m1"))

    assert (pushed, pulled) == (None, None)
    assert len(proxy.matching(UPLOAD)) == len(proxy.matching(DOWNLOAD)) == 1


async def test_refused_request_not_bypassed(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(400, code="InvalidRequest"), times=None)

    assert "InvalidRequest" in str(await error_of(make_client(proxy).models.push("mod:m1")))
    assert not proxy.matching(UPLOAD)
    assert not proxy.matching(PART)


def test_windows_refused_is_unreachable() -> None:
    """On Windows, the errno is EINVAL for every reason."""
    refused = ConnectionRefusedError(errno.EINVAL, "The remote computer refused the network connection")
    refused.winerror = 1225  # type: ignore[attr-defined]
    error = PartError("cannot reach the storage")
    error.__cause__ = aiohttp.ClientConnectorError(SimpleNamespace(), refused)  # type: ignore[arg-type]
    storages = SimpleNamespace(reached=set())
    target: Any = SimpleNamespace(
        credentials=None, storage="storage", owner=SimpleNamespace(storages=storages), is_forwarded=False
    )
    assert fallback._reason(target, error) is not None
    refused.winerror = 5  # type: ignore[attr-defined]
    assert fallback._reason(target, error) is None


REFUSAL = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
KEY: Any = SimpleNamespace(host="storage", port=9000, ssl=True)


def storage_target(**changed: Any) -> Any:
    """A target of a storage that was never reached."""
    owner = SimpleNamespace(storages=SimpleNamespace(reached={"http://other"}, unreachable={}))
    state = {"credentials": None, "storage": "http://storage", "owner": owner, "is_forwarded": False}
    return SimpleNamespace(**state | changed)


def caused_by(cause: Exception) -> PartError:
    error = PartError("cannot reach the storage")
    error.__cause__ = cause
    return error


class Waits:
    """The retries of a request after some failures."""

    def __init__(self, failures: int, *, waits: bool = True) -> None:
        self.failures = failures
        self.waits = waits
        self.waited = 0

    async def wait_after(self, error: Exception) -> bool:
        self.waited += 1
        return self.waits


@pytest.mark.parametrize(
    ("failures", "waits", "cause", "waited"),
    [
        (2, True, aiohttp.ClientConnectorError(KEY, REFUSAL), 0),
        (0, True, aiohttp.ConnectionTimeoutError(), 0),
        (0, False, aiohttp.ClientConnectorError(KEY, REFUSAL), 1),
    ],
    ids=["third try", "timeout", "last try"],
)
async def test_storage_is_given_three_tries(failures: int, waits: bool, cause: Exception, waited: int) -> None:
    retries: Any = Waits(failures, waits=waits)
    with pytest.raises(fallback.UnreachableError, match=r"^cannot reach the storage at http://storage: "):
        await fallback.wait_after_failure(retries, storage_target(), caused_by(cause))
    assert retries.waited == waited


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("is_reached", [True, False])
async def test_other_failures_are_retried(waits: bool, is_reached: bool) -> None:
    retries: Any = Waits(5, waits=waits)
    target = storage_target(storage="http://other") if is_reached else None
    error = caused_by(aiohttp.ClientConnectorError(KEY, REFUSAL))
    assert await fallback.wait_after_failure(retries, target, error) is waits
    assert retries.waited == 1


async def test_unreached_storage_is_retried_first() -> None:
    retries: Any = Waits(1)
    error = caused_by(aiohttp.ClientConnectorError(KEY, REFUSAL))
    assert await fallback.wait_after_failure(retries, storage_target(), error)
    unreachable = fallback.UnreachableError("http://storage", "cannot reach the storage")
    assert not await fallback.wait_after_failure(retries, storage_target(), unreachable)
    assert retries.waited == 1


def proxy_error(status: int) -> aiohttp.ClientHttpProxyError:
    request: Any = SimpleNamespace(real_url="http://storage")
    return aiohttp.ClientHttpProxyError(request, (), status=status, message="No")


@pytest.mark.parametrize(
    ("target", "error", "reason"),
    [
        ({}, caused_by(aiohttp.ClientConnectorError(KEY, REFUSAL)), "refused"),
        ({"credentials": "token"}, caused_by(aiohttp.ClientConnectorError(KEY, REFUSAL)), None),
        ({}, caused_by(aiohttp.ClientConnectorError(KEY, OSError(errno.EACCES, "denied"))), None),
        ({}, caused_by(aiohttp.ClientConnectorDNSError(KEY, OSError(errno.EACCES, "no name"))), ""),
        ({}, caused_by(aiohttp.ClientConnectorSSLError(KEY, REFUSAL)), None),
        ({}, caused_by(REFUSAL), None),
        ({}, caused_by(proxy_error(502)), "the proxy answered 502 No"),
        ({}, caused_by(proxy_error(407)), None),
        ({"is_forwarded": True}, PartError("", status=502), "the proxy answered 502"),
        ({"is_forwarded": True}, PartError("", status=500), None),
        ({"is_forwarded": True}, StalledError(""), None),
        ({}, PartError("", status=502), None),
    ],
)
def test_storage_is_unreachable_by_error(target: dict[str, Any], error: Exception, reason: str | None) -> None:
    found = fallback._reason(storage_target(**target), error)
    assert (found is None) == (reason is None)
    assert (reason or "") in (found or "")

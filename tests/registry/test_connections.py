"""Limits and timeouts of connections, rejections before the body, and disclosure by headers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web

from async_bento.registry import connections
from tests.eventually import eventually
from tests.registry.conftest import disk_only

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.registry.conftest import Caller, Serve

pytestmark = disk_only

CHILD = """
import asyncio, resource, sys, time
from async_bento.registry import LocalRegistry

async def main():
    limit, later = int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    async with LocalRegistry(sys.argv[1], api_token="token") as registry:
        if later:
            resource.setrlimit(resource.RLIMIT_NOFILE, (later, limit))
        print(registry.endpoint, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(time.process_time())

asyncio.run(main())
"""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def limited_registry(
    root: Path, limit: int, later: int = 0
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a registry in a process with a limit of open files, and perhaps another one after the start."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(root), str(limit), str(later)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        yield (await child.stdout.readline()).decode().strip(), child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(endpoint).port)


async def get_user(endpoint: str, token: str = "token") -> int:
    headers = {"X-YATAI-API-TOKEN": token}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{endpoint}/api/v1/auth/current", headers=headers) as got,
    ):
        return got.status


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.parametrize(
    "head", [b"", b"GET /api/v1/auth/current HTTP/1.1\r\nHost: x\r\n"], ids=["idle", "half a head"]
)
@pytest.mark.posix("limit of open files")
async def test_connection_limit_drops_idle(tmp_path: Path, head: bytes):
    async with limited_registry(tmp_path, 1024) as (endpoint, child):
        idle = []
        for _ in range(1100):
            idle.append(await connect(endpoint))
            idle[-1][1].write(head)
        for _ in range(20):
            assert await asyncio.wait_for(get_user(endpoint), 10) == 200
        _, err = await child.communicate()
        for _, writer in idle:
            writer.transport.abort()
    assert err == b""  # descriptors were left


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.posix("limit of open files")
def test_descriptor_limit_is_raised():
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    connections.raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize("error", [ValueError, OSError])
@pytest.mark.posix("limit of open files")
def test_descriptor_limit_refused_is_kept(error: type[Exception], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("resource.setrlimit", refuse)
    connections.raise_descriptor_limit()


@pytest.mark.parametrize(
    ("descriptors", "count"), [(10, 1), (66, 1), (68, 2), (1024, 480), (16446, 8191), (16448, 8192), (10**6, 8192)]
)
@pytest.mark.posix("limit of open files")
def test_connection_limit_halves_descriptors(descriptors: int, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (descriptors, descriptors))
    assert connections.connection_limit() == count


@pytest.mark.posix("limit of open files")
def test_unlimited_descriptors_limit_connections(monkeypatch: pytest.MonkeyPatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert connections.connection_limit() == connections.MAX_CONNECTIONS


async def test_closed_server_has_no_sockets():
    """The server also closes the socket of a client that does not read its response."""

    async def send(_: web.Request) -> web.Response:
        return web.Response(body=bytes(32 << 20))

    app = web.Application()
    app.router.add_get("/", send)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    async with connections.accepting(runner, ("127.0.0.1", 0), None, {}) as port:
        reader, writer = await connect(f"http://127.0.0.1:{port}")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        assert runner.server is not None
        (connection,) = runner.server.connections
        assert connection.transport is not None
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.fileno() >= 0
    await connections.close_server(runner)
    assert accepted.fileno() == -1
    writer.transport.abort()


async def test_connection_limit_keeps_newest(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "connection_limit", lambda: 2)
    caller = await serve()
    (oldest, first), (newer, second) = await connect(caller.registry.endpoint), await connect(caller.registry.endpoint)
    reader, third = await connect(caller.registry.endpoint)
    assert await asyncio.wait_for(oldest.read(), 20) == b""
    for writer in (second, third):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    for open_one in (newer, reader):
        assert await asyncio.wait_for(open_one.readline(), 20) == b"HTTP/1.1 200 OK\r\n"
    for writer in (first, second, third):
        writer.close()


async def test_connection_limit_keeps_busy(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "connection_limit", lambda: 1)
    caller = await serve()
    busy, first = await connect(caller.registry.endpoint)
    token = f"X-YATAI-API-TOKEN: {caller.registry.api_token}\r\nExpect: 100-continue\r\nContent-Length: 19"
    first.write(f"POST /api/v1/bento_repositories HTTP/1.1\r\nHost: x\r\n{token}\r\n\r\n".encode())
    assert await asyncio.wait_for(busy.readuntil(b"\r\n\r\n"), 20) == b"HTTP/1.1 100 Continue\r\n\r\n"
    refused, second = await connect(caller.registry.endpoint)
    assert await asyncio.wait_for(refused.read(), 20) == b""
    first.write(b'{ "name": "iris" } ')
    assert await asyncio.wait_for(busy.readline(), 20) == b"HTTP/1.1 200 OK\r\n"
    for writer in (first, second):
        writer.close()


@pytest.mark.posix("limit of open files")
async def test_descriptor_limit_logs_once(tmp_path: Path):
    async with limited_registry(tmp_path, 1024, later=40) as (endpoint, child):
        idle = [await connect(endpoint) for _ in range(200)]
        assert await asyncio.wait_for(get_user(endpoint), 30) == 200
        await asyncio.sleep(1)
        out, err = await child.communicate()
        for _, writer in idle:
            writer.transport.abort()
    assert err.decode().splitlines() == [
        "cannot accept connections: Too many open files. Raise the limit of open files."
    ]
    assert float(out) < 20


async def test_waiting_connections_let_others_run(monkeypatch: pytest.MonkeyPatch):
    turn, turns, make_room = 0, list[int](), connections.Connections._make_room

    def count() -> None:
        nonlocal turn, counting
        turn += 1
        counting = asyncio.get_running_loop().call_soon(count)

    def note(self: connections.Connections) -> bool:
        turns.append(turn)
        return make_room(self)

    monkeypatch.setattr(connections.Connections, "_make_room", note)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    async with connections.accepting(runner, ("127.0.0.1", 0), None, {}) as port:
        counting = asyncio.get_running_loop().call_soon(count)
        clients = [socket.socket() for _ in range(5)]
        for client in clients:  # all of them before the first is accepted
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        await eventually(lambda: len(turns) == 5)
        counting.cancel()
    await connections.close_server(runner)
    for client in clients:
        client.close()
    assert len({*turns}) == 5


async def test_closed_connection_leaves_nothing(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    made: list[connections.Connections] = []
    start = connections.Connections.__init__

    def note(self: connections.Connections, *arguments: Any) -> None:
        made.append(self)
        start(self, *arguments)

    monkeypatch.setattr(connections.Connections, "__init__", note)
    caller = await serve()
    assert await get_user(caller.registry.endpoint, caller.registry.api_token) == 200
    (served,) = made
    await eventually(lambda: not (served._connecting or served._open or served._idle))


async def test_head_timeout_closes(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.2)
    reader, writer = await connect(caller.registry.endpoint)
    writer.write(b"GET /api/v1/auth/current HTTP/1.1\r\n")
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()


async def test_idle_connection_is_closed(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "KEEP_ALIVE", 0.2)
    monkeypatch.setattr(connections, "_LINGER", 60)
    reader, writer = await connect(caller.registry.endpoint)
    writer.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await reader.readline() == b"HTTP/1.1 404 Not Found\r\n"
    await asyncio.wait_for(reader.read(), 20)
    writer.close()


async def test_slow_upload_succeeds(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.2)
    await caller.create()

    async def slow_body() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.sleep(0.5)
        yield b"two"

    assert (await caller.upload(slow_body())).status == 200
    assert (await caller.download()).body == b"onetwo"


async def upload_endlessly(caller: Caller, path: str, *headers: str) -> tuple[bytes, int]:
    """Send a body that does not end; return the response, and the bytes that were sent before the connection closed."""
    reader, writer = await connect(caller.registry.endpoint)
    head = "\r\n".join((f"PUT {path} HTTP/1.1", "Host: x", "Content-Length: 9000000000", *headers, "", ""))
    writer.write(head.encode())

    async def send() -> int:
        sent = 0
        with contextlib.suppress(ConnectionError):
            while not writer.transport.is_closing():
                writer.write(bytes(1 << 20))
                await writer.drain()
                sent += 1 << 20
        return sent

    sending = asyncio.create_task(send())
    response = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    sent = await asyncio.wait_for(sending, 20)
    writer.transport.abort()
    return response, sent


@pytest.mark.parametrize("token", [[], ["X-YATAI-API-TOKEN: wrong"]], ids=["missing", "wrong"])
async def test_upload_without_token_closes(caller: Caller, token: list[str]):
    response, sent = await upload_endlessly(caller, "/api/v1/bento_repositories/iris/bentos/v1/upload", *token)
    assert response.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"Connection: close\r\n" in response
    assert sent < 64 << 20  # what the buffers of the kernel hold


async def test_forged_upload_url_closes(caller: Caller):
    response, sent = await upload_endlessly(caller, "/blobs/bentos/iris/v1.tar?expires=99999999999999&signature=x")
    assert response.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert sent < 64 << 20


@pytest.mark.parametrize("path", ["/api/v1/bento_repositories/iris/bentos/v1/upload", "/blobs/x?expires=9&signature=x"])
async def test_expect_without_token_is_403(caller: Caller, path: str):
    reader, writer = await connect(caller.registry.endpoint)
    writer.write(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n".encode())
    assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.1 403 Forbidden\r\n"
    writer.transport.abort()


async def test_expect_of_late_upload_is_404(caller: Caller):
    await caller.create()
    url = urlsplit(await caller.put_url())
    assert (await caller.bare("PUT", url.geturl(), data=b"bytes")).status == 200
    await caller.finish()
    reader, writer = await connect(caller.registry.endpoint)
    head = f"PUT {url.path}?{url.query} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head.encode())
    assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.1 404 Not Found\r\n"
    writer.transport.abort()


async def test_expect_is_for_http_1_1(caller: Caller):
    """HTTP/1.0 has no interim responses: a client would take it for the response."""
    await caller.create()
    reader, writer = await connect(caller.registry.endpoint)
    token = f"X-YATAI-API-TOKEN: {caller.registry.api_token}\r\nExpect: 100-continue\r\nContent-Length: 5"
    writer.write(f"PUT /api/v1{caller.items()}/v1/upload HTTP/1.0\r\n{token}\r\n\r\nbytes".encode())
    assert await asyncio.wait_for(reader.readline(), 20) == b"HTTP/1.0 200 OK\r\n"
    writer.transport.abort()


async def test_expect_adds_no_logged_bytes(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "access")
    caller = await serve(access_log=logging.getLogger("access"))
    await caller.create()
    for expects in (False, True):
        assert (await caller.upload(b"bytes", expect100=expects)).status == 200

    def sizes() -> list[int]:
        return [each.access["bytes"] for each in caplog.records if each.access["path"].endswith("/upload")]  # type: ignore[attr-defined]

    await eventually(lambda: len(sizes()) == 2)
    assert sizes()[0] == sizes()[1]


async def test_expect_with_token_continues(caller: Caller):
    await caller.create()
    assert (await caller.upload(b"bytes", expect100=True)).status == 200
    response = await caller.bare("PUT", await caller.put_url(), data=b"other", expect100=True)
    assert response.status == 200
    await caller.finish()
    assert (await caller.download()).body == b"other"


async def test_rejection_keeps_connection(caller: Caller):
    response = await caller.api("POST", "/bento_repositories", token="wrong", json={"name": "x"})
    assert response.status == 403
    assert "Connection" not in response.headers


async def test_rejected_body_ends_connection(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    """The client sees the end at once, although the registry keeps the connection a while for the response."""
    monkeypatch.setattr(connections, "_LINGER", 60)
    caller = await serve(grace=0)
    reader, writer = await connect(caller.registry.endpoint)
    writer.write(b"PUT /api/v1/nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nthe start of a body")
    response = await asyncio.wait_for(reader.read(), 20)
    assert response.startswith(b"HTTP/1.1 403 ")
    for _ in range(2):  # of a closed connection, the first write causes a reset, and the second one fails
        writer.write(b"more")
        await writer.drain()
    writer.close()


async def test_malformed_request_hides_its_text(caller: Caller, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    reader, writer = await connect(caller.registry.endpoint)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-YATAI-API-TOKEN: s3cret\0\r\n\r\n")
    response = (await asyncio.wait_for(reader.read(), 20)).decode()
    writer.close()
    assert response.startswith("HTTP/1.0 400 Bad Request\r\n")
    assert "s3cret" not in response + caplog.text
    assert "Server: async-bento\r\n" in response
    assert "a malformed request was rejected: " in caplog.text


@pytest.mark.parametrize(("path", "status"), [("/auth/current", 200), ("/nowhere", 404)])
async def test_server_header_hides_version(caller: Caller, path: str, status: int):
    response = await caller.api("GET", path)
    assert (response.status, response.headers["Server"]) == (status, "async-bento")


async def test_wrong_method_returns_allow(caller: Caller):
    response = await caller.api("DELETE", "/bento_repositories")
    assert response.status == 405
    assert "POST" in response.headers["Allow"].split(",")


async def test_upload_with_repeated_header(caller: Caller):
    """BentoML before 1.3.7 sends this header; the bytes of the body stay unchanged, also in the packet of the head."""
    await caller.create()
    body = b"\r\ncontent-type: a\r\ncontent-type: b\r\n\r\n"
    reader, writer = await connect(caller.registry.endpoint)
    head = [
        f"PUT /api/v1{caller.items()}/v1/upload HTTP/1.1",
        "Host: x",
        f"X-YATAI-API-TOKEN: {caller.registry.api_token}",
        f"Content-Length: {len(body)}",
        "content-type: application/json",
        "Content-Type: application/octet-stream",
    ]
    writer.write("\r\n".join([*head, "", ""]).encode() + body)
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).startswith(b"HTTP/1.1 200 ")
    assert (await caller.download()).body == body
    head.insert(1, "Expect: 100-continue")
    writer.write("\r\n".join([*head, "", ""]).encode())
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).startswith(b"HTTP/1.1 200 ")
    writer.close()
    assert (await caller.download()).body == body

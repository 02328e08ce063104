"""A proxy between client and registry that records every request and answers some of them with faults.

`FaultProxy` forwards every request to a `LocalRegistry`, unchanged, and records it. The registry presigns URLs for the
host that a request was sent to, so the storage's traffic passes the proxy too. A fault is a coroutine that gets a
request and answers it in place of the registry, or forwards it and changes the response. The tests name their faults;
the chaos run draws them from a seed (`tests.chaos.proxy`).
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import socket
import struct
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
from aiohttp import web

from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence
    from types import TracebackType

    from typing_extensions import Self

upstream_transport: ContextVar[asyncio.WriteTransport | None] = ContextVar("upstream_transport")
"""The connection to the registry of the request that is being forwarded."""

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}

PART = r"PUT /blobs/.*partNumber="
PUT = r"PUT /blobs/"
GET = r"GET /blobs/"
UPLOAD = r"PUT .*/upload$"
DOWNLOAD = r"GET .*/download$"
FINISH = r"PATCH .*/finish_upload$"


class Registry(Protocol):
    """The server behind the proxy."""

    @property
    def endpoint(self) -> str: ...
    @property
    def api_token(self) -> str: ...


class Fault(Protocol):
    """Answers a request that would otherwise be forwarded."""

    def __call__(self, exchange: Exchange, /) -> Awaitable[web.StreamResponse]: ...


@dataclass
class LoggedRequest:
    """A request that the proxy received."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    json: Any = None
    body: bytes = b""
    status: int | None = None
    fault: str | None = None
    forwarded: bool = False
    answered: bool = False
    at: float = field(default_factory=time.monotonic)

    @property
    def step(self) -> str:
        """The request without its signature: `PATCH svc/v1/start_upload`, `PUT part 3`, `GET bytes=0-99`."""
        if self.path.startswith("/blobs/"):
            number = self.query.get("partNumber")
            target = f"part {number}" if number else self.headers.get("Range", "blob")
            return f"{self.method} {target}"
        path = self.path.removeprefix("/api/v1/")
        match = re.fullmatch(r"(bento|model)_repositories/([^/]+)/\1s(/.*)?", path)
        return f"{self.method} {match[2]}{match[3] or ''}" if match else f"{self.method} {path}"


@dataclass
class Exchange:
    """A request, and the means to answer it."""

    proxy: FaultProxy
    request: web.Request
    logged: LoggedRequest

    async def forward(self, *, without: Sequence[str] = ()) -> web.Response:
        """Forward the request, without some of its headers, and return the response."""
        body = await self.read()
        streams = self.proxy.streams_downloads and self.request.path.endswith("/download")
        if streams:
            without = (*without, "range", "if-match")
        async with self.proxy.send_upstream(self.request, io.BytesIO(body) if body else None, without) as answer:
            response = web.Response(status=answer.status, headers=end_to_end(answer), body=await answer.read())
            if streams and answer.status == HTTPStatus.OK:
                for name in ("Content-Length", "Accept-Ranges", "ETag"):
                    response.headers.pop(name, None)
                response.enable_chunked_encoding()
            if self.proxy.hides_checksums and response.content_type == "application/json":
                record = json.loads(await answer.read())
                record.pop("checksums", None)
                response.headers.pop("Content-Length", None)
                response.body = json.dumps(record).encode()
            return response

    async def read(self) -> bytes:
        """Read and record the request's body."""
        self.logged.body = await self.request.read()
        if self.request.content_type == "application/json" and self.logged.body:
            self.logged.json = await self.request.json()
        return self.logged.body

    def disconnect(self) -> web.StreamResponse:
        """Abort the connection."""
        assert self.request.transport is not None
        self.request.transport.abort()
        return web.Response()

    async def start_response(self, answer: web.Response, **headers: str | None) -> web.StreamResponse:
        """Send the status and headers of a response, some of them replaced; the fault sends the body."""
        kept = {key: value for key, value in answer.headers.items() if key.replace("-", "_").lower() not in headers}
        given = {key.replace("_", "-"): value for key, value in headers.items() if value is not None}
        response = web.StreamResponse(status=answer.status, headers=kept | given)
        await response.prepare(self.request)
        return response


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    fault: Fault
    times: int | None
    skip: int
    met: int = 0

    def applies(self, line: str) -> bool:
        if not self.pattern.search(line):
            return False
        self.met += 1
        return self.met > self.skip and (self.times is None or self.met <= self.skip + self.times)


@dataclass
class FaultProxy:
    """A server that forwards requests to a registry; `max_concurrent` counts the PUTs and GETs of tars, by method.

    Unlike the registry, and as Yatai, it streams downloads through it without length, ETag and ranges, unless
    `streams_downloads` is False. With `hides_checksums`, records have no checksums of the tars, as Yatai's.
    """

    registry: Registry
    requests: list[LoggedRequest] = field(default_factory=list)
    max_concurrent: Counter[str] = field(default_factory=Counter)
    endpoint: str = ""
    address: tuple[str, int] = ("", 0)
    lingering_time: float = 10.0
    streams_downloads: bool = True
    hides_checksums: bool = False
    _rules: list[_Rule] = field(default_factory=list)
    _concurrent: Counter[str] = field(default_factory=Counter)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _arrival: asyncio.Event = field(default_factory=asyncio.Event)
    _handlers: set[asyncio.Task[Any]] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(
                auto_decompress=False,
                connector=_Connector(limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        )
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            app, auto_decompress=False, shutdown_timeout=0.1, lingering_time=self.lingering_time
        )
        await self._runner.setup()
        self._stack.push_async_callback(self._cancel_handlers)
        self._stack.push_async_callback(close_server, self._runner)
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self.address = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _cancel_handlers(self) -> None:
        """Cancel the handlers that still wait: aiohttp cancels no handler whose client has disconnected."""
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def add_fault(self, pattern: str, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Answer requests whose `METHOD path?query` matches by a fault: `times` of them (None: all), after `skip`."""
        self._rules.append(_Rule(re.compile(pattern), fault, times, skip))

    def steps(self, pattern: str = "") -> list[str]:
        """Return the steps of the requests that match."""
        return [request.step for request in self.matching(pattern)]

    def matching(self, pattern: str) -> list[LoggedRequest]:
        """Return the requests whose `METHOD path` or step matches a pattern."""
        found = re.compile(pattern)
        return [
            request
            for request in self.requests
            if found.search(f"{request.method} {request.path}") or found.search(request.step)
        ]

    async def wait_for(self, pattern: str, count: int) -> None:
        """Wait for `count` requests that match a pattern."""
        while len(self.matching(pattern)) < count:
            self._arrival.clear()
            await self._arrival.wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        logged = LoggedRequest(request.method, request.path, dict(request.query), dict(request.headers))
        self.requests.append(logged)
        self._arrival.set()
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        kind = request.method if "/blobs/" in request.path or request.path.endswith(("/upload", "/download")) else ""
        self._concurrent[kind] += 1
        self.max_concurrent[kind] = max(self.max_concurrent[kind], self._concurrent[kind])
        try:
            exchange = Exchange(self, request, logged)
            line = f"{request.method} {request.path_qs}"
            for rule in self._rules:
                if rule.applies(line):
                    response = await rule.fault(exchange)
                    break
            else:
                response = await exchange.forward()
            if logged.status is None:
                logged.status = response.status
            return response
        finally:
            self._concurrent[kind] -= 1
            self._handlers.discard(handler)

    @asynccontextmanager
    async def send_upstream(
        self, request: web.Request, body: object, without: Sequence[str] = ()
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request with this body to the registry; the response's body is not read yet."""
        if not self.registry.endpoint:
            raise ConnectionRefusedError
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP | {*without}}
        async with self._session.request(
            request.method,
            self.registry.endpoint + request.raw_path.removeprefix(self.endpoint),  # a proxy's request has it
            headers=headers,
            data=body,
            allow_redirects=False,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept-Encoding"),
        ) as answer:
            yield answer

    async def close_connections(self) -> None:
        """Close all client connections, including those with unanswered requests."""
        assert self._runner.server is not None
        await self._runner.server.shutdown(0.01)


def end_to_end(answer: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the headers of a response that are meant for the client."""
    return {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}


def reset(transport: asyncio.BaseTransport | None) -> None:
    """Abort a connection with a RST, even if all received bytes were read."""
    if transport is None:
        return
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()


class _Connector(aiohttp.TCPConnector):
    async def connect(self, *arguments: Any, **options: Any) -> Any:
        connection = await super().connect(*arguments, **options)
        upstream_transport.set(connection.transport)
        return connection


def refuse(
    status: int,
    *,
    code: str = "SlowDown",
    message: str = "injected fault",
    headers: dict[str, str] | None = None,
    read: bool = True,
) -> Fault:
    """Answer with an error of S3, before or after the body is read."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        if read:
            await exchange.read()
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        return web.Response(status=status, text=text, content_type="application/xml", headers=headers)

    return fault


def answer_json(status: int, body: object) -> Fault:
    """Answer with JSON, as the registry does."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await exchange.read()
        return web.json_response(body, status=status)

    return fault


def answer_page(status: int = 200) -> Fault:
    """Answer with an HTML page."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await exchange.read()
        page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>secret words</body></html>"
        return web.Response(status=status, text=page, content_type="text/html")

    return fault


def with_headers(**headers: str | None) -> Fault:
    """Forward the request and change headers of the response; None removes a header."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        for key, value in headers.items():
            answer.headers.pop(key.replace("_", "-"), None)
            if value is not None:
                answer.headers[key.replace("_", "-")] = value
        return answer

    return fault


async def lose_answer(exchange: Exchange) -> web.StreamResponse:
    """Forward the request and abort the connection in place of a response."""
    await exchange.forward()
    return exchange.disconnect()


async def disconnect(exchange: Exchange) -> web.StreamResponse:
    """Abort the connection before the body is read."""
    return exchange.disconnect()


def disconnect_while_reading(size: int) -> Fault:
    """Abort the connection after `size` bytes of the body."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        received = 0
        async for chunk in exchange.request.content.iter_any():
            received += len(chunk)
            if received >= size:
                break
        return exchange.disconnect()

    return fault


async def _send_start(exchange: Exchange, size: int) -> tuple[web.StreamResponse, bytes]:
    """Send the first `size` bytes of the response; return it, and the bytes that are left."""
    answer = await exchange.forward()
    assert isinstance(answer.body, bytes)
    response = await exchange.start_response(answer)
    await response.write(answer.body[:size])
    return response, answer.body[size:]


def disconnect_while_sending(size: int) -> Fault:
    """Abort the connection after `size` bytes of the response."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await _send_start(exchange, size)
        return exchange.disconnect()

    return fault


def end_early(size: int) -> Fault:
    """End the response after `size` bytes, without a Content-Length that would reveal it."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        response = web.StreamResponse(
            status=answer.status,
            headers={key: value for key, value in answer.headers.items() if key != "Content-Length"},
        )
        response.enable_chunked_encoding()
        await response.prepare(exchange.request)
        await response.write(answer.body[:size])
        await response.write_eof()
        return response

    return fault


@dataclass
class Hold:
    """Holds requests until a test sets `released`; `arrived` is set when `count` requests are held."""

    count: int = 1
    fault: Fault | None = None
    held: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, exchange: Exchange) -> web.StreamResponse:
        if exchange.request.content_type == "application/json":
            await exchange.read()
        self.held += 1
        if self.held >= self.count:
            self.arrived.set()
        await self.released.wait()
        return await (self.fault(exchange) if self.fault else exchange.forward())


def stop_reading(forever: asyncio.Event) -> Fault:
    """Neither read the body nor answer."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await forever.wait()
        return exchange.disconnect()

    return fault


def read_slowly(rate: int, upto: int) -> Fault:
    """Read the first `upto` bytes of the body at `rate` bytes per second, the rest at full speed."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        pieces: list[bytes] = []
        for _ in range(50 * upto // rate):
            await asyncio.sleep(0.02)
            pieces.append(await exchange.request.content.readexactly(rate // 50))
        exchange.logged.body = b"".join([*pieces, await exchange.request.content.read()])
        return web.Response(headers={"ETag": '"not-an-md5"'})

    return fault


def stop_sending(size: int, forever: asyncio.Event) -> Fault:
    """Stall after `size` bytes of the response."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        response = await exchange.start_response(answer)
        with suppress(ConnectionError):
            await response.write(answer.body[:size])
            await forever.wait()
        return exchange.disconnect()

    return fault


def pause_sending(size: int, until: asyncio.Event) -> Fault:
    """Pause after `size` bytes of the response, and send the rest after the event."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        response, rest = await _send_start(exchange, size)
        await until.wait()
        await response.write(rest)
        return response

    return fault


async def ignore_range(exchange: Exchange) -> web.StreamResponse:
    """Answer with the whole object, whatever range was requested."""
    return await exchange.forward(without=["range"])


def in_sequence(*faults: Fault) -> Fault:
    """Apply one fault after the other, the last to all further requests."""
    remaining = list(faults)

    async def fault(exchange: Exchange) -> web.StreamResponse:
        return await (remaining.pop(0) if len(remaining) > 1 else remaining[0])(exchange)

    return fault


async def no_fault(exchange: Exchange) -> web.StreamResponse:
    """Forward the request unchanged."""
    return await exchange.forward()

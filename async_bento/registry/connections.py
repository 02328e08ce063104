"""The registry's connections: accepting, limits, timeouts, and rejections before the body is read.

aiohttp has no timeout for the head of a request and no limit on connections, and asyncio accepts in a busy loop when
the process has no descriptors left. Without these limits, idle connections without a token lock other clients out.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import sys
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Callable, Sequence

HEAD_TIMEOUT = 30.0
"""The time in seconds within which a new connection must send the head of a request, TLS included."""

KEEP_ALIVE = 180.0
"""The time in seconds until the next request; as proxies, Caddy keeps idle connections for 120 and Traefik for 90."""

MAX_CONNECTIONS = 8192
"""An idle connection takes about 20 KiB of memory."""

_RESERVED = 64
"""Descriptors for the database, the log and the like."""

_LINGER = 2.0
"""The time in seconds in which a client can read why its body was rejected."""

_ACCEPT_PAUSE = 0.1
"""The time in seconds until the next attempt when no connection can be accepted."""

_LOG_INTERVAL = 60.0
"""The minimum time in seconds between two lines about that."""

_BACKLOG = 512

_ACCEPT_STEPS = 3
"""Iterations of the event loop until a connection that was accepted is known."""

SERVER_NAME = "async-bento"

log = logging.getLogger(__package__)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard limit, where the system has such limits."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS refuses its own hard limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limit() -> int:
    """Return how many connections the limit of open files allows: each may need another file for its bytes."""
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return max(min((soft - _RESERVED) // 2, MAX_CONNECTIONS), 1)
    return MAX_CONNECTIONS


@asynccontextmanager
async def accepting(
    runner: web.BaseRunner, address: tuple[str, int], tls: ssl.SSLContext | None, options: dict[str, Any]
) -> AsyncGenerator[int]:
    """Accept connections for a runner, with options of aiohttp's `RequestHandler`, and yield the port.

    The exit leaves the accepted connections open. Raise `OSError` if the address is unusable.
    """
    server = runner.server
    assert server is not None
    with ExitStack() as stack:
        listening = await _open_sockets(stack, *address)
        connections = Connections(server, connection_limit(), options)
        tasks = [asyncio.create_task(connections.accept(each, tls)) for each in listening]
        try:
            yield int(listening[0].getsockname()[1])
        finally:
            await connections.close(listening, tasks)


async def close_server(runner: web.BaseRunner) -> None:
    """Stop a server and close all its connections, also those that wait for a client that does not read."""
    connections = [] if runner.server is None else runner.server.connections
    transports = [connection.transport for connection in connections]
    await runner.cleanup()
    for transport in transports:
        if transport is not None:
            transport.abort()
    await asyncio.sleep(0)  # asyncio closes the sockets in the next iteration


async def _open_sockets(stack: ExitStack, host: str, port: int) -> list[socket.socket]:
    """Listen on all addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        opened = socket.create_server(address, family=family, backlog=_BACKLOG)
        stack.callback(opened.close)
        opened.setblocking(False)
        listening.append(opened)
    return listening


_CONTENT_TYPE = re.compile(rb"(?<=\r\n)content-type:[^\r\n]*\r\n", re.IGNORECASE)


class Connections:
    """The open connections of a server; above the limit, a new one replaces the one that has been idle longest."""

    def __init__(self, server: web.Server, limit: int, options: dict[str, Any]) -> None:
        self._server = server
        self._limit = limit
        self._options = options
        self._open: set[object] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._idle: dict[object, Callable[[], object]] = {}  # how to close each, the longest idle first
        self._next_log = 0.0
        self._is_closing = False
        handle = server.request_handler

        async def receive_head(request: web.BaseRequest) -> web.StreamResponse:
            assert isinstance(request.protocol, Connection)
            request.protocol.receive_head()
            return await handle(request)

        server.request_handler = receive_head

    def add(self, connection: object) -> None:
        """Count a connection."""
        self._open.add(connection)

    def discard(self, connection: object) -> None:
        """Forget a connection that is closed."""
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def mark_idle(self, connection: object, close: Callable[[], object]) -> None:
        """Let a connection be closed for a new one."""
        if connection in self._open:
            self._idle[connection] = close

    def mark_busy(self, connection: object) -> None:
        """Keep a connection while it has a request."""
        self._idle.pop(connection, None)

    async def accept(self, listening: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections until `close`."""
        loop = asyncio.get_running_loop()
        while not self._is_closing:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                await self._pause(error)
                continue
            if self._make_room():
                connecting = loop.create_task(self._connect(accepted, tls))
                self._connecting.add(connecting)
                self.add(connecting)
                self.mark_idle(connecting, connecting.cancel)
                connecting.add_done_callback(partial(self._finish_connecting, accepted))
            else:
                accepted.close()  # clients retry
            # `sock_accept` does not suspend while connections are waiting: other tasks need a turn.
            await asyncio.sleep(0)

    async def close(self, listening: Sequence[socket.socket], accepting: Sequence[asyncio.Task[None]]) -> None:
        """Stop accepting, and cancel TLS handshakes."""
        loop = asyncio.get_running_loop()
        self._is_closing = True
        for each in listening:
            with suppress(NotImplementedError):  # by Windows' loop
                loop.remove_reader(each)
        for _ in range(_ACCEPT_STEPS):
            await asyncio.sleep(0)
        unfinished = [*accepting, *self._connecting]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    async def _pause(self, error: OSError) -> None:
        if isinstance(error, ConnectionError):
            return  # the client has hung up
        now = asyncio.get_running_loop().time()
        if now >= self._next_log:
            self._next_log = now + _LOG_INTERVAL
            log.error("cannot accept connections: %s. Raise the limit of open files.", error.strerror or error)
        self._make_room(count=_RESERVED)
        await asyncio.sleep(_ACCEPT_PAUSE)

    def _finish_connecting(self, accepted: socket.socket, connecting: asyncio.Task[None]) -> None:
        self._connecting.discard(connecting)
        self.discard(connecting)
        if connecting.cancelled():
            accepted.close()

    def _make_room(self, count: int | None = None) -> bool:
        """Close the connections that have been idle longest, those above the limit or `count`."""
        for _ in range(len(self._open) + 1 - self._limit if count is None else count):
            if not self._idle:
                return False
            connection, close = next(iter(self._idle.items()))
            self.discard(connection)
            close()
        return True

    async def _connect(self, accepted: socket.socket, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        timeout = None if tls is None else HEAD_TIMEOUT
        try:
            await loop.connect_accepted_socket(
                lambda: Connection(self, self._server, self._options), accepted, ssl=tls, ssl_handshake_timeout=timeout
            )
        except OSError as error:
            log.debug("a connection was closed before its first request: %s", type(error).__name__)


class Connection(web.RequestHandler):
    """A connection that is closed if no complete head of a request arrives in time."""

    __slots__ = ("_connections", "_expects_head", "_timer")

    def __init__(self, connections: Connections, server: web.Server, options: dict[str, Any]) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._connections = connections
        self._timer: asyncio.TimerHandle | None = None
        self._expects_head: bool

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`. Of a repeated Content-Type, which aiohttp refuses, the last one is kept.

        BentoML before 1.3.7 repeats it in its uploads through the registry.
        """
        if self._expects_head:
            self._expects_head = False
            found = [*_CONTENT_TYPE.finditer(data[: data.find(b"\r\n\r\n") + 2])]
            for repeated in reversed(found[:-1]):
                data = data[: repeated.start()] + data[repeated.end() :]
        super().data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._connections.add(self)
        super().connection_made(transport)
        self._wait_for_head(HEAD_TIMEOUT)

    def connection_lost(self, exc: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self.receive_head()
        self._connections.discard(self)
        super().connection_lost(exc)

    def receive_head(self) -> None:
        """Stop the timeout: a request has arrived."""
        self._connections.mark_busy(self)
        if self._timer is not None:
            self._timer.cancel()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response; after an error, close the connection instead of reading the rest of the body."""
        is_rejected = resp.status >= web.HTTPBadRequest.status_code and not request.content.is_eof()
        if is_rejected:
            resp.force_close()
        finished = await super().finish_response(request, resp, start_time)
        self._wait_for_head(_LINGER if is_rejected else KEEP_ALIVE)
        if is_rejected and (transport := request.transport) is not None:
            transport.pause_reading()
            # If the connection is closed now, unread bytes make the kernel reset it, and the client may lose the
            # response (RFC 9112, 9.6).
            if transport.can_write_eof():
                transport.write_eof()
            await asyncio.sleep(_LINGER)  # until the timeout aborts the connection
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Reject a malformed request; its text may hold a token, so that it is neither logged nor sent back."""
        if status == web.HTTPInternalServerError.status_code:
            response = super().handle_error(request, status, exc, message)
        else:
            log.info("a malformed request was rejected: %s", type(exc).__name__)
            response = web.json_response({"error": "the request is malformed"}, status=status)
            response.force_close()
        response.headers["Server"] = SERVER_NAME
        return response

    def _wait_for_head(self, timeout: float) -> None:
        self.receive_head()  # aiohttp rejects a malformed request without it
        self._expects_head = True
        if self.transport is None:
            return  # closed meanwhile
        self._timer = asyncio.get_running_loop().call_later(timeout, self._abort)
        self._connections.mark_idle(self, self._abort)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

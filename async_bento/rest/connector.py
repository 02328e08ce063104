"""aiohttp sessions that end with their event loop, with their client, or, silently, with a fork."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from async_bento._core.thread_pool import DaemonThreadPool

# A look-up imports it in its thread: a child that is forked meanwhile would wait for it for ever.
import_module("encodings.idna")


class Connector(aiohttp.TCPConnector):
    """A connector of which aiohttp does not complain when it is collected open.

    That happens in a forked child, where closing it would remove the parent's sockets from the epoll they share, and
    after an event loop was closed without `shutdown_asyncgens`, when it cannot be closed any more.
    """

    def __del__(self, _warnings: Any = None) -> None:
        """Do nothing, unlike aiohttp's connector."""


class Resolver(AbstractResolver):
    """Looks names up in the client's own threads.

    aiohttp's resolver uses asyncio's default executor, which refuses work once the main thread has ended.
    """

    def __init__(self, threads: DaemonThreadPool) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look a name up; a cancelled look-up leaves its thread to the system's own timeout."""
        found = await asyncio.wrap_future(self._threads.submit(_look_up, host, port, family))
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=protocol, flags=_NUMERIC)
            for kind, protocol, address in found
        ]

    async def close(self) -> None:
        """Do nothing: the threads end with the client."""


_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


def _look_up(host: str, port: int, family: socket.AddressFamily) -> list[tuple[socket.AddressFamily, int, str]]:
    """The family, protocol and numeric address of each address of a name. Blocks."""
    # AI_ADDRCONFIG as in aiohttp's resolver: no IPv6 addresses on a machine that has none.
    infos = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    # getnameinfo keeps the scope of a link-local IPv6 address, as in fe80::1%eth0.
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    return [(kind, protocol, socket.getnameinfo(address, numeric)[0]) for kind, _, protocol, _, address in infos]


async def keep_session(session: aiohttp.ClientSession) -> AsyncGenerator[aiohttp.ClientSession]:
    """Yield a session, and close it at the end of this generator.

    The event loop ends it: when it is collected, and when the loop itself ends (`loop.shutdown_asyncgens`).
    """
    process, connector = os.getpid(), session.connector
    try:
        yield session
    finally:
        # Not `close`, which closes the connector: in a forked child, its sockets are those of the parent.
        session.detach()
        if connector is not None and os.getpid() == process:
            await connector.close()


def run_step(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that waits for nothing. It is left alone if another thread is running it (RuntimeError)."""
    with suppress(StopIteration, StopAsyncIteration, RuntimeError):
        coroutine.send(None)

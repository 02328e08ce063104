"""Servers of tests."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from async_bento.registry import connections

if TYPE_CHECKING:
    from aiohttp import web

LOWEST_PORT, EPHEMERAL_PORT = 10_000, 32_768
"""Ports from the second on are those that Linux gives to connections; other systems' are higher."""


async def close_server(runner: web.BaseRunner) -> None:
    """Stop a server with aiohttp's sites and close all its connections."""
    loop = asyncio.get_running_loop()
    for site in runner.sites:
        # asyncio loses a connection that it accepts in the iteration in which it closes the server.
        server = getattr(site, "_server", None)  # not public in aiohttp
        for listening in getattr(server, "sockets", ()):
            with suppress(NotImplementedError):  # on the loop of Windows
                loop.remove_reader(listening)
    await connections.close_server(runner)


def free_ports(count: int) -> list[int]:
    """Return random ports that no program uses; the system gives none of them to connections, which would take them."""
    ports = set[int]()
    with ExitStack() as stack:
        while len(ports) < count:
            port = LOWEST_PORT + secrets.randbelow(EPHEMERAL_PORT - LOWEST_PORT)
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.add(port)
    return [*ports]

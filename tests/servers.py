"""Servers of tests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from async_bento.registry import connections

if TYPE_CHECKING:
    from aiohttp import web


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

"""sendfile(2) to the connection of a `TarBody`: the kernel sends files from its page cache, without a copy in Python.

asyncio's `loop.sendfile` stops reading the connection meanwhile, so that the response of a storage that refuses a part
early would be lost. Here, the transport goes on reading, while a duplicate of its descriptor is written to.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from async_bento.config import MiB

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

HAS_SENDFILE = sys.platform == "linux"

STEP = 4 * MiB
"""Bytes that a worker thread sends before the event loop counts them."""


def is_possible(writer: AbstractStreamWriter) -> bool:
    """Whether the kernel can send to a request's connection: plain TCP, on Linux."""
    transport: object = writer.transport
    return (
        HAS_SENDFILE
        and isinstance(transport, asyncio.Transport)
        and transport.get_extra_info("sslcontext") is None
        and transport.get_extra_info("socket") is not None
    )


async def flush(writer: AbstractStreamWriter) -> None:
    """Wait until the kernel has all that was written."""
    writer.send_headers()  # aiohttp holds them back, to send them with the first bytes of a body
    transport = _open_transport(writer)
    transport.set_write_buffer_limits(high=0)  # so that `drain` waits until the buffer is empty
    try:
        await writer.drain()
    finally:
        transport.set_write_buffer_limits()


def duplicate(writer: AbstractStreamWriter) -> int | None:
    """Return a new descriptor of the connection; None where the process may open no more."""
    # asyncio refuses `add_writer` for the descriptor of a transport, and the transport may close its own at any time.
    try:
        return os.dup(_open_transport(writer).get_extra_info("socket").fileno())
    except ConnectionError:  # an OSError, too, but no lack of descriptors
        raise
    except OSError:
        return None


def _open_transport(writer: AbstractStreamWriter) -> asyncio.WriteTransport:
    transport = writer.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the connection was lost")
    return transport


async def writable(connection: int) -> None:
    """Wait until a connection takes bytes, or has failed."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def set_writable() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_writer(connection, set_writable)
    try:
        await future
    finally:
        loop.remove_writer(connection)

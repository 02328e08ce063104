"""`Expect: 100-continue` (RFC 9110, 10.1.1): clients send the body once the registry has accepted the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web


async def defer_continue(_request: web.Request) -> None:
    """Leave the response to `send_continue`; aiohttp would send it before the token is checked."""


async def send_continue(request: web.Request) -> None:
    """Ask the client for the body, once its token or URL is accepted."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # of the response itself, as in aiohttp's own handler

"""An HTTP proxy between client and registry that accepts some connections and never answers them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.silent import serving

if TYPE_CHECKING:
    from collections import Counter
    from types import TracebackType

    from typing_extensions import Self

    from tests.chaos.case import Silence

PIECE = 64 * 1024


class SilentProxy:
    """Forwards connections to a server, except the silent ones of a call, which `counts` counts."""

    def __init__(self, host: str, port: int, counts: Counter[str]) -> None:
        self.url = ""
        self._server = (host, port)
        self._counts = counts
        self._silence: Silence | None = None
        self._accepted = 0

    async def __aenter__(self) -> Self:
        self._serving = serving(self._connected)
        self.url = f"http://{await self._serving.__aenter__()}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._serving.__aexit__(kind, error, trace)

    def begin(self, silence: Silence) -> None:
        """Start a call."""
        self._silence, self._accepted = silence, 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._accepted += 1
        if self._silence is None or self._silence.draw(self._accepted):
            self._counts["silent proxy"] += 1
            await asyncio.Event().wait()
        server_reader, server_writer = await asyncio.open_connection(*self._server)
        try:
            passing = [asyncio.create_task(_pass(*ends)) for ends in ((reader, server_writer), (server_reader, writer))]
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
        finally:
            server_writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()

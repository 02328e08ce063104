"""Simulate a network link in user space, with a round-trip time and a rate per connection.

    python benchmarks/link.py --to 127.0.0.1:3000 --round-trip 40 --rate 20

The process prints its port and forwards connections until it is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import cast

BURST = 0.02
"""Seconds of idle time that a connection can make up for; timers are late by less."""

IN_FLIGHT = 1024 * 1024
"""Bytes in flight per connection, in addition to the bandwidth-delay product."""

UNLIMITED = 1e9


@dataclass(frozen=True)
class Path:
    """The parameters of all connections: the target, the one-way delay in seconds, and bytes a second per direction."""

    host: str
    port: int
    delay: float
    rate: float


class End(asyncio.Protocol):
    """One end of a connection, which forwards received data to the other end with a delay."""

    other: End
    transport: asyncio.Transport

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._free_at = 0.0
        self._under_way: deque[bytes | None] = deque()
        self._in_flight = 0
        self._most = IN_FLIGHT + path.rate * path.delay
        self._other_is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._free_at = max(self._free_at, self._loop.time() - BURST) + len(data) / self._path.rate
        self._in_flight += len(data)
        self._send(data)
        self._pace()

    def eof_received(self) -> bool:
        self._send(None)
        return True  # keep the other direction open

    def connection_lost(self, exc: Exception | None) -> None:
        self._loop.call_at(self._free_at + 2 * self._path.delay, self._close_other)

    def pause_writing(self) -> None:
        self.other.is_full(True)

    def resume_writing(self) -> None:
        self.other.is_full(False)

    def is_full(self, full: bool) -> None:
        """Pause or resume reading when the other end's peer stops or resumes reading."""
        self._other_is_full = full
        self._pace()

    def _send(self, data: bytes | None) -> None:
        self._under_way.append(data)
        self._loop.call_at(max(self._free_at, self._loop.time()) + self._path.delay, self._deliver)

    def _deliver(self) -> None:
        data = self._under_way.popleft()
        if not self.other.transport.is_closing():
            if data is None:
                self.other.transport.write_eof()
            else:
                self.other.transport.write(data)
        self._in_flight -= len(data or b"")
        self._pace()

    def _pace(self) -> None:
        if self.transport.is_closing():
            return
        if self._other_is_full or self._in_flight > self._most:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _close_other(self) -> None:
        if hasattr(self.other, "transport"):
            self.other.transport.close()


class Near(End):
    """The end that clients connect to."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._loop.call_soon(self.transport.pause_reading)  # later: Python 3.10 starts to read after this
        self.other = End(self._path)
        self.other.other = self
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        """Connect to the server after the round trip of the handshake."""
        await asyncio.sleep(2 * self._path.delay)
        try:
            await self._loop.create_connection(lambda: self.other, self._path.host, self._path.port)
        except OSError:
            self.transport.abort()
        else:
            self.transport.resume_reading()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--round-trip", type=float, default=0.0, metavar="MS")
    parser.add_argument("--rate", type=float, default=0.0, metavar="MB/S", help="per connection; 0 for no limit")
    options = parser.parse_args()
    host, _, port = options.to.rpartition(":")
    path = Path(host, int(port), delay=options.round_trip / 2000, rate=options.rate * 1e6 or UNLIMITED)
    server = await asyncio.get_running_loop().create_server(lambda: Near(path), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())

"""A link in user space: what goes through it takes a round trip's time, and each connection has a rate of its own.

    python benchmarks/link.py --to 127.0.0.1:3000 --round-trip 40 --rate 20

prints the port it listens on, and carries bytes until it is stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from functools import partial

HOP = 64 * 1024


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, rate: float) -> None:
    """Hand on what arrives `delay` seconds later, `rate` bytes a second at most."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

    async def take_in() -> None:
        free_at = loop.time()
        while data := await reader.read(HOP):
            free_at = max(free_at, loop.time()) + (len(data) / rate if rate else 0)
            await asyncio.sleep(free_at - loop.time())
            await under_way.put((loop.time() + delay, data))
        await under_way.put((loop.time() + delay, b""))

    taking = asyncio.create_task(take_in())
    try:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
    finally:
        taking.cancel()


async def connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, host: str, port: int, delay: float, rate: float
) -> None:
    """Join one connection to the server behind the link; the handshake takes its round trip too."""
    await asyncio.sleep(2 * delay)
    try:
        far_reader, far_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.close()
        return
    try:
        with contextlib.suppress(OSError):
            await asyncio.gather(
                carry(reader, far_writer, delay, rate), carry(far_reader, writer, delay, rate), return_exceptions=True
            )
    finally:
        writer.close()
        far_writer.close()


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, metavar="HOST:PORT")
    parser.add_argument("--round-trip", type=float, default=0.0, metavar="MS")
    parser.add_argument("--rate", type=float, default=0.0, metavar="MB/S", help="of each connection; 0 for no limit")
    options = parser.parse_args()
    host, _, port = options.to.rpartition(":")
    joined = partial(connect, host=host, port=int(port), delay=options.round_trip / 2000, rate=options.rate * 1e6)
    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())

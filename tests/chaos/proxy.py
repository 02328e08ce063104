"""A TCP proxy between client and registry that knows where a request of HTTP/1.1 begins and ends, and does it harm."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from random import Random
    from types import TracebackType

    from typing_extensions import Self

    from tests.chaos.case import Moment, Weather

PIECE = 64 * 1024
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>A page for people</body></html>"
_HEAD = 64 * 1024


class Head(NamedTuple):
    """What stands before a body."""

    line: str
    fields: dict[str, str]
    raw: bytes

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.line.split(" ")[1])


@dataclass
class Passed:
    """A request that came, and what became of it."""

    ordinal: int
    step: str
    body: bytes = b""
    fault: str | None = None
    passed_on: bool = False
    status: int | None = None
    answered: bool = False

    def __str__(self) -> str:
        came = f"{self.status}{'' if self.answered else ', lost'}" if self.status else "no answer"
        return f"{self.ordinal:4} {self.step} {self.body.decode(errors='replace')[:120]} [{self.fault or '-'}] {came}"


class _BrokenError(Exception):
    """A connection is of no use any more."""


@dataclass
class Proxy:
    """A proxy on this machine.

    Attributes:
        port: Where it listens.
        upstream: The port of what it leads to; None for a host that is down.
        weather: What befalls requests; None for nothing.
        log: The requests of this call.
        counts: The faults so far, by kind.
    """

    port: int = 0
    upstream: int | None = None
    weather: Weather | None = None
    log: list[Passed] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _steps: Counter[str] = field(default_factory=Counter)
    _came: asyncio.Event = field(default_factory=asyncio.Event)
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_HEAD)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        await self.end()

    def begin(self, weather: Weather | None) -> None:
        """Begin a call."""
        self.weather = weather
        self.log = []
        self._steps = Counter()

    async def end(self) -> None:
        """End a call, with all of its connections."""
        self.weather = None
        connections = [*self._connections]
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def reached(self, moment: Moment) -> None:
        """Wait for a moment of this call."""
        while len(self.log) < moment.request:
            self._came.clear()
            await self._came.wait()
        await asyncio.sleep(moment.delay)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (_BrokenError, ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Take care of a request; returns whether there may be another."""
        head = await _head(reader)
        if head is None:
            return False
        step = _step(head)
        passed = Passed(len(self.log) + 1, step)
        self.log.append(passed)
        self._came.set()
        fault, random = None, None
        if self.weather is not None:
            fault, random = self.weather.draw(passed.ordinal, step, self._steps[step])
        self._steps[step] += 1
        length = int(head.fields.get("content-length", "0"))
        if fault == "flip" and not (length and step.startswith("PUT blob")):
            fault = None  # what is said to the registry has no checksum but TLS's
        passed.fault = fault
        if fault is not None:
            self.counts[fault] += 1
        return await _Exchange(self, head, length, passed, reader, writer, fault, random).run()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Reach what this leads to."""
        if self.upstream is None:
            raise _BrokenError
        try:
            return await asyncio.open_connection("127.0.0.1", self.upstream, limit=_HEAD)
        except OSError as error:
            raise _BrokenError from error


@dataclass
class _Exchange:
    """One request and its answer."""

    proxy: Proxy
    head: Head
    length: int
    passed: Passed
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    fault: str | None
    random: Random | None

    async def run(self) -> bool:
        fault, random = self.fault, self.random
        if fault is None or random is None:
            return await self._pass_on()
        if fault == "reset":
            return _reset(self.writer)
        if fault[0].isdigit():
            return await self._answer(fault)
        if fault == "hang":
            await self._gone(3600)
            return False
        if fault == "stall" and await self._gone(random.uniform(0.2, 3.0)):
            return False  # whoever asked has gone, and a proxy asks no further then
        return await self._pass_on()

    async def _answer(self, fault: str) -> bool:
        """Answer in the registry's place, before the body or after it."""
        assert self.random
        status = int(fault[:3])
        page = fault.endswith("page") or self.random.random() < 0.3
        body = PAGE if page else b'{"error": "the proxy says so"}'
        extra = {"429 retry-after": "Retry-After: 1\r\n", "429 long": "Retry-After: 3600\r\n"}.get(fault, "")
        early = self.length > 0 and self.random.random() < 0.3
        if not early:
            await self._read_body()
        self.writer.write(
            f"HTTP/1.1 {status} Whatever\r\nContent-Type: {'text/html' if page else 'application/json'}\r\n"
            f"Content-Length: {len(body)}\r\n{extra}\r\n".encode()
            + body
        )
        await self.writer.drain()
        self.passed.status, self.passed.answered = status, True
        return not early

    async def _read_body(self) -> None:
        left = self.length
        while left:
            left -= len(await _some(self.reader, left))

    async def _gone(self, seconds: float) -> bool:
        """Wait until the client has gone, or so long; what it sends meanwhile stays where it is."""
        transport = self.writer.transport
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            if transport.is_closing() or self.reader._eof or self.reader.exception():
                return True
            await asyncio.sleep(0.02)
        return False

    async def _pass_on(self) -> bool:
        upstream, to_upstream = await self._connect()
        sending: asyncio.Task[None] | None = None
        try:
            to_upstream.write(self.head.raw)
            sending = asyncio.create_task(self._send_body(to_upstream))
            answering = asyncio.create_task(_head(upstream))
            try:
                await asyncio.wait([sending, answering], return_when=asyncio.FIRST_COMPLETED)
                if sending.done() and sending.exception():  # it may have been refused before all of it went
                    await asyncio.wait([answering], timeout=0.1)
                    if not answering.done():
                        return _reset(self.writer)
                head = await answering
            finally:
                answering.cancel()
            self.passed.passed_on = True
            if head is None:
                return _reset(self.writer)  # the registry has died
            self.passed.status = head.status
            if self.fault == "lose answer":
                async for _ in _body(upstream, head):
                    pass
                return _reset(self.writer)
            whole = await self._send_answer(upstream, head)
            # What was answered before all of it came is not gone on with.
            return whole and sending.done() and not sending.exception()
        except (ConnectionError, asyncio.IncompleteReadError):
            return _reset(self.writer)
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            to_upstream.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await self.proxy.connect()
        except _BrokenError:
            _reset(self.writer)
            raise

    async def _send_body(self, to_upstream: asyncio.StreamWriter) -> None:
        random, left = self.random, self.length
        cut = random.randrange(self.length) if random and self.fault == "reset body" and left else None
        flip = random.randrange(self.length) if random and self.fault == "flip" and left else None
        sent = 0
        while left:
            piece = await _some(self.reader, left)
            if not sent and "json" in self.head.fields.get("content-type", ""):
                self.passed.body = piece[:200]
            if cut is not None and sent + len(piece) > cut:
                to_upstream.write(piece[: cut - sent])
                _reset(to_upstream)
                raise ConnectionResetError
            if flip is not None and sent <= flip < sent + len(piece):
                piece = piece[: flip - sent] + bytes([piece[flip - sent] ^ 1]) + piece[flip - sent + 1 :]
            if self.fault == "slow" and sent < PIECE:
                await self._trickle(to_upstream, piece)
            else:
                to_upstream.write(piece)
                await to_upstream.drain()
            sent += len(piece)
            left -= len(piece)
        if self.fault == "reset body" and not self.length:
            _reset(to_upstream)
            raise ConnectionResetError
        # What is held by a half of the proxy is not at its end; the registry reads on.
        await to_upstream.drain()

    async def _trickle(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        step = max(1, len(piece) // 20)
        for offset in range(0, len(piece), step):
            writer.write(piece[offset : offset + step])
            await writer.drain()
            await asyncio.sleep(0.02)

    async def _send_answer(self, upstream: asyncio.StreamReader, head: Head) -> bool:
        """Hand an answer on; returns whether all of it went."""
        random, raw = self.random, head.raw
        length = int(head.fields.get("content-length", "0"))
        # Of an answer without a length, a cut comes where it may, and maybe after its end.
        cut = None
        if random and self.fault in {"truncate", "truncate reset", "shorten", "stall answer"}:
            cut = random.randrange(length) if length else random.randrange(PIECE)
        if self.fault == "shorten" and length and cut is not None:
            raw = re.sub(rb"(?i)(content-length: )\d+", b"\\g<1>%d" % cut, raw)
        self.writer.write(raw)
        sent = 0
        async for piece in _body(upstream, head):
            if cut is not None and sent + len(piece) > cut:
                self.writer.write(piece[: cut - sent])
                await self.writer.drain()
                if self.fault == "truncate reset":
                    return _reset(self.writer)
                if self.fault != "stall answer":
                    return False
                assert random
                if await self._gone(random.uniform(0.2, 3.0)):
                    return False
                piece, sent, cut = piece[cut - sent :], cut, None  # noqa: PLW2901 - the rest of it
            if self.fault == "slow" and sent < PIECE:
                await self._trickle(self.writer, piece)
            else:
                self.writer.write(piece)
                await self.writer.drain()
            sent += len(piece)
        self.passed.answered = True
        return "content-length" in head.fields or "transfer-encoding" in head.fields


async def _head(reader: asyncio.StreamReader) -> Head | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    line, *fields = raw.decode("latin-1").split("\r\n")
    pairs = (field.partition(":") for field in fields if field)
    return Head(line, {name.lower(): value.strip() for name, _, value in pairs}, raw)


async def _some(reader: asyncio.StreamReader, most: int) -> bytes:
    piece = await reader.read(min(PIECE, most))
    if not piece:
        raise ConnectionResetError
    return piece


async def _body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """The body of an answer, as it stands on the wire."""
    if head.status in {204, 304}:
        return
    if "content-length" in head.fields:
        left = int(head.fields["content-length"])
        while left:
            piece = await _some(reader, left)
            left -= len(piece)
            yield piece
    elif head.fields.get("transfer-encoding") == "chunked":
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line, 16)
            yield line
            left = size + 2
            while left:
                piece = await _some(reader, left)
                left -= len(piece)
                yield piece
    else:
        while piece := await reader.read(PIECE):
            yield piece


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Break a connection with a RST; returns that there is no other request on it."""
    connection: socket.socket | None = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _step(head: Head) -> str:
    """What is asked for, without what differs from run to run."""
    method, target, _ = head.line.split(" ", 2)
    url = urlsplit(target)
    if url.path.startswith("/blobs/"):
        name = "/".join(url.path.split("/")[2:])
        number = parse_qs(url.query).get("partNumber")
        where = f"part {number[0]}" if number else head.fields.get("range", "")
        return f"{method} blob {name} {where}".rstrip()
    return f"{method} {url.path.removeprefix('/api/v1/')}"

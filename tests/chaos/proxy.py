"""The fault proxy of the chaos run: faults are drawn from a seed, and bodies are streamed, so a fault can cut them."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from tests.fault_proxy import Exchange, FaultProxy, LoggedRequest, end_to_end, reset, upstream_transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.chaos.case import Moment, Weather

PIECE = 64 * 1024
_OF_RANGES = {"Content-Length", "Accept-Ranges", "ETag"}
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>A page for people</body></html>"


@dataclass
class Upstream:
    """A registry in another process; no endpoint means that its host is down."""

    endpoint: str = ""
    api_token: str = "token"


@dataclass
class ChaosProxy(FaultProxy):
    """A fault proxy whose faults are drawn by the `weather` of a call and counted by kind.

    With `streams`, downloads through the registry have no ranges, no size and no ETag, as those of a Yatai.
    """

    registry: Upstream
    lingering_time: float = 0.0  # close at once after a response that came before the whole body
    weather: Weather | None = None
    counts: Counter[str] = field(default_factory=Counter)
    streams: bool = False
    _drawn: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.add_fault("", self._draw, times=None)

    def begin(self, weather: Weather | None) -> None:
        """Start a call with this weather."""
        self.weather = weather
        self.requests = []
        self._drawn = Counter()

    async def end(self) -> None:
        """End a call and close all connections."""
        self.weather = None
        await self.close_connections()

    async def reached(self, moment: Moment) -> None:
        """Wait for a moment of this call."""
        await self.wait_for("", moment.request)
        await asyncio.sleep(moment.delay)

    async def _draw(self, exchange: Exchange) -> web.StreamResponse:
        logged, target = exchange.logged, target_of(exchange.logged)
        fault, random = None, Random()
        if self.weather is not None:
            fault, random = self.weather.draw(len(self.requests), target, self._drawn[target])
        self._drawn[target] += 1
        if fault == "flip" and not (target.startswith("GET blob") or _has_body_for_storage(exchange.request, target)):
            fault = None  # a request to the registry has no checksum but that of TLS
        logged.fault = fault
        if fault is not None:
            self.counts[fault] += 1
        return await _Relay(exchange, fault, random).run()


@dataclass
class _Relay:
    """One request, its fault, and the random numbers that place the fault."""

    exchange: Exchange
    fault: str | None
    random: Random

    def __post_init__(self) -> None:
        self.request, self.logged = self.exchange.request, self.exchange.logged
        self.transport = self.request.transport
        self.length = self.request.content_length or 0
        proxy = self.exchange.proxy
        self.streams = isinstance(proxy, ChaosProxy) and proxy.streams and self.request.path.endswith("/download")

    async def run(self) -> web.StreamResponse:
        try:
            return await self._run()
        except (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError, web.RequestPayloadError):
            return self._reset()  # the client or the registry has closed its connection

    async def _run(self) -> web.StreamResponse:
        fault = self.fault
        if fault == "reset":
            return self._reset()
        if fault is not None and fault[0].isdigit():
            return await self._answer(fault)
        if fault == "hang":
            await self._client_closes(3600)
            return self._reset()
        if fault == "stall" and await self._client_closes(self.random.uniform(0.2, 3.0)):
            return self._reset()
        return await self._forward()

    def _reset(self) -> web.StreamResponse:
        reset(self.transport)
        return web.Response()

    async def _answer(self, fault: str) -> web.StreamResponse:
        """Answer in place of the registry, before or after the body."""
        page = fault.endswith("page") or self.random.random() < 0.3
        early = self.length > 0 and self.random.random() < 0.3
        if not early:
            async for _ in self.request.content.iter_chunked(PIECE):
                pass
        self.logged.answered = True
        return web.Response(
            status=int(fault[:3]),
            body=PAGE if page else b'{"error": "fault of the proxy"}',
            content_type="text/html" if page else "application/json",
            headers={"429 retry-after": {"Retry-After": "1"}, "429 long": {"Retry-After": "3600"}}.get(fault),
        )

    async def _client_closes(self, seconds: float) -> bool:
        """Wait until the client closes the connection, at most `seconds`, without reading the body."""
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            if self.transport is None or self.transport.is_closing():
                return True
            await asyncio.sleep(0.02)
        return False

    async def _forward(self) -> web.StreamResponse:
        self.logged.forwarded = not self.length and bool(self.exchange.proxy.registry.endpoint)
        body, without = self._body() if self.length else None, ("range", "if-match") if self.streams else ()
        async with self.exchange.proxy.send_upstream(self.request, body, without) as answer:
            if self.fault == "reset body":  # a request without a body
                reset(answer.connection.transport if answer.connection else None)
                return self._reset()
            self.logged.forwarded, self.logged.status = True, answer.status
            if self.fault == "lose answer":
                async for _ in answer.content.iter_chunked(PIECE):
                    pass
                return self._reset()
            return await self._send_answer(answer)

    async def _body(self) -> AsyncIterator[bytes]:
        cut = self.random.randrange(self.length) if self.fault == "reset body" else None
        flip = self.random.randrange(self.length) if self.fault == "flip" else None
        sent = 0
        async for piece in self.request.content.iter_chunked(PIECE):
            if not sent and self.request.content_type == "application/json":
                self.logged.body = piece[:200]
            if cut is not None and sent + len(piece) > cut:
                yield piece[: cut - sent]
                reset(upstream_transport.get())
                raise ConnectionResetError
            if flip is not None and sent <= flip < sent + len(piece):
                piece = _flipped(piece, flip - sent)  # noqa: PLW2901 - the same piece, damaged
            async for part in self._paced(piece, sent):
                yield part
            sent += len(piece)
        self.logged.forwarded = True

    async def _paced(self, piece: bytes, sent: int) -> AsyncIterator[bytes]:
        """Split a piece into twenty with a pause after each, if the fault is `slow`."""
        if self.fault != "slow" or sent >= PIECE:
            yield piece
            return
        step = max(1, len(piece) // 20)
        for offset in range(0, len(piece), step):
            yield piece[offset : offset + step]
            await asyncio.sleep(0.02)

    async def _send_answer(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        headers, length = end_to_end(answer), answer.content_length
        if self.streams and answer.status == HTTPStatus.OK:
            headers = {key: value for key, value in headers.items() if key not in _OF_RANGES}
            length = None
        # The cut of a response without a length may lie after the end of the response.
        cut = None
        if self.fault in {"truncate", "truncate reset", "shorten", "stall answer"}:
            cut = self.random.randrange(length or PIECE)
        if self.fault == "shorten" and length:
            headers = {**headers, "Content-Length": str(cut)}
        flip = self.random.randrange(length) if self.fault == "flip" and not self.length and length else None
        response = web.StreamResponse(status=answer.status, headers=headers)
        if self.streams or answer.headers.get("Transfer-Encoding") == "chunked":
            response.enable_chunked_encoding()
        await response.prepare(self.request)
        sent = 0
        async for piece in answer.content.iter_chunked(PIECE):
            if cut is not None and sent + len(piece) > cut:
                await response.write(piece[: cut - sent])
                if self.fault == "truncate reset":
                    return self._reset()
                if self.fault != "stall answer":
                    return self._close()
                if await self._client_closes(self.random.uniform(0.2, 3.0)):
                    return self._reset()
                piece, sent, cut = piece[cut - sent :], cut, None  # noqa: PLW2901 - the rest of the piece
            if flip is not None and sent <= flip < sent + len(piece):
                piece = _flipped(piece, flip - sent)  # noqa: PLW2901 - the same piece, damaged
            async for part in self._paced(piece, sent):
                await response.write(part)
            sent += len(piece)
        await response.write_eof()
        self.logged.answered = True
        return response

    def _close(self) -> web.StreamResponse:
        """Close the connection after the written bytes."""
        if self.transport is not None:
            self.transport.close()
        return web.Response()


def _has_body_for_storage(request: web.Request, target: str) -> bool:
    return bool(request.content_length) and target.startswith("PUT blob")


def _flipped(piece: bytes, offset: int) -> bytes:
    """Change one bit of a piece."""
    return piece[:offset] + bytes([piece[offset] ^ 1]) + piece[offset + 1 :]


def target_of(request: LoggedRequest) -> str:
    """Return the method and the target of a request, without the parts that vary from run to run."""
    if request.path.startswith("/blobs/"):
        name = "/".join(request.path.split("/")[2:])
        number = request.query.get("partNumber")
        where = f"part {number}" if number else request.headers.get("Range", "")
        return f"{request.method} blob {name} {where}".rstrip()
    return f"{request.method} {request.path.removeprefix('/api/v1/')}"


def describe(number: int, request: LoggedRequest) -> str:
    """Return a line for the story of a case."""
    outcome = f"{request.status}{'' if request.answered else ', lost'}" if request.status else "no answer"
    body = request.body.decode(errors="replace")[:120]
    return f"{number:4} {target_of(request)} {body} [{request.fault or '-'}] {outcome}"

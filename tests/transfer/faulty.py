"""A registry and its storage behind a door at which things go wrong.

`Door` is a server that passes every request on to a `LocalRegistry`, bytes and all, and remembers them. Since that
registry presigns URLs for wherever it was asked, the storage's traffic comes through the same door. What a test puts
in the way of some requests, a fault, is a coroutine that gets the request and answers in the registry's place, or lets
it through and changes the answer.
"""

from __future__ import annotations

import asyncio
import io
import re
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from async_bento.registry.server import LocalRegistry

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}

PART = r"PUT /blobs/.*partNumber="
PUT = r"PUT /blobs/"
GET = r"GET /blobs/"
UPLOAD = r"PUT .*/upload$"
DOWNLOAD = r"GET .*/download$"
FINISH = r"PATCH .*/finish_upload$"


class Fault(Protocol):
    """What happens to a request instead of being passed on."""

    def __call__(self, passage: Passage, /) -> Awaitable[web.StreamResponse]: ...


@dataclass
class Seen:
    """A request that came through the door."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    json: Any = None
    body: bytes = b""
    status: int | None = None
    at: float = field(default_factory=time.monotonic)

    @property
    def step(self) -> str:
        """What was asked for, without the signature: `PATCH svc/v1/start_upload`, `PUT part 3`, `GET bytes=0-99`."""
        if self.path.startswith("/blobs/"):
            number = self.query.get("partNumber")
            what = f"part {number}" if number else self.headers.get("Range", "blob")
            return f"{self.method} {what}"
        path = self.path.removeprefix("/api/v1/")
        match = re.fullmatch(r"(bento|model)_repositories/([^/]+)/\1s(/.*)?", path)
        return f"{self.method} {match[2]}{match[3] or ''}" if match else f"{self.method} {path}"


@dataclass
class Passage:
    """A request on its way, in the hands of a fault."""

    door: Door
    request: web.Request
    seen: Seen

    async def go_on(self, *, without: Sequence[str] = ()) -> web.Response:
        """Let it through, and have the answer.

        Args:
            without: Headers that are taken from it.
        """
        await self.read()
        return await self.door.forward(self.request, self.seen, without)

    async def read(self) -> bytes:
        """Its body."""
        self.seen.body = await self.request.read()
        if self.request.content_type == "application/json" and self.seen.body:
            self.seen.json = await self.request.json()
        return self.seen.body

    def hang_up(self) -> web.StreamResponse:
        """Break the connection."""
        assert self.request.transport is not None
        self.request.transport.abort()
        return web.Response()

    async def begin(self, answer: web.Response, **headers: str | None) -> web.StreamResponse:
        """Send an answer's head, with other headers; its body is left to the fault."""
        kept = {key: value for key, value in answer.headers.items() if key.replace("-", "_").lower() not in headers}
        given = {key.replace("_", "-"): value for key, value in headers.items() if value is not None}
        response = web.StreamResponse(status=answer.status, headers=kept | given)
        await response.prepare(self.request)
        return response


@dataclass
class _Rule:
    pattern: re.Pattern[str]
    fault: Fault
    times: int | None
    skip: int
    met: int = 0

    def applies(self, line: str) -> bool:
        if not self.pattern.search(line):
            return False
        self.met += 1
        return self.met > self.skip and (self.times is None or self.met <= self.skip + self.times)


@dataclass
class Door:
    """A server before a registry.

    Attributes:
        seen: The requests so far, in the order in which they came.
        most: The most requests with bytes (PUTs and GETs of tars) at one time.
    """

    registry: LocalRegistry
    seen: list[Seen] = field(default_factory=list)
    most: Counter[str] = field(default_factory=Counter)
    endpoint: str = ""
    _rules: list[_Rule] = field(default_factory=list)
    _now: Counter[str] = field(default_factory=Counter)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    _arrival: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(auto_decompress=False, connector=aiohttp.TCPConnector(limit=0))
        )
        app = web.Application(client_max_size=0)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, auto_decompress=False, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def fault(self, pattern: str, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Put something in the way.

        Args:
            pattern: Of the requests it concerns: found in their method, path and query.
            fault: What happens.
            times: To how many of them; None for all.
            skip: How many pass before.
        """
        self._rules.append(_Rule(re.compile(pattern), fault, times, skip))

    def steps(self, pattern: str = "") -> list[str]:
        """The requests that came, in short."""
        return [seen.step for seen in self.all(pattern)]

    def all(self, pattern: str) -> list[Seen]:
        """The requests that fit a pattern, found in their method and path and in `Seen.step`."""
        found = re.compile(pattern)
        return [seen for seen in self.seen if found.search(f"{seen.method} {seen.path}") or found.search(seen.step)]

    async def come(self, pattern: str, count: int) -> None:
        """Wait until so many requests that fit a pattern have come."""
        while len(self.all(pattern)) < count:
            self._arrival.clear()
            await self._arrival.wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.method, request.path, dict(request.query), dict(request.headers))
        self.seen.append(seen)
        self._arrival.set()
        kind = request.method if "/blobs/" in request.path or request.path.endswith(("/upload", "/download")) else ""
        self._now[kind] += 1
        self.most[kind] = max(self.most[kind], self._now[kind])
        try:
            passage = Passage(self, request, seen)
            line = f"{request.method} {request.path_qs}"
            for rule in self._rules:
                if rule.applies(line):
                    response = await rule.fault(passage)
                    break
            else:
                response = await passage.go_on()
            seen.status = response.status
            return response
        finally:
            self._now[kind] -= 1

    async def forward(self, request: web.Request, seen: Seen, without: Sequence[str]) -> web.Response:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP_BY_HOP | {*without}}
        async with self._session.request(
            request.method,
            self.registry.endpoint + request.raw_path,
            headers=headers,
            data=io.BytesIO(seen.body) if seen.body else None,
            allow_redirects=False,
            skip_auto_headers=("Content-Type", "User-Agent", "Accept-Encoding"),
        ) as answer:
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP_BY_HOP}
            chunked = answer.headers.get("Transfer-Encoding") == "chunked"
            response = web.Response(status=answer.status, headers=kept, body=await answer.read())
            if chunked:
                response.enable_chunked_encoding()
            return response


def refuse(status: int, *, code: str = "SlowDown", headers: dict[str, str] | None = None, read: bool = True) -> Fault:
    """Answer as S3 refuses; at once, or when the body is in."""

    async def fault(passage: Passage) -> web.StreamResponse:
        if read:
            await passage.read()
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>said the storage</Message></Error>"
        return web.Response(status=status, text=text, content_type="application/xml", headers=headers)

    return fault


def answer_json(status: int, said: object) -> Fault:
    """Answer as Yatai does."""

    async def fault(passage: Passage) -> web.StreamResponse:
        await passage.read()
        return web.json_response(said, status=status)

    return fault


def answer_page(status: int = 200) -> Fault:
    """Answer with a page for people."""

    async def fault(passage: Passage) -> web.StreamResponse:
        await passage.read()
        page = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>secret words</body></html>"
        return web.Response(status=status, text=page, content_type="text/html")

    return fault


def with_headers(**headers: str | None) -> Fault:
    """Let it through, and change headers of the answer; None takes one away."""

    async def fault(passage: Passage) -> web.StreamResponse:
        answer = await passage.go_on()
        for key, value in headers.items():
            answer.headers.pop(key.replace("_", "-"), None)
            if value is not None:
                answer.headers[key.replace("_", "-")] = value
        return answer

    return fault


async def lose_answer(passage: Passage) -> web.StreamResponse:
    """Let it through, and break the connection in place of the answer."""
    await passage.go_on()
    return passage.hang_up()


async def hang_up(passage: Passage) -> web.StreamResponse:
    """Break the connection before anything is read."""
    return passage.hang_up()


def hang_up_while_reading(size: int) -> Fault:
    """Break the connection when so many bytes of the body have come."""

    async def fault(passage: Passage) -> web.StreamResponse:
        come = 0
        async for chunk in passage.request.content.iter_any():
            come += len(chunk)
            if come >= size:
                break
        return passage.hang_up()

    return fault


def hang_up_while_sending(size: int) -> Fault:
    """Break the connection when so many bytes of the answer have gone."""

    async def fault(passage: Passage) -> web.StreamResponse:
        answer = await passage.go_on()
        assert isinstance(answer.body, bytes)
        response = await passage.begin(answer)
        await response.write(answer.body[:size])
        return passage.hang_up()

    return fault


def end_early(size: int) -> Fault:
    """Send so many bytes of the answer and end it, as if that were all: no Content-Length tells."""

    async def fault(passage: Passage) -> web.StreamResponse:
        answer = await passage.go_on()
        assert isinstance(answer.body, bytes)
        response = web.StreamResponse(
            status=answer.status,
            headers={key: value for key, value in answer.headers.items() if key != "Content-Length"},
        )
        response.enable_chunked_encoding()
        await response.prepare(passage.request)
        await response.write(answer.body[:size])
        await response.write_eof()
        return response

    return fault


@dataclass
class Held:
    """Holds requests until it is told to go on.

    Attributes:
        arrived: Set when `count` of them are here.
        released: Set to let them go on; a test that fails leaves that to the door's end.
    """

    count: int = 1
    then: Fault | None = None
    here: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, passage: Passage) -> web.StreamResponse:
        if passage.request.content_type == "application/json":
            await passage.read()
        self.here += 1
        if self.here >= self.count:
            self.arrived.set()
        await self.released.wait()
        return await (self.then(passage) if self.then else passage.go_on())


def stop_reading(forever: asyncio.Event) -> Fault:
    """Read nothing of the body, and say nothing."""

    async def fault(passage: Passage) -> web.StreamResponse:
        await forever.wait()
        return passage.hang_up()

    return fault


def read_slowly(rate: int, upto: int) -> Fault:
    """Read so many bytes a second until so many are read, then as fast as they come."""

    async def fault(passage: Passage) -> web.StreamResponse:
        pieces: list[bytes] = []
        for _ in range(50 * upto // rate):
            await asyncio.sleep(0.02)
            pieces.append(await passage.request.content.readexactly(rate // 50))
        passage.seen.body = b"".join([*pieces, await passage.request.content.read()])
        return web.Response(headers={"ETag": '"not-an-md5"'})

    return fault


def stop_sending(size: int, forever: asyncio.Event) -> Fault:
    """Send so many bytes of the answer, then nothing."""

    async def fault(passage: Passage) -> web.StreamResponse:
        answer = await passage.go_on()
        assert isinstance(answer.body, bytes)
        response = await passage.begin(answer)
        with suppress(ConnectionError):
            await response.write(answer.body[:size])
            await forever.wait()
        return passage.hang_up()

    return fault


async def ignore_range(passage: Passage) -> web.StreamResponse:
    """Answer with all of it, whatever was asked for."""
    return await passage.go_on(without=["range"])


def then(*faults: Fault) -> Fault:
    """One fault after the other, the last for all that follow."""
    left = list(faults)

    async def fault(passage: Passage) -> web.StreamResponse:
        return await (left.pop(0) if len(left) > 1 else left[0])(passage)

    return fault


async def pass_on(passage: Passage) -> web.StreamResponse:
    """No fault at all."""
    return await passage.go_on()

"""Each fault of the chaos run, as the client and the registry see it on the wire."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from tests.builders import random_bytes
from tests.chaos.case import KINDS, Silence, Weather
from tests.chaos.proxy import PAGE, ChaosProxy, Upstream
from tests.chaos.silence import SilentProxy
from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = random_bytes(300_000, 1)
ANSWER = random_bytes(200_000, 2)


@dataclass
class Storage:
    """A server that records request bodies, including truncated ones."""

    whole: list[bytes] = field(default_factory=list)
    cut: list[bytes] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        pieces = bytearray()
        self.ranges.append(request.headers.get("Range"))
        try:
            async for piece in request.content.iter_any():
                pieces += piece
        except (ConnectionError, web.RequestPayloadError):
            self.cut.append(bytes(pieces))
            raise
        else:
            self.whole.append(bytes(pieces))
            return web.Response(body=ANSWER)
        finally:
            self.arrived.set()


@dataclass
class Outcome:
    """The bytes that a client received, and whether the connection ended with a RST."""

    received: bytes
    was_reset: bool

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        head = self.received.partition(b"\r\n\r\n")[0].decode()
        return dict(line.lower().split(": ", 1) for line in head.splitlines()[1:])

    @property
    def body(self) -> bytes:
        return self.received.partition(b"\r\n\r\n")[2]


Send = Callable[..., Awaitable[Outcome]]


@pytest.fixture
async def storage() -> Storage:
    return Storage()


@pytest.fixture
async def proxy(storage: Storage) -> AsyncIterator[ChaosProxy]:
    runner = web.ServerRunner(web.Server(storage.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with ChaosProxy(Upstream(f"http://127.0.0.1:{runner.addresses[0][1]}")) as proxy:
            yield proxy
    finally:
        await close_server(runner)


@pytest.fixture
def send(proxy: ChaosProxy) -> Send:
    """Send a PUT of `BODY`, or a GET, under one fault."""

    async def run(fault: str | None, method: str = "PUT", key: str = "key") -> Outcome:
        proxy.begin(Weather(key, 1.0, kinds=(fault,)) if fault else None)
        body = BODY if method == "PUT" else b""
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.endpoint.rpartition(":")[2]))
        head = f"{method} /blobs/models/a.tar HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        received, was_reset = bytearray(), False
        sending = asyncio.create_task(_write(writer, f"{head}Connection: close\r\n\r\n".encode() + body))
        try:
            while piece := await reader.read(65536):
                received += piece
        except ConnectionError:
            was_reset = True
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            writer.close()
        return Outcome(bytes(received), was_reset)

    return run


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


@pytest.mark.parametrize("fault", [None, "slow"])
async def test_forwards_whole_bodies(send: Send, storage: Storage, fault: str | None) -> None:
    outcome = await send(fault)

    assert storage.whole == [BODY]
    assert (outcome.status, outcome.body) == (200, ANSWER)


async def test_stall_delays_whole_bodies(send: Send, storage: Storage) -> None:
    for fault in ("stall", "stall answer"):
        assert (await send(fault)).body == ANSWER
    assert storage.whole == [BODY, BODY]


async def test_reset_sends_nothing(send: Send, storage: Storage) -> None:
    outcome = await send("reset")

    assert outcome == Outcome(b"", was_reset=True)
    assert not storage.whole
    assert not storage.cut


async def test_reset_body_cuts_body(send: Send, storage: Storage) -> None:
    outcome = await send("reset body")
    await storage.arrived.wait()

    assert outcome == Outcome(b"", was_reset=True)
    assert not storage.whole
    assert len(storage.cut[0]) < len(BODY)


async def test_flip_changes_one_bit(send: Send, storage: Storage) -> None:
    await send("flip")

    (stored,) = storage.whole
    assert len(stored) == len(BODY)
    assert [(a ^ b).bit_count() for a, b in zip(stored, BODY, strict=True) if a != b] == [1]


async def test_flip_changes_one_download_bit(send: Send) -> None:
    outcome = await send("flip", "GET")

    assert len(outcome.body) == len(ANSWER)
    assert [(a ^ b).bit_count() for a, b in zip(outcome.body, ANSWER, strict=True) if a != b] == [1]


async def test_lose_answer_forwards_and_resets(send: Send, storage: Storage) -> None:
    assert await send("lose answer") == Outcome(b"", was_reset=True)
    assert storage.whole == [BODY]


async def test_truncate_closes_in_response(send: Send) -> None:
    outcome = await send("truncate", "GET")

    assert not outcome.was_reset
    assert len(outcome.body) < len(ANSWER) == int(outcome.headers["content-length"])
    assert ANSWER.startswith(outcome.body)


async def test_truncate_reset_in_response(send: Send) -> None:
    outcome = await send("truncate reset", "GET")

    assert outcome.was_reset
    assert len(outcome.body) < len(ANSWER)


async def test_shorten_sets_shorter_length(send: Send) -> None:
    outcome = await send("shorten", "GET")

    assert not outcome.was_reset
    assert len(outcome.body) == int(outcome.headers["content-length"]) < len(ANSWER)
    assert ANSWER.startswith(outcome.body)


@pytest.mark.parametrize("fault", [kind for kind in KINDS if kind[0].isdigit()])
async def test_status_fault_skips_registry(send: Send, storage: Storage, fault: str) -> None:
    outcome = await send(fault, "GET")

    assert outcome.status == int(fault[:3])
    assert outcome.body == PAGE or (json.loads(outcome.body) and not fault.endswith("page"))
    assert outcome.headers.get("retry-after") == {"429 retry-after": "1", "429 long": "3600"}.get(fault)
    assert not storage.whole


async def test_hang_lasts_until_call_ends(send: Send, proxy: ChaosProxy, storage: Storage) -> None:
    sending = asyncio.create_task(send("hang", "GET"))
    await proxy.wait_for("", 1)
    await proxy.end()

    assert (await sending).received == b""
    assert not storage.whole


@pytest.mark.parametrize("streams", [True, False])
async def test_streams_download_without_ranges(proxy: ChaosProxy, storage: Storage, streams: bool) -> None:
    proxy.streams = streams
    async with aiohttp.ClientSession() as session:
        for path in ("a/download", "blobs/a"):
            async with session.get(f"{proxy.endpoint}/{path}", headers={"Range": "bytes=0-9"}) as response:
                assert await response.read() == ANSWER
                assert (response.content_length is None) == (streams and path == "a/download")

    assert storage.ranges == [None if streams else "bytes=0-9", "bytes=0-9"]


async def test_no_registry_resets(send: Send, proxy: ChaosProxy) -> None:
    proxy.registry.endpoint = ""

    assert await send(None) == Outcome(b"", was_reset=True)


async def test_silent_proxy_answers_later() -> None:
    runner = web.ServerRunner(web.Server(Storage().answer), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    counts: Counter[str] = Counter()
    async with (
        SilentProxy(*runner.addresses[0], counts) as proxy,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20, sock_read=0.3)) as session,
    ):
        proxy.begin(Silence("key", rate=1.0, last=1))
        with pytest.raises(aiohttp.SocketTimeoutError):
            await session.get("http://registry.example/", proxy=proxy.url)
        async with session.get("http://registry.example/", proxy=proxy.url) as response:
            assert await response.read() == ANSWER
    await close_server(runner)

    assert counts == {"silent proxy": 1}

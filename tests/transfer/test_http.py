"""One request that moves bytes: its timeouts, and its connection after it has ended."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import Config, PartError
from async_bento.progress.events import Progress
from async_bento.transfer import http
from async_bento.transfer.body import UploadBody
from async_bento.transfer.http import ByteRange, get, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from async_bento.transfer.watchdog import Watchdog

CONFIG = Config(timeouts={"connect": 1, "stall": 10, "complete": 100})


class Body(UploadBody):
    """A body of two bytes, of which the first `sent` are sent."""

    def __init__(self, sent: int) -> None:
        super().__init__(object(), ByteRange(0, 2), Progress("push", "model", "mod:m1", None))
        self._bytes = bytes(sent)

    async def _write(self, writer: Any) -> None:
        await self._send(writer, memoryview(self._bytes))


class Storage:
    """A target that receives a body, and then answers with a status or breaks the connection."""

    credentials = proxy = None

    def __init__(self, status: int | None) -> None:
        self.status = status
        self.owner = SimpleNamespace(rate_limit=lambda _: None)
        self.timeouts: list[aiohttp.ClientTimeout] = []
        self.is_aborted = False

    def __str__(self) -> str:
        return "http://storage.example/key"

    @asynccontextmanager
    async def request(
        self, method: str, timeout: aiohttp.ClientTimeout, *, headers: object, data: UploadBody | None = None
    ) -> AsyncIterator[object]:
        self.timeouts.append(timeout)
        if data is not None:
            writer: Any = self
            await data.write(writer)
        if self.status is None:
            raise ConnectionResetError
        yield SimpleNamespace(status=self.status, headers={}, reason="", content_length=2)

    # As the writer of the body, and its transport:

    @property
    def transport(self) -> Any:
        return self

    async def write(self, chunk: bytes) -> None:
        pass

    def abort(self) -> None:
        self.is_aborted = True

    def redirected(self, status: int, location: str | None) -> None:
        return None

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        return None


@pytest.fixture(autouse=True)
def no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_body(*_: object) -> bytes:
        return b""

    monkeypatch.setattr(http, "read_body", read_body)


@pytest.mark.parametrize(
    ("sent", "status", "is_aborted"),
    [
        (2, 200, False),
        (2, 300, False),
        (2, 400, False),
        (1, 400, True),
        (1, 200, True),
        (2, None, True),
        (0, None, True),
    ],
)
async def test_put_aborts_unfinished_request(sent: int, status: int | None, is_aborted: bool) -> None:
    """The connection of a complete request may serve another one by then."""
    target: Any = Storage(status)
    body = Body(sent)

    if (sent, status) == (2, 200):
        await put(target, body, CONFIG)
    else:
        with pytest.raises(PartError):
            await put(target, body, CONFIG)
        assert body.acknowledged is None  # the bytes are sent again

    assert target.is_aborted == is_aborted


async def test_put_has_no_read_timeout(watchdogs: list[Watchdog]) -> None:
    """A server is silent while it receives a body."""
    target: Any = Storage(200)
    await put(target, Body(2), CONFIG)
    async with get(target, ByteRange(0, 2), CONFIG):
        pass
    assert [(timeout.total, timeout.connect, timeout.sock_read) for timeout in target.timeouts] == [
        (None, 1, None),
        (None, 1, 10),
    ]
    assert watchdogs == []  # stopped


async def test_get_does_not_time_slow_caller(watchdogs: list[Watchdog]) -> None:
    target: Any = Storage(200)
    async with get(target, ByteRange(0, 2), CONFIG):
        for _ in range(100):
            watchdogs[0]._check()
        await asyncio.sleep(0)  # a request that is cancelled ends here


@pytest.mark.parametrize(
    ("state", "credentials", "patience"),
    [
        ({"is_waiting": False}, None, None),
        ({"acknowledged": None}, None, 11),
        ({}, None, 10),
        ({}, "token", 100),
        ({"acknowledged": 1}, "token", 10),
        ({"is_sent": False}, "token", 10),
        ({"is_followed": False}, None, 100),
        ({"is_followed": False, "acknowledged": 1}, "token", 100),
    ],
    ids=["reading", "connecting", "storage", "registry", "some received", "some sent", "unknown", "unknown some"],
)
def test_put_patience_depends_on_state(state: dict[str, Any], credentials: str | None, patience: float | None) -> None:
    body: Any = SimpleNamespace(
        **{"is_waiting": True, "is_sent": True, "acknowledged": 2, "is_followed": True, "size": 2} | state
    )
    target: Any = SimpleNamespace(credentials=credentials)
    assert http._patience(body, CONFIG.timeouts, target) == patience

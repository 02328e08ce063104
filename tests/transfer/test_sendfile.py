"""Uploads of large files by the kernel, with the same guarantees as uploads by Python."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import PartError, RateLimitError, SourceChangedError, StalledError
from async_bento.transfer import sendfile
from tests.builders import MiB, contents, make_model, random_bytes
from tests.eventually import eventually
from tests.fault_proxy import FINISH, PART, PUT, UPLOAD, disconnect_while_reading, read_slowly, refuse, stop_reading
from tests.fixtures import FEW_RANGES
from tests.silent import error_of
from tests.transfer.quiet import nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, Python sends the files")

LARGE = random_bytes(12 * MiB, 11)
BOTH = {"a/large": LARGE, "b/small": b"small", "c/other": random_bytes(3 * MiB, 12)}


class Kernel:
    """`os.sendfile`, counted; `before` is called with the file before each call."""

    def __init__(self) -> None:
        self.sent = 0
        self.before: Callable[[int], object] = lambda _: None
        self._sendfile = os.sendfile

    def __call__(self, connection: int, file: int, offset: int, count: int) -> int:
        self.before(file)
        sent = self._sendfile(connection, file, offset, count)
        self.sent += sent
        return sent


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(os, "sendfile", kernel)
    return kernel


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("transmission", ["presigned_url", "auto", "proxy"])
async def test_kernel_sends_large_files(
    kernel: Kernel,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    transmission: str,
    verify: bool,
) -> None:
    model = make_model(home, files=BOTH)
    proxy = await start_proxy(transmission)

    await make_client(proxy, transfer={"verify": verify}).models.push("mod:m1")
    await make_client(proxy, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")

    assert contents(elsewhere / "models/mod/m1") == contents(model)
    assert kernel.sent > 8 * MiB


async def test_rate_limited_upload_uses_no_kernel(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"large": LARGE})
    proxy = await start_proxy("auto")

    await make_client(proxy, transfer={"rate_limit": 1024 * MiB}).models.push("mod:m1")

    assert not kernel.sent


class Transport(asyncio.Transport):
    """A connection with or without a socket and TLS."""

    def __init__(self, **info: object) -> None:
        super().__init__(info)
        self.limits: list[int | None] = []

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits.append(high)

    def is_closing(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("transport", "is_possible"),
    [
        (Transport(socket=1), True),
        (Transport(socket=1, sslcontext=1), False),
        (Transport(), False),
        (SimpleNamespace(get_extra_info={"socket": 1}.get), False),
        (None, False),
    ],
    ids=["TCP", "TLS", "no socket", "other transport", "lost"],
)
def test_kernel_sends_over_tcp_only(transport: object, is_possible: bool) -> None:
    writer: Any = SimpleNamespace(transport=transport)
    assert sendfile.is_possible(writer) is is_possible


@pytest.mark.parametrize("is_lost", [True, False])
async def test_flush_waits_for_empty_buffer(is_lost: bool) -> None:
    """Bytes in the buffer would come after those of the kernel."""
    transport, steps = Transport(socket=1), list[str]()

    async def drain() -> None:
        steps.append("drain")
        assert transport.limits == [0]
        if is_lost:
            raise ConnectionResetError

    writer: Any = SimpleNamespace(transport=transport, send_headers=lambda: steps.append("headers"), drain=drain)
    with suppress(ConnectionResetError):
        await sendfile.flush(writer)
    assert steps == ["headers", "drain"]
    assert transport.limits == [0, None]


@pytest.mark.parametrize("transport", [None, SimpleNamespace(is_closing=lambda: True)], ids=["lost", "closing"])
async def test_flush_of_lost_connection_raises(transport: object) -> None:
    writer: Any = SimpleNamespace(transport=transport, send_headers=lambda: None)
    with pytest.raises(ConnectionResetError):
        await sendfile.flush(writer)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
async def test_no_sendfile_falls_back(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, number: int
) -> None:
    model = make_model(home, files=BOTH)
    proxy = await start_proxy()

    def refuse_later(_: int) -> None:
        if kernel.sent > MiB:  # in the middle of a file, which was hashed ahead
            raise OSError(number, os.strerror(number))

    kernel.before = refuse_later
    await make_client(proxy).models.push("mod:m1")
    await make_client(proxy, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")

    assert contents(elsewhere / "models/mod/m1") == contents(model)


def write_same_size(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * MiB)
        file.write(random_bytes(8 * MiB, 13))


def truncate(path: Path) -> None:
    os.truncate(path, MiB)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [write_same_size, truncate, append])
async def test_change_during_send_raises(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path, change: Callable[[Path], None]
) -> None:
    model = make_model(home, files={"large": LARGE})
    proxy = await start_proxy()

    def change_once(_: int) -> None:
        kernel.before = lambda _: None
        change(model / "large")

    kernel.before = change_once
    error = await error_of(make_client(proxy).models.push("mod:m1"))

    assert isinstance(error, SourceChangedError)
    assert error.path == str(model / "large")
    (finish,) = proxy.matching(FINISH)
    assert finish.json["status"] == "failed"


@pytest.mark.parametrize("transmission", ["auto", "proxy"])
async def test_change_before_arrival_raises(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path, transmission: str
) -> None:
    """The kernel sends the pages of a file, not copies: a change may reach the storage although all bytes were read."""
    model = make_model(home, files={"large": LARGE})
    proxy = await start_proxy(transmission)

    async def change_first(exchange: Exchange) -> web.StreamResponse:
        await exchange.read()
        await asyncio.to_thread(write_same_size, model / "large")
        return await exchange.forward()

    proxy.add_fault(f"{PUT}|{UPLOAD}", change_first)
    error = await error_of(make_client(proxy, transfer={"verify": False}).models.push("mod:m1"))

    assert isinstance(error, SourceChangedError)
    assert kernel.sent


async def test_no_descriptors_falls_back(
    kernel: Kernel,
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(home, files=BOTH)
    proxy = await start_proxy()

    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", fail)
    await make_client(proxy).models.push("mod:m1")
    await make_client(proxy, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")

    assert contents(elsewhere / "models/mod/m1") == contents(model)
    assert not kernel.sent


async def test_unflushed_headers_stall(
    start_proxy: StartProxy,
    make_client: MakeClient,
    home: Path,
    forever: asyncio.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_model(home, files={"large": LARGE})
    proxy = await start_proxy("auto")

    async def wait(_: object) -> None:
        await forever.wait()

    monkeypatch.setattr(sendfile, "flush", wait)
    api = make_client(proxy, timeouts={"stall": 0.5}, retry={"attempts": 1})

    assert isinstance(await asyncio.wait_for(error_of(api.models.push("mod:m1")), 30), StalledError)


async def test_early_refusal_is_obeyed(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    """The response is read although the kernel still sends: its Retry-After is longer than the client accepts."""
    make_model(home, files={"large": random_bytes(40 * MiB, 14)})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(503, headers={"Retry-After": "500"}, read=False), times=None)

    error = await error_of(make_client(proxy, timeouts={"stall": 30}).models.push("mod:m1"))

    assert isinstance(error, (PartError, RateLimitError))
    assert error.status == 503
    assert error.retry_after == 500


async def test_lost_connection_is_retried(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    model = make_model(home, files={"large": LARGE})
    proxy = await start_proxy()
    proxy.add_fault(PART, disconnect_while_reading(3 * MiB), times=2)

    await make_client(proxy, retry={"attempts": 5}).models.push("mod:m1")
    await make_client(proxy, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")

    assert contents(elsewhere / "models/mod/m1") == contents(model)


async def test_stopped_storage_is_stall(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path, forever: asyncio.Event
) -> None:
    make_model(home, files={"large": random_bytes(40 * MiB, 14)})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, stop_reading(forever), times=None)
    api = make_client(proxy, timeouts={"stall": 0.5}, retry={"attempts": 1})

    async with nothing_left(api):
        error = await error_of(api.models.push("mod:m1"))

    assert isinstance(error, StalledError)
    assert kernel.sent


async def test_slow_storage_is_no_stall(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"large": LARGE})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, read_slowly(4 * MiB, 8 * MiB), times=None)

    assert await error_of(make_client(proxy, timeouts={"stall": 1}).models.push("mod:m1")) is None


def open_files(root: Path) -> list[str]:
    """Return the files below a directory that this process has open."""
    paths = [link.resolve() for link in Path("/proc/self/fd").iterdir()]
    return [str(path) for path in paths if path.is_relative_to(root)]


async def test_cancelled_send_leaves_nothing(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path, forever: asyncio.Event
) -> None:
    make_model(home, files={"large": random_bytes(40 * MiB, 14)})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, stop_reading(forever), times=None)
    api = make_client(proxy)

    async with nothing_left(api):
        pushing = asyncio.create_task(api.models.push("mod:m1"))
        await eventually(lambda: kernel.sent > 0)
        pushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pushing

    (finish,) = proxy.matching(FINISH)
    assert finish.json == {"status": "failed", "reason": "cancelled"}
    assert open_files(home) == []


async def test_kernel_sends_in_thread(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"large": LARGE})
    proxy = await start_proxy("auto")
    kernel.before = lambda _: time.sleep(0.01)  # which fails the test on the event loop

    await make_client(proxy).models.push("mod:m1")

    assert kernel.sent


async def test_progress_during_kernel_send(
    kernel: Kernel, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"large": random_bytes(40 * MiB, 14)})
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, read_slowly(20 * MiB, 20 * MiB), times=None)
    seen: list[int] = []

    await make_client(proxy, progress=lambda event: seen.append(event.bytes_done)).models.push("mod:m1")

    assert len({done for done in seen if 0 < done < 40 * MiB}) >= 3

"""Bounds of API calls whose registry, or a proxy on the way, never ends its response."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from async_bento import AsyncBentoAPI, Config, RestApiClient
from async_bento.errors import APITimeoutError, ConfigError
from tests.builders import make_bento
from tests.fault_proxy import UPLOAD, Hold
from tests.silent import error_of, flood, say_nothing, serving, trickle

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.fixtures import StartProxy
    from tests.silent import Answer

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
ONCE = {"retry": {"attempts": 1}, "timeouts": {"connect": 0.5, "api": 90}}
CONNECT_TIMEOUT = "no connection within 0.5 s"


async def test_silent_proxy_times_out() -> None:
    async with serving(say_nothing) as proxy:
        client = RestApiClient(
            "https://registry.example", "token", config=Config(**ONCE), proxy=f"http://ada:5ecret@{proxy}"
        )
        async with client:
            error = await error_of(client.current_user())

    assert isinstance(error, APITimeoutError)
    assert f"{CONNECT_TIMEOUT} through the proxy at {proxy}" in str(error)
    assert "5ecret" not in str(error)


async def test_tls_handshake_times_out() -> None:
    async with (
        serving(say_nothing) as registry,
        RestApiClient(f"https://{registry}", "token", config=Config(**ONCE)) as client,
    ):
        error = await error_of(client.current_user())

    assert isinstance(error, APITimeoutError)
    assert CONNECT_TIMEOUT in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        say_nothing,
        trickle(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        trickle(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
        trickle(JSON, b"1\r\n \r\n"),
    ],
    ids=["nothing", "header", "informational", "body"],
)
async def test_endless_response_times_out(
    answer: Answer,
) -> None:
    config = Config(retry={"attempts": 1}, timeouts={"api": 0.5})
    async with serving(answer) as registry, RestApiClient(f"http://{registry}", "token", config=config) as client:
        error = await error_of(client.current_user())

    assert isinstance(error, APITimeoutError)
    assert "no response within 0.5 s" in str(error)


# Runs with a limit of 1.5 GiB, and prints the error and the peak memory in KiB.
ASK = r"""
import asyncio, contextlib, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1536 << 20, 1536 << 20))
from async_bento import Config, RestApiClient

async def ask():
    async with RestApiClient(sys.argv[1], "token") as client:
        try:
            await client.current_user()
        except Exception as error:
            print(type(error).__name__, error)
        except MemoryError:
            print("MemoryError")

asyncio.run(ask())
with contextlib.suppress(FileNotFoundError):  # Linux's ru_maxrss counts what the process was before its exec
    print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
    sys.exit()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.posix("count of the memory of a process")
@pytest.mark.parametrize(
    ("status", "expected", "most"),
    [
        (b"200 OK", "APIResponseError", 700),
        (b"400 Bad Request", "APIStatusError", 200),
    ],
)
async def test_response_flood_is_cut_off(status: bytes, expected: str, most: int) -> None:
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await flood(JSON.replace(b"200 OK", status), piece)(reader, writer)

    async with serving(answer) as registry:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ASK, f"http://{registry}", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()

    error, _, memory = output.decode().strip().rpartition("\n")
    assert error.partition(" ")[0] == expected
    assert int(memory) < most * 1024
    assert connections == 1


async def test_largest_response_is_parsed(serve: Callable[..., Awaitable[str]]) -> None:
    name = "a" * (8 << 20)

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"name": name})

    async with RestApiClient(await serve(answer), "token") as client:
        assert (await client.current_user()).name == name


class Crowd:
    """A slow registry that counts its connections."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.connections: set[asyncio.BaseTransport] = set()
        self.most = 0

    async def answer(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        self.connections.add(request.transport)
        self.connections = {one for one in self.connections if not one.is_closing()}
        self.most = max(self.most, len(self.connections))
        await asyncio.sleep(self.seconds)
        return web.json_response({"name": "svc", "version": "v1"})


async def test_api_calls_bound_connections(serve: Callable[..., Awaitable[str]]) -> None:
    crowd = Crowd(0.1)
    config = Config(retry={"attempts": 1}, timeouts={"connect": 60, "api": 120})  # for a busy machine
    async with AsyncBentoAPI(endpoint=await serve(crowd.answer), api_token="token", config=config) as api:
        calls = (api.get("svc", "v1") for _ in range(600))
        outcomes = Counter(type(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True))

    assert crowd.most <= 128
    assert [kind.__name__ for kind in outcomes] == ["BentoFullSchema"]


async def test_small_pool_causes_no_timeout(serve: Callable[..., Awaitable[str]]) -> None:
    crowd = Crowd(0.1)
    config = Config(retry={"attempts": 1}, timeouts={"api": 2})  # less than all calls take together
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4)) as session,
        RestApiClient(await serve(crowd.answer), "token", config=config, session=session) as client,
    ):
        await asyncio.gather(*(client.current_user() for _ in range(96)))

    assert crowd.most <= 4


async def test_transfers_leave_connections_to_calls() -> None:
    async with RestApiClient("http://registry.example", "token") as client:
        call = client.bentos.session.registry_target("auth/current")
        transfers = client.bentos.upload_target("svc", "v1"), client.models.download_target("mod", "m1")
        assert call.connections is not None
        assert {id(target.connections) for target in transfers}.isdisjoint({id(call.connections)})
        assert transfers[0].connections is transfers[1].connections


@pytest.mark.parametrize("limits", [{"limit": 1}, {"limit_per_host": 1}])
async def test_pool_of_one_is_refused(limits: dict[str, int]) -> None:
    """An API call would have no connection during a transfer, and time out while it connects."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(**limits)) as session:
        with pytest.raises(ConfigError, match=r"its connector allows 1 connection.*\. Raise its limit"):
            RestApiClient("http://registry.example", "token", session=session)


async def test_pool_of_two_serves_both(start_proxy: StartProxy, home: Path) -> None:
    make_bento(home)
    proxy, held = await start_proxy("proxy"), Hold()
    proxy.add_fault(UPLOAD, held)
    config = Config(retry={"attempts": 1}, timeouts={"connect": 5})
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=2)) as session,
        RestApiClient(proxy.endpoint, proxy.registry.api_token, config=config, session=session) as client,
        AsyncBentoAPI(client, progress=False) as api,
    ):
        pushing = asyncio.create_task(api.push("svc:v1"))
        await held.arrived.wait()
        assert len(await api.list()) == 1
        held.released.set()
        await pushing

"""A scripted registry (`registry_mock`), and servers on real sockets (`serve`)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientResponse, web
from aioresponses import aioresponses

from async_bento import Config, RestApiClient
from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ENDPOINT = "https://registry.example"
TOKEN = "tk-of-registry-example"


class _Sent:
    """A writer whose request is complete."""

    output_size = 0


class _Response(ClientResponse):
    """aiohttp 3.14 requires the writer of the request, which aioresponses 0.7.9 omits (aioresponses#289, open)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=_Sent(), **kwargs)


class RegistryMock(aioresponses):
    """Sends the scripted responses in order, then refuses connections."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **{"response_class": _Response, **kwargs})

    def answer(self, method: str, path: str, *, payload: Any = None, **kwargs: Any) -> None:
        """Script one response to a path below `/api/v1/`."""
        self.add(f"{ENDPOINT}/api/v1/{path}", method=method, payload=payload, **kwargs)

    @property
    def request_count(self) -> int:
        """The number of requests received."""
        return sum(len(calls) for calls in self.requests.values())

    def only_request(self) -> tuple[str, str, Any]:
        """The method, the URL and aiohttp's keyword arguments of the only request."""
        assert self.request_count == 1
        ((method, url), (call,)) = next(iter(self.requests.items()))
        return method, str(url), call.kwargs


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the proxy of the machine that runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def registry_mock() -> Iterator[RegistryMock]:
    with RegistryMock() as mock:
        yield mock


@pytest.fixture
def config() -> Config:
    """Three attempts without waits."""
    return Config(retry={"attempts": 3, "wait_initial": 0, "wait_max": 0})


@pytest.fixture
async def client(config: Config) -> AsyncIterator[RestApiClient]:
    async with RestApiClient(ENDPOINT, TOKEN, config=config) as client:
        yield client


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Start a server on 127.0.0.1 that passes every request to one function; returns its URL."""
    async with AsyncExitStack() as stack:

        async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
            runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0)
            await runner.setup()
            stack.push_async_callback(close_server, runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            return f"http://{host}:{port}"

        yield start

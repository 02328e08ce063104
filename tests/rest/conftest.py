"""A registry that is scripted (`registry_mock`), and one that listens (`serve`)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientResponse, web
from aioresponses import aioresponses

from async_bento import Config, RestApiClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ENDPOINT = "https://registry.example"
TOKEN = "tk-of-registry-example"


class _Sent:
    """The writer of a request that has been sent."""

    output_size = 0


class _Response(ClientResponse):
    """aiohttp 3.14 wants the writer of the request, and aioresponses 0.7.9 gives none (aioresponses#289, open)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=_Sent(), **kwargs)


class RegistryMock(aioresponses):
    """Answers what a test scripts, in that order, and refuses the connection when it has nothing left to say."""

    def add(self, *args: Any, **kwargs: Any) -> None:
        super().add(*args, **{"response_class": _Response, **kwargs})

    def answer(self, method: str, path: str, *, payload: Any = None, **kwargs: Any) -> None:
        """Script one answer to a path below `/api/v1/`."""
        self.add(f"{ENDPOINT}/api/v1/{path}", method=method, payload=payload, **kwargs)

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return sum(len(calls) for calls in self.requests.values())

    def only_request(self) -> tuple[str, str, Any]:
        """The method and URL of the one request there was, and all that aiohttp was told with it."""
        assert self.asked == 1
        ((method, url), (call,)) = next(iter(self.requests.items()))
        return method, str(url), call.kwargs


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may sit behind a proxy; the tests do not."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def registry_mock() -> Iterator[RegistryMock]:
    with RegistryMock() as mock:
        yield mock


@pytest.fixture
def config() -> Config:
    """Three tries, at once."""
    return Config(retry={"attempts": 3, "wait_initial": 0, "wait_max": 0})


@pytest.fixture
async def client(config: Config) -> AsyncIterator[RestApiClient]:
    async with RestApiClient(ENDPOINT, TOKEN, config=config) as client:
        yield client


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Start a server on 127.0.0.1 that hands every request to one function; gives its URL."""
    async with AsyncExitStack() as stack:

        async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> str:
            runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            return f"http://{host}:{port}"

        yield start

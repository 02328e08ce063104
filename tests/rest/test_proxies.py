"""The proxy of a request, by argument and environment, and connections that TLS or a proxy refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from async_bento import APIConnectionError, BentoError, Config, ConfigError, RestApiClient
from async_bento.cli.main import main
from tests.cli_runner import make_runner
from tests.platforms import IS_WINDOWS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.registry.server import LocalRegistry

TOKEN = "tk-5ecret-of-the-registry"
PROXY = "http://proxy.example:3128"
THREE_TRIES = Config(retry={"attempts": 3, "wait_initial": 0, "wait_max": 0})


async def proxy_for(url: str) -> str | None:
    """The proxy of a request to a registry."""
    async with RestApiClient(url, TOKEN) as client:
        return client.bentos.session.registry_target("auth/current").proxy


@pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_all_proxy_for_any_scheme(variable: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, PROXY)
    assert await proxy_for(f"{scheme}://registry.example") == PROXY


async def test_scheme_proxy_beats_all_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://all.example:3128")
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert await proxy_for("https://registry.example") == PROXY


@pytest.mark.parametrize(
    ("url", "proxy", "forwarded"),
    [
        ("http://registry.example", PROXY, True),
        ("https://registry.example", PROXY, False),
        ("http://registry.example", "", False),
        ("https://registry.example", "", False),
    ],
)
async def test_http_proxy_forwards_http_alone(
    url: str, proxy: str, forwarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    async with RestApiClient(url, TOKEN) as client:
        assert client.bentos.session.registry_target("auth/current").is_forwarded is forwarded


EXCLUDED = [
    ("registry.example:443", "https://registry.example"),
    ("registry.example:3000", "http://registry.example:3000"),
    (".example:3000", "http://registry.example:3000"),
    ("other.example, *", "https://registry.example"),
    ("*.example", "https://registry.example"),
    ("https://registry.example", "https://registry.example"),
    ("10.0.0.0/8", "http://10.1.2.3:3000"),
    ("10.9.9.9/8", "http://10.1.2.3:3000"),
    ("10.1.2.3:3000", "http://10.1.2.3:3000"),
    ("fd00::/8", "http://[fd00::1]:3000"),
    ("[::1]:3000", "http://[::1]:3000"),
    ("::1", "http://[::1]:3000"),
    ("EXAMPLE", "https://registry.example"),
    ("registry.example.", "https://registry.example"),
]
INCLUDED = [
    ("registry.example:80", "https://registry.example"),
    ("registry.example:3000", "http://registry.example:3001"),
    ("istry.example", "https://registry.example"),
    ("http://registry.example", "https://registry.example"),
    ("10.0.0.0/8", "http://11.1.2.3:3000"),
    ("10.0.0.0/99", "http://10.0.0.1:3000"),
    ("[::1]:3000", "http://[::1]:3001"),
    (",,  ,", "https://registry.example"),
    ("registry.example:", "https://registry.example"),
]


@pytest.mark.parametrize(("no_proxy", "url"), EXCLUDED)
async def test_no_proxy_match_skips_proxy(no_proxy: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert await proxy_for(url) is None


@pytest.mark.parametrize(("no_proxy", "url"), INCLUDED)
async def test_no_proxy_mismatch_uses_proxy(no_proxy: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert await proxy_for(url) == PROXY


async def test_system_exception_skips_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and macOS have exceptions in their settings."""
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setattr("async_bento.rest.proxies.proxy_bypass", lambda host: host == "registry.example")
    assert await proxy_for("https://registry.example") is None
    assert await proxy_for("https://other.example") == PROXY


@pytest.mark.parametrize(("status", "forwards", "reached"), [(200, True, True), (503, True, False), (503, False, True)])
async def test_gateway_error_reaches_no_storage(
    status: int, forwards: bool, reached: bool, serve: Callable[..., Awaitable[str]]
) -> None:
    """A proxy that forwards http also answers for a storage that it cannot reach."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    url = await serve(answer)
    async with RestApiClient("https://registry.example", TOKEN, proxy=url if forwards else None) as client:
        session = client.bentos.session
        target = session.storage_target(SecretStr("http://storage.example/key" if forwards else f"{url}/key"))
        async with target.request("GET", aiohttp.ClientTimeout(total=10)) as response:
            assert response.status == status
        assert (target.storage in session.storages.reached) is reached


# Proxies that cannot be used


async def failure(url: str) -> BaseException | None:
    """The error of a request to a registry, whatever its type."""
    async with RestApiClient(url, TOKEN, config=THREE_TRIES) as client:
        try:
            await client.current_user()
        except Exception as error:  # noqa: BLE001 - the tests check its type
            return error
    return None


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4", "socks"])
@pytest.mark.parametrize("variable", ["ALL_PROXY", "http_proxy"])
async def test_socks_proxy_is_refused(scheme: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"{scheme}://ada:5ecret@127.0.0.1:1080")
    error = await failure("http://127.0.0.1:9")
    assert isinstance(error, ConfigError)
    assert str(error) == (
        f"cannot use the proxy in {variable.upper() if IS_WINDOWS else variable}: SOCKS proxies are not supported. "
        "Use the URL of an HTTP proxy instead, or exclude the host by NO_PROXY."
    )


MALFORMED = [
    "http://[::1",
    "http://",
    "http://proxy.example:port",
    "http://proxy.example:0",
    "ftp://proxy.example:21",
    "http://a b:1",
    "//",
]


@pytest.mark.parametrize("proxy", MALFORMED)
async def test_malformed_proxy_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.replace("://", "://ada:5ecret@"))
    error = await failure("http://127.0.0.1:9")
    assert isinstance(error, ConfigError)
    assert str(error).startswith("invalid proxy in HTTP_PROXY: it is not the URL of a proxy. Use a URL like http://")
    assert "5ecret" not in f"{error}{error.__cause__}"


@pytest.mark.parametrize(("proxy", "message"), [("socks5://127.0.0.1:1080", "SOCKS"), ("http://[::1", "invalid proxy")])
def test_proxy_argument_is_validated(proxy: str, message: str) -> None:
    error: BaseException | None = None
    try:
        RestApiClient("http://127.0.0.1:9", TOKEN, proxy=proxy)
    except ConfigError as refused:
        error = refused
    assert message in str(error)
    assert "the argument proxy" in str(error)


@pytest.mark.parametrize("command", [["list"], ["doctor"]])
@pytest.mark.parametrize("proxy", ["socks5h://127.0.0.1:1080", "http://[::1"])
def test_command_names_unusable_proxy(
    command: list[str], proxy: str, served: LocalRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    done = make_runner().invoke(main, command)
    assert done.exit_code == 2
    text = done.stdout + done.stderr
    variable = "HTTP_PROXY" if IS_WINDOWS else "http_proxy"
    assert f"proxy in {variable}" in " ".join(text.split())
    assert "Traceback" not in text


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "http://[::1"])
async def test_unusable_storage_proxy_raises(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with RestApiClient("https://registry.example", TOKEN) as client:
        monkeypatch.setenv("http_proxy", proxy)
        error: BaseException | None = None
        try:
            client.bentos.session.storage_target(SecretStr("http://storage.example/key?signature=5ecret"))
        except Exception as refused:  # noqa: BLE001 - the tests check its type
            error = refused
    assert isinstance(error, ConfigError)


# TLS


async def test_https_to_http_port_is_named(serve: Callable[..., Awaitable[str]]) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.json_response({"name": "ada"})

    endpoint = (await serve(answer)).replace("http://", "https://")
    error = await failure(endpoint)
    assert isinstance(error, APIConnectionError)
    assert str(error) == (
        f"cannot reach the registry at {endpoint}: the server does not use TLS on this port. "
        "Use an http URL, or the port for https, in the endpoint."
    )


async def test_https_to_http_port_tried_once() -> None:
    connections = 0

    async def count(reader: Any, writer: Any) -> None:
        nonlocal connections
        connections += 1
        await reader.read(100)
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(count, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert isinstance(await failure(f"https://127.0.0.1:{port}"), BentoError)
    assert connections == 1

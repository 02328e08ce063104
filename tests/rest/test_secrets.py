"""Hosts that get the token, over real sockets, and texts that show neither the token nor a presigned query."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Any
from unittest import mock

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from async_bento import BentoError, Config, RestApiClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from async_bento.rest.transport import Target

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Serve = Callable[[Handler], Awaitable[str]]

TOKEN = "tk-5ecret-of-the-registry"
SIGNATURE = "5ecret-5ignature"
SECONDS = aiohttp.ClientTimeout(total=10)
ONCE = Config(retry={"attempts": 2, "wait_initial": 0, "wait_max": 0})


class Recorder:
    """A server that records its requests and sends one response to all."""

    def __init__(self, answer: Callable[[web.Request], web.StreamResponse] | None = None) -> None:
        self.requests: list[web.BaseRequest] = []
        self.answer = answer or (lambda request: web.json_response({"name": "ada"}))

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        await request.read()
        return self.answer(request)

    def headers_seen(self) -> str:
        return "\n".join(f"{name}: {value}" for sent in self.requests for name, value in sent.headers.items())


def all_texts(error: BaseException) -> str:
    """The texts of an error, its causes and its traceback."""
    texts = ["".join(traceback.format_exception(type(error), error, error.__traceback__))]
    seen: BaseException | None = error
    while seen is not None:
        texts += [str(seen), repr(seen), repr(vars(seen))]
        seen = seen.__cause__
    return "\n".join(texts)


async def put(target: Target) -> tuple[int, bytes]:
    async with target.request("PUT", SECONDS, data=b"bytes") as response:
        return response.status, await response.read()


# The token


async def test_token_is_sent_to_registry(serve: Serve) -> None:
    registry = Recorder()
    async with RestApiClient(await serve(registry), TOKEN) as client:
        await client.current_user()
    assert registry.requests[0].headers["X-YATAI-API-TOKEN"] == TOKEN


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_token_not_sent_to_redirect(status: int, serve: Serve) -> None:
    elsewhere = Recorder()
    target = await serve(elsewhere)
    registry = Recorder(lambda request: web.Response(status=status, headers={"Location": f"{target}/api?a={TOKEN}"}))
    async with RestApiClient(await serve(registry), TOKEN, config=ONCE) as client:
        with pytest.raises(BentoError, match="The registry redirects to") as caught:
            await client.current_user()
    assert elsewhere.requests == []
    assert TOKEN not in all_texts(caught.value)


async def test_registry_upload_no_redirect(serve: Serve) -> None:
    elsewhere = Recorder()
    target = await serve(elsewhere)
    registry = Recorder(lambda request: web.Response(status=307, headers={"Location": target}))
    async with RestApiClient(await serve(registry), TOKEN) as client:
        assert (await put(client.bentos.upload_target("iris", "v1")))[0] == 307
    assert registry.requests[0].headers["X-YATAI-API-TOKEN"] == TOKEN
    assert elsewhere.requests == []


async def test_token_not_sent_to_storage(serve: Serve) -> None:
    storage = Recorder()
    url = await serve(storage)
    async with RestApiClient(await serve(Recorder()), TOKEN) as client:
        await client.current_user()
        await put(client.bentos.session.storage_target(SecretStr(f"{url}/bucket/key?X-Amz-Signature={SIGNATURE}")))
    assert len(storage.requests) == 1
    assert "token" not in storage.headers_seen().lower()
    assert TOKEN not in storage.headers_seen()


async def test_storage_on_registry_gets_no_token(serve: Serve) -> None:
    both = Recorder()
    endpoint = await serve(both)
    async with RestApiClient(endpoint, TOKEN) as client:
        await put(client.bentos.session.storage_target(SecretStr(f"{endpoint}/blobs/key?signature={SIGNATURE}")))
    assert TOKEN not in both.headers_seen()


class Unreadable(aiohttp.BytesPayload):
    """A body that fails while it is sent."""

    async def write_with_length(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionResetError("gone")


@pytest.mark.parametrize("message", ["Connection timeout to host", "Can not write request body for"])
async def test_aiohttp_error_hides_query(
    message: str, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "async_bento.rest")
    url = await serve(Recorder())
    if "timeout" in message:
        monkeypatch.setattr(aiohttp.TCPConnector, "connect", mock.AsyncMock(side_effect=asyncio.TimeoutError))
    async with RestApiClient(url, TOKEN) as client:
        address = client.bentos.session.storage_target(SecretStr(f"{url}/bucket/key?X-Amz-Signature={SIGNATURE}"))
        with pytest.raises(aiohttp.ClientError, match=message) as caught:
            async with address.request("PUT", SECONDS, data=Unreadable(b"bytes")):
                pass
    assert f"{url}/bucket/key?…" in str(caught.value)
    assert f"PUT {url}/bucket/key: failed" in caplog.text
    assert SIGNATURE not in all_texts(caught.value) + caplog.text


async def test_storage_upload_no_redirect(serve: Serve) -> None:
    elsewhere = Recorder()
    target = await serve(elsewhere)
    storage = Recorder(lambda request: web.Response(status=307, headers={"Location": target}))
    url = await serve(storage)
    async with RestApiClient(await serve(Recorder()), TOKEN) as client:
        assert (await put(client.bentos.session.storage_target(SecretStr(f"{url}/key?s={SIGNATURE}"))))[0] == 307
    assert elsewhere.requests == []


async def test_presigned_url_sent_unchanged(serve: Serve) -> None:
    storage = Recorder()
    url = await serve(storage)
    signed = "/bucket/a%2Fb%20c+d/%7Etar?X-Amz-Credential=AK%2F2024%2Fs3&b=%7E&a=1+2&X-Amz-Signature=ab%2Bcd%3D"
    async with RestApiClient(await serve(Recorder()), TOKEN) as client:
        await put(client.bentos.session.storage_target(SecretStr(url + signed)))
    assert storage.requests[0].raw_path == signed


async def test_storage_upload_no_content_type(serve: Serve) -> None:
    storage = Recorder()
    url = await serve(storage)
    async with RestApiClient(await serve(Recorder()), TOKEN) as client:
        await put(client.bentos.session.storage_target(SecretStr(f"{url}/key")))
    assert "Content-Type" not in storage.requests[0].headers


# Cookies, netrc, the caller's session


async def test_cookies_are_never_sent(serve: Serve) -> None:
    def with_cookie(request: web.Request) -> web.Response:
        response = web.json_response({"name": "ada"})
        response.set_cookie("session", "5ecret-cookie", path="/")
        return response

    registry, storage = Recorder(with_cookie), Recorder(with_cookie)
    # Cookies ignore ports, so both servers on one host would share a jar; and a jar takes none from an IP address.
    registry_url = (await serve(registry)).replace("127.0.0.1", "localhost")
    storage_url = (await serve(storage)).replace("127.0.0.1", "localhost")
    async with RestApiClient(registry_url, TOKEN) as client:
        for _ in range(2):
            await client.current_user()
            await put(client.bentos.session.storage_target(SecretStr(f"{storage_url}/key")))
    assert len(registry.requests) == len(storage.requests) == 2
    assert "5ecret-cookie" not in registry.headers_seen() + storage.headers_seen()


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login ada password 5ecret-netrc\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))


@pytest.mark.usefixtures("netrc")
async def test_netrc_is_never_sent(serve: Serve) -> None:
    registry, storage = Recorder(), Recorder()
    url = await serve(storage)
    async with RestApiClient(await serve(registry), TOKEN) as client:
        await client.current_user()
        await put(client.bentos.session.storage_target(SecretStr(f"{url}/key?s={SIGNATURE}")))
    assert len(storage.requests) == 1
    assert "authorization" not in (registry.headers_seen() + storage.headers_seen()).lower()


@pytest.mark.usefixtures("netrc")
async def test_storage_gets_no_caller_headers(serve: Serve) -> None:
    registry, storage = Recorder(), Recorder()
    url = (await serve(storage)).replace("127.0.0.1", "localhost")
    async with (
        aiohttp.ClientSession(
            headers={"X-Own": "5ecret-header", "Cookie": "a=5ecret-cookie"},
            cookies={"b": "5ecret-cookie"},
            trust_env=True,
        ) as lent,
        RestApiClient(await serve(registry), TOKEN, session=lent) as client,
    ):
        await client.current_user()
        await put(client.bentos.session.storage_target(SecretStr(f"{url}/key?s={SIGNATURE}")))
    assert registry.requests[0].headers["X-Own"] == "5ecret-header"
    assert len(storage.requests) == 1
    assert "5ecret" not in storage.headers_seen()


# Reprs, errors and logs


async def test_repr_shows_no_secret(serve: Serve) -> None:
    async with RestApiClient(await serve(Recorder()), TOKEN, proxy=f"http://ada:{SIGNATURE}@proxy.example") as client:
        storage = client.bentos.session.storage_target(
            SecretStr(f"https://k:{SIGNATURE}@s3.example/b/k?X-Amz-Signature={SIGNATURE}")
        )
        for thing in (client, client.bentos, client.bentos.upload_target("iris", "v1"), storage):
            shown = f"{thing!r} {thing}"
            assert TOKEN not in shown
            assert SIGNATURE not in shown
        assert str(storage) == "https://s3.example/b/k"


def echo_the_token(status: int, content_type: str) -> Callable[[web.Request], web.Response]:
    def answer(request: web.Request) -> web.Response:
        token = request.headers["X-YATAI-API-TOKEN"]
        url = f"https://s3.example/k?s={SIGNATURE}"
        body = f'{{"message": "no such token: {token} at {url}", "version": 5, "url": "{url}"}}'
        return web.Response(
            status=status, body=body.encode(), headers={"Content-Type": content_type, "x-trace-id": token}
        )

    return answer


def echo_half(request: web.Request) -> web.Response:
    """JSON truncated in a presigned URL: pydantic's text quotes both of its ends."""
    token = request.headers["X-YATAI-API-TOKEN"]
    return web.Response(body=f'{{"t": "{token}", "presigned_upload_url": "https://s3.example/k?s={SIGNATURE}'.encode())


ECHOES = {
    "401": echo_the_token(401, "application/json"),
    "403": echo_the_token(403, "application/json"),
    "400_in_plain_text": echo_the_token(400, "text/plain"),
    "500": echo_the_token(500, "application/json"),
    "404_as_a_page": echo_the_token(404, "text/html"),
    "200_that_does_not_fit": echo_the_token(200, "application/json"),
    "200_that_breaks_off": echo_half,
}


@pytest.mark.parametrize("answer", ECHOES.values(), ids=ECHOES)
async def test_echoed_secret_is_hidden(
    answer: Callable[[web.Request], web.Response], serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with RestApiClient(await serve(Recorder(answer)), TOKEN, config=ONCE) as client:
        with pytest.raises(BentoError) as caught:
            await client.bentos.start_upload("iris", "v1")
    texts = all_texts(caught.value)
    assert TOKEN not in texts
    assert SIGNATURE not in texts
    assert_logs_hold_no_secret(caplog)


async def test_lost_connection_hides_secret(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def abort(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    caplog.set_level(logging.DEBUG)
    async with RestApiClient(await serve(Recorder(abort)), TOKEN, config=ONCE) as client:
        with pytest.raises(BentoError) as caught:
            await client.current_user()
    assert TOKEN not in all_texts(caught.value)
    assert "retrying (2 of" in caplog.text  # so the log had something to hide
    assert_logs_hold_no_secret(caplog)


async def test_invalid_response_hides_secret() -> None:
    """aiohttp's error has the whole request, and bytes of the response, which may echo it."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 no status for " + head.replace(b"\r\n", b" ") + b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with RestApiClient(f"http://{host}", TOKEN, config=ONCE) as client:
            url = SecretStr(f"http://ada:{SIGNATURE}@{host}/k?s={SIGNATURE}")
            with pytest.raises(aiohttp.ClientResponseError, match="Bad status line") as caught:
                await put(client.bentos.session.storage_target(url))
            with pytest.raises(BentoError, match="Bad status line") as refused:
                await client.current_user()
    assert f"http://{host}/k" in all_texts(caught.value)
    assert SIGNATURE not in all_texts(caught.value)
    assert TOKEN not in all_texts(refused.value)


@pytest.mark.parametrize(
    "presigned",
    [
        f"/blobs/k?s={SIGNATURE}",
        f"ftp://s3.example/k?s={SIGNATURE}",
        f"https://s3.example:99999/k?s={SIGNATURE}",
        f"https://s3.example:0/k?s={SIGNATURE}",
        f"https://[::1/k?s={SIGNATURE}",
        f"?s={SIGNATURE}",
        "",
    ],
)
async def test_invalid_presigned_url_is_hidden(presigned: str, serve: Serve) -> None:
    async with RestApiClient(await serve(Recorder()), TOKEN) as client:
        with pytest.raises(BentoError, match="presigned URL: it is not an http or https URL") as caught:
            client.bentos.session.storage_target(SecretStr(presigned))
    assert SIGNATURE not in all_texts(caught.value)


async def test_proxy_407_hides_password(serve: Serve) -> None:
    refusing = Recorder(lambda request: web.Response(status=407))
    proxy = (await serve(refusing)).replace("http://", f"http://ada:{SIGNATURE}@")
    async with RestApiClient("https://registry.example", TOKEN, config=ONCE, proxy=proxy) as client:
        with pytest.raises(BentoError) as caught:
            await client.current_user()
    assert refusing.requests[0].method == "CONNECT"
    texts = all_texts(caught.value)
    assert SIGNATURE not in texts
    assert str(caught.value) == (
        f"cannot reach the registry at https://registry.example: the proxy at {proxy.rpartition('@')[2]} answered "
        "407 Proxy Authentication Required. Check the proxy and its password."
    )
    assert TOKEN not in refusing.headers_seen()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_proxy_gets_its_password(scheme: str, serve: Serve) -> None:
    proxy_server = Recorder(lambda request: web.Response(status=407))
    proxy = (await serve(proxy_server)).replace("http://", "http://ada:p%40ss@")
    async with RestApiClient(f"{scheme}://registry.example", TOKEN, config=ONCE, proxy=proxy) as client:
        with pytest.raises(BentoError):
            await client.current_user()
    assert proxy_server.requests[0].headers["Proxy-Authorization"] == aiohttp.encode_basic_auth("ada", "p@ss")


def assert_logs_hold_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    for record in caplog.records:
        shown = f"{record.getMessage()} {vars(record)}"
        assert TOKEN not in shown
        assert SIGNATURE not in shown


@pytest.mark.parametrize("token", ["tk-\n5ecret", "tk-5ecret\x00", "tk-5ecret-é"])
def test_invalid_token_is_hidden(token: str) -> None:
    with pytest.raises(
        BentoError,
        match="invalid API token from the api_token argument: it has a line break",
    ) as caught:
        RestApiClient("https://registry.example", token)
    assert "5ecret" not in all_texts(caught.value).replace(repr(token), "")


@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [
        ("http://plain.example:3000", True),
        ("http://10.0.0.7:3000", True),
        ("https://tls.example", False),
        ("http://localhost:3000", False),
        ("http://registry.localhost:3000", False),
        ("http://127.0.0.9:3000", False),
        ("http://[::1]:3000", False),
    ],
)
async def test_token_over_http_warns_once(endpoint: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with RestApiClient(endpoint, "5ecret-token") as client:
            client.bentos.session.registry_target("auth/current")
            client.bentos.session.registry_target("bentos")

    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (
        warnings
        == [f"the API token is sent to {endpoint} unencrypted: anyone on the way can read it. Use https."] * warned
    )

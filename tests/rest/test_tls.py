"""TLS certificates, and the secrets that a proxy sees."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from pydantic import SecretStr

from async_bento import APIConnectionError, AsyncBentoAPI, Config, ModelStore, PartError, RestApiClient
from tests.builders import make_model
from tests.fault_proxy import PUT, answer_json
from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fault_proxy import FaultProxy
    from tests.fixtures import StartProxy


TOKEN = "tk-5ecret-of-the-registry"
PASSWORD = "5ecret-of-the-proxy"
THREE_TRIES = Config(retry={"attempts": 3, "wait_initial": 0, "wait_max": 0})
CERTIFICATE = Path(__file__).parents[1] / "tls" / "certificate.pem"
"""Of 127.0.0.1, signed by itself, with its key: `openssl req -x509 -nodes -days 36500 -newkey ec
-pkeyopt ec_paramgen_curve:prime256v1 -subj "/CN=a test of async-bento" -addext basicConstraints=critical,CA:TRUE
-addext keyUsage=critical,digitalSignature,keyCertSign -addext subjectAltName=IP:127.0.0.1,DNS:localhost`."""


@dataclass
class TlsServer:
    """A server with an untrusted certificate.

    Attributes:
        greeted: The number of opened connections.
        seen: The received requests.
    """

    url: str = ""
    greeted: int = 0
    seen: list[web.BaseRequest] = field(default_factory=list)

    def greet(self, *_: object) -> None:
        self.greeted += 1

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.seen.append(request)
        await request.read()
        return web.json_response({"name": "ada"}, headers={"ETag": '"any"'})


@pytest.fixture
async def server() -> AsyncIterator[TlsServer]:
    server = TlsServer()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    context.sni_callback = server.greet
    runner = web.ServerRunner(web.Server(server.answer), shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await close_server(runner)


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATE))


async def test_registry_certificate_refused(server: TlsServer) -> None:
    async with RestApiClient(server.url, TOKEN, config=THREE_TRIES) as client:
        with pytest.raises(APIConnectionError, match=r"certificate verify failed.*authority, set SSL_CERT_FILE"):
            await client.current_user()

    assert server.greeted == 1
    assert not server.seen


async def test_registry_trusted_by_context(server: TlsServer, trusting: ssl.SSLContext) -> None:
    async with RestApiClient(server.url, TOKEN, ssl=trusting) as client:
        assert (await client.current_user()).name == "ada"


async def test_ssl_false_skips_verification(server: TlsServer) -> None:
    async with RestApiClient(server.url, TOKEN, ssl=False) as client:
        assert (await client.current_user()).name == "ada"


ASK = """
import asyncio, sys
from async_bento import RestApiClient

async def main():
    async with RestApiClient(sys.argv[1], "token") as client:
        print((await client.current_user()).name)

asyncio.run(main())
"""


@pytest.mark.parametrize("trusted", [True, False])
async def test_registry_trusted_by_cert_file(server: TlsServer, trusted: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SSL_CERT_FILE"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", ASK, server.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment | ({"SSL_CERT_FILE": str(CERTIFICATE)} if trusted else {}),
    )
    out, err = await process.communicate()

    assert out.split() == ([b"ada"] if trusted else []), err
    assert trusted or b"certificate verify failed" in err


@pytest.fixture
async def pushing_there(server: TlsServer, start_proxy: StartProxy, home: Path) -> FaultProxy:
    """A fault proxy of a registry whose storage is `server`."""
    make_model(home)
    proxy = await start_proxy("auto")
    record = {"version": "m1", "presigned_upload_url": f"{server.url}/blobs/key?signature=5ecret-5ignature"}
    proxy.add_fault("presign_upload", answer_json(200, record), times=None)
    return proxy


async def test_storage_certificate_refused(server: TlsServer, pushing_there: FaultProxy, home: Path) -> None:
    client = RestApiClient(pushing_there.endpoint, pushing_there.registry.api_token, config=THREE_TRIES)
    async with client, AsyncBentoAPI(client, model_store=ModelStore(home / "models")) as api:
        with pytest.raises(PartError, match="certificate verify failed") as caught:
            await api.models.push("mod:m1")

    assert server.greeted == 1
    assert not server.seen
    assert "5ignature" not in str(caught.value)


async def test_storage_trusted_by_context(
    server: TlsServer, pushing_there: FaultProxy, home: Path, trusting: ssl.SSLContext
) -> None:
    client = RestApiClient(pushing_there.endpoint, pushing_there.registry.api_token, ssl=trusting)
    async with client, AsyncBentoAPI(client, model_store=ModelStore(home / "models")) as api:
        assert (await api.models.push("mod:m1")).parts == 1

    (put,) = server.seen
    assert "X-YATAI-API-TOKEN" not in put.headers
    assert not pushing_there.matching(PUT)


# A proxy on the way


@dataclass
class Tunnel:
    """A proxy that forwards bytes and records its CONNECT requests."""

    url: str = ""
    heads: list[str] = field(default_factory=list)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        host, _, port = head.split()[1].partition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with suppress(ConnectionError):
            await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def tunnel() -> AsyncIterator[Tunnel]:
    tunnel = Tunnel()
    server = await asyncio.start_server(tunnel.connect, "127.0.0.1", 0)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server)
        host, port = server.sockets[0].getsockname()
        tunnel.url = f"http://ada:{PASSWORD}@{host}:{port}"
        yield tunnel


async def test_proxy_gets_password_not_token(server: TlsServer, tunnel: Tunnel, trusting: ssl.SSLContext) -> None:
    async with RestApiClient(server.url, TOKEN, ssl=trusting, proxy=tunnel.url) as client:
        await client.current_user()
        storage = client.bentos.session.storage_target(SecretStr(f"{server.url}/key?signature=5ecret-5ignature"))
        async with storage.request("PUT", aiohttp.ClientTimeout(total=10), data=b"bytes") as response:
            assert response.status == 200

    assert [head.partition(" ")[0] for head in tunnel.heads] == ["CONNECT", "CONNECT"]
    requests = "".join(tunnel.heads)
    assert Counter(line.partition(":")[0] for line in requests.splitlines())["Proxy-Authorization"] == 2
    assert TOKEN not in requests
    assert "5ignature" not in requests
    assert [request.headers.get("X-YATAI-API-TOKEN") for request in server.seen] == [TOKEN, None]
    assert not [request for request in server.seen if "Proxy-Authorization" in request.headers]


async def test_certificate_error_blames_no_proxy(server: TlsServer, tunnel: Tunnel) -> None:
    async with RestApiClient(server.url, TOKEN, config=THREE_TRIES, proxy=tunnel.url) as client:
        with pytest.raises(APIConnectionError) as caught:
            await client.current_user()

    assert str(caught.value).startswith(f"cannot reach the registry at {server.url}: [SSL: CERTIFICATE_VERIFY_FAILED] ")

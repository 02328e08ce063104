"""Redirects of a storage, as S3 sends them for new buckets and for buckets in other regions."""

from __future__ import annotations

import logging
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from pydantic import SecretStr

from async_bento import AsyncBentoAPI, BentoError, Config, ModelStore, PartError, RestApiClient
from tests.builders import KiB, MiB, contents, make_model, random_bytes
from tests.fault_proxy import PUT, FaultProxy, answer_json, refuse
from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.fault_proxy import Exchange, Fault
    from tests.fixtures import MakeClient, StartProxy

CERTIFICATE = Path(__file__).parents[1] / "tls" / "certificate.pem"
WEIGHTS = random_bytes(11 * MiB, 9)


async def error_of(call: Awaitable[object]) -> BentoError | None:
    """Return the error of a call, or None."""
    try:
        await call
    except BentoError as error:
        return error
    return None


def redirect_to(origin: str, status: int = 307, *, read: bool = True) -> Fault:
    """Redirect to the same path and query at another origin."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        location = f"{origin}{exchange.request.path_qs}"
        return await refuse(status, code="TemporaryRedirect", headers={"Location": location}, read=read)(exchange)

    return fault


@pytest.fixture
async def storages(start_proxy: StartProxy) -> AsyncIterator[Callable[..., Awaitable[tuple[FaultProxy, FaultProxy]]]]:
    """A registry with its storage, and another host of this storage."""
    async with AsyncExitStack() as stack:

        async def start(transmission: str = "presigned_url") -> tuple[FaultProxy, FaultProxy]:
            proxy = await start_proxy(transmission)
            return proxy, await stack.enter_async_context(FaultProxy(proxy.registry))

        yield start


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("transmission", ["presigned_url", "auto"])
async def test_storage_redirect_followed(
    status: int,
    transmission: str,
    storages: Callable[..., Awaitable[tuple[FaultProxy, FaultProxy]]],
    make_client: MakeClient,
    home: Path,
    elsewhere: Path,
) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy, region = await storages(transmission)
    proxy.add_fault("/blobs/", redirect_to(region.endpoint, status), times=None)

    errors = [
        await error_of(make_client(proxy).models.push("mod:m1")),
        await error_of(make_client(proxy, elsewhere, transfer={"range_size": MiB}).models.pull("mod:m1")),
    ]

    assert errors == [None, None]
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")
    assert all(request.status in {200, 206} for request in region.requests)
    sent, redirected = ([request.query for request in each.matching(PUT)] for each in (region, proxy))
    assert sorted(sent, key=str) == sorted(redirected, key=str)
    assert not [request for request in region.requests if "X-YATAI-API-TOKEN" in request.headers]


async def test_redirect_before_body_followed(
    storages: Callable[..., Awaitable[tuple[FaultProxy, FaultProxy]]], make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy, region = await storages()
    proxy.add_fault(PUT, redirect_to(region.endpoint, read=False), times=None)

    assert await error_of(make_client(proxy, transfer={"part_size": 16 * MiB}).models.push("mod:m1", threads=1)) is None
    assert len(region.matching(PUT)) == 1


async def test_endless_redirect_is_error(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, redirect_to(proxy.endpoint), times=None)

    error = await error_of(make_client(proxy).models.push("mod:m1"))

    assert isinstance(error, PartError)
    assert "the storage redirects more than 5 times, which is not followed" in str(error)
    assert len(proxy.matching(PUT)) == 6


async def test_redirect_has_own_query_only(
    storages: Callable[..., Awaitable[tuple[FaultProxy, FaultProxy]]], make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy, region = await storages("auto")
    proxy.add_fault(PUT, refuse(307, headers={"Location": f"{region.endpoint}/blobs/key"}))
    region.add_fault(PUT, refuse(400, code="InvalidRequest"))

    error = await error_of(make_client(proxy).models.push("mod:m1"))

    assert f"{region.endpoint}/blobs/key: the storage refused the request: 400 InvalidRequest" in str(error)
    assert [request.query for request in region.requests] == [{}]


async def test_redirect_to_path_stays_on_host(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, redirect_to(""))

    assert await error_of(make_client(proxy).models.push("mod:m1")) is None
    assert [request.status for request in proxy.matching(PUT)] == [307, 200]


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/key", "http://[::1", "https://", "http://127.0.0.1:0/key"])
async def test_redirect_to_invalid_url_is_error(
    location: str, start_proxy: StartProxy, make_client: MakeClient, home: Path
) -> None:
    make_model(home)
    proxy = await start_proxy("auto")
    proxy.add_fault(PUT, refuse(307, headers={"Location": location}))

    error = await error_of(make_client(proxy).models.push("mod:m1"))

    assert isinstance(error, PartError)
    assert "the storage redirects to something that is not an http or https URL" in str(error)


@pytest.mark.parametrize(
    ("status", "location"), [(200, "http://elsewhere.example/key"), (303, "http://elsewhere.example/key"), (307, None)]
)
async def test_other_status_is_no_redirect(status: int, location: str | None) -> None:
    """A client would repeat a PUT as a GET after 303."""
    async with RestApiClient("http://registry.example", "token") as client:
        target = client.bentos.session.storage_target(SecretStr("http://storage.example/key"))
        assert target.redirected(status, location) is None


async def test_registry_redirect_not_followed(
    storages: Callable[..., Awaitable[tuple[FaultProxy, FaultProxy]]], make_client: MakeClient, home: Path
) -> None:
    make_model(home, files={"weights": random_bytes(100 * KiB)})
    proxy, region = await storages("proxy")
    proxy.add_fault("PUT .*/upload", redirect_to(region.endpoint), times=None)

    assert "The registry redirects to" in str(await error_of(make_client(proxy).models.push("mod:m1")))
    assert not region.requests


@asynccontextmanager
async def serve_tls(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve with the certificate of the tests; yields the URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await close_server(runner)


async def test_https_to_http_not_followed(start_proxy: StartProxy, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy("auto")

    async def redirect(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response(status=307, headers={"Location": f"{proxy.endpoint}/blobs/stolen?signature=5ecret"})

    async with serve_tls(redirect) as storage:
        record = {"version": "m1", "presigned_upload_url": f"{storage}/blobs/key?signature=5ecret"}
        proxy.add_fault("presign_upload", answer_json(200, record), times=None)
        client = RestApiClient(
            proxy.endpoint, proxy.registry.api_token, ssl=ssl.create_default_context(cafile=str(CERTIFICATE))
        )
        async with client, AsyncBentoAPI(client, model_store=ModelStore(home / "models")) as api:
            error = await error_of(api.models.push("mod:m1"))

    assert "the storage redirects from https to http, which is not followed" in str(error)
    assert "5ecret" not in str(error)
    assert not proxy.matching("stolen")


async def test_http_storage_warns_once(
    start_proxy: StartProxy, home: Path, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(home, files={"weights": WEIGHTS})
    proxy = await start_proxy()

    async def registry(request: web.Request) -> web.StreamResponse:
        """Forward to the registry, which presigns http URLs of its own host."""
        async with proxy.send_upstream(request, await request.read() or None, without=["host"]) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    config = Config(transfer={"part_size": 5 * MiB}, retry={"attempts": 1})
    async with serve_tls(registry) as endpoint:
        for directory in (home, elsewhere):
            client = RestApiClient(endpoint, proxy.registry.api_token, ssl=trusting, config=config)
            async with client, AsyncBentoAPI(client, model_store=ModelStore(directory / "models")) as api:
                await (api.models.push("mod:m1") if directory is home else api.models.pull("mod:m1"))

    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"the registry at {endpoint} presigns URLs without TLS for its storage at http://")

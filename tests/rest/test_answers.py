"""What an answer, or none, becomes: a result, None, or one of our errors; and what is asked for again."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel, SecretStr

from async_bento import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Config,
    Credentials,
    RateLimitError,
    RestApiClient,
    ServerError,
)
from async_bento.rest.request_schemas import CreateModelSchema, UpdateModelSchema
from async_bento.rest.responses import RawResponse, parse_response, status_error
from async_bento.rest.schemas import BentoFullSchema, BentoWithRepositoryListSchema, ModelManifestSchema

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.rest.conftest import RegistryMock

ENDPOINT = "https://registry.example"
TOKEN = "tk-of-registry-example"
GET = "bento_repositories/iris/bentos/v1"
REQUEST = f"GET {ENDPOINT}/api/v1/{GET}"
HTML = "<!DOCTYPE html><html><head><title>Bad Gateway</title></head><body>nginx</body></html>"
ITEM = {"version": "v1"}
CREDENTIALS = Credentials(ENDPOINT, SecretStr(TOKEN), "BENTO_CLOUD_API_KEY")


def refused(status: int, body: bytes = b"", **headers: str) -> APIError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status_error(RawResponse(status, named, body, REQUEST), CREDENTIALS)


def parse(body: bytes, schema: type[BaseModel]) -> BaseModel:
    return parse_response(RawResponse(200, {}, body, REQUEST), schema)


# What a status means


def test_401_names_where_the_token_came_from() -> None:
    error = refused(401)
    assert isinstance(error, AuthenticationError)
    assert str(error) == (
        f"{REQUEST}: 401 Unauthorized. The registry does not accept the API token from BENTO_CLOUD_API_KEY."
    )


def test_403_says_what_the_registry_says_and_where_the_token_came_from() -> None:
    error = refused(403, b'{"message": "yatai login failed"}')
    assert isinstance(error, AuthenticationError)
    assert str(error) == (
        f"{REQUEST}: 403 Forbidden: yatai login failed. "
        "The registry does not accept the API token from BENTO_CLOUD_API_KEY."
    )


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (413, APIStatusError, "client_max_body_size"),
        (429, RateLimitError, "The registry throttles requests"),
        (502, ServerError, "A proxy before the registry got no response from it: "),
        (503, ServerError, "The registry is not ready"),
        (504, ServerError, "got no response from it in time"),
    ],
)
def test_a_proxys_page_becomes_a_hint_without_markup(status: int, kind: type[APIStatusError], hint: str) -> None:
    error = refused(status, HTML.encode(), Content_Type="text/html; charset=utf-8")
    assert type(error) is kind
    assert isinstance(error, APIStatusError)
    assert (error.status, error.server_message) == (status, "")
    assert hint in str(error)
    assert "<" not in str(error)
    assert "nginx" not in str(error).replace("(nginx: client_max_body_size)", "")


@pytest.mark.parametrize("body", [HTML, f"\n  {HTML}", "<?xml version='1.0'?><Error/>", f'{{"message": "{HTML}"}}'])
def test_a_page_is_known_without_its_content_type(body: str) -> None:
    error = refused(500, body.encode())
    assert isinstance(error, ServerError)
    assert str(error) == f"{REQUEST}: 500 Internal Server Error"


def test_500_says_what_the_registry_says() -> None:
    error = refused(500, b'{"error": "create bento: duplicate key"}', Content_Type="application/json")
    assert isinstance(error, ServerError)
    assert str(error) == f"{REQUEST}: 500 Internal Server Error: create bento: duplicate key"
    assert error.server_message == "create bento: duplicate key"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"upstream is\n  gone", "upstream is gone"),
        (b'{"message": null, "error": "e"}', "e"),
        (b'{"message": {"code": 7}}', "{'code': 7}"),
        (b'{"detail": "unknown"}', ""),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"9" * 5000, "9" * 300 + "…"),
        (b"[" * 5000, "[" * 300 + "…"),
        (b"x" * 301, "x" * 300 + "…"),
    ],
)
def test_whatever_a_server_says_fits_on_one_line(body: bytes, said: str) -> None:
    error = refused(500, body)
    assert isinstance(error, ServerError)
    assert error.server_message == said


def test_an_error_page_nested_too_deep_to_read_is_still_an_error() -> None:
    assert isinstance(refused(500, b"[" * 60_000), ServerError)


@pytest.mark.parametrize("status", [418, 499, 520, 599, 999])
def test_a_status_nobody_registered_is_told_by_its_number(status: int) -> None:
    assert f"{REQUEST}: {status}" in str(refused(status))


def test_the_trace_id_goes_into_the_message() -> None:
    error = refused(500, x_trace_id="4bf92f35")
    assert isinstance(error, APIStatusError)
    assert error.trace_id == "4bf92f35"
    assert str(error).endswith(". The trace id is 4bf92f35.")


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None)]
)
def test_retry_after_is_kept(header: str, seconds: float | None) -> None:
    error = refused(429, Retry_After=header)
    assert isinstance(error, RateLimitError)
    assert error.retry_after == seconds


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_named_without_its_query(status: int) -> None:
    error = refused(status, Location="https://user:pw@elsewhere.example/api?X-Amz-Signature=5ecret#top")
    assert isinstance(error, APIStatusError)
    assert "The registry redirects to https://elsewhere.example/api, where the token is not sent" in str(error)


def test_a_relative_redirect_is_named_without_its_query_too() -> None:
    assert "redirects to /login, where" in str(refused(302, Location="/login?session=5ecret"))


def test_a_redirect_to_nowhere_is_told_too() -> None:
    assert "redirects to elsewhere, where" in str(refused(302))


def test_a_presigned_url_in_a_servers_message_loses_its_query() -> None:
    error = refused(500, b'{"error": "PUT https://s3.example/b/k?X-Amz-Signature=5ecret: timeout"}')
    assert str(error).endswith(": PUT https://s3.example/b/k?… timeout")


def test_a_token_in_a_servers_message_is_not_repeated() -> None:
    body = b'{"message": "bad token ' + b"x" * 280 + TOKEN.encode() + b'"}'
    headers = {"x-trace-id": TOKEN, "Location": f"/login/{TOKEN}"}
    for status in (302, 403, 500):
        error = status_error(RawResponse(status, headers, body, REQUEST), CREDENTIALS)
        assert isinstance(error, APIStatusError)
        assert TOKEN[:8] not in f"{error} {error.server_message} {error.trace_id}"


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("headers", [{"Content_Type": "text/html"}, {}])
def test_a_page_where_json_was_due_asks_whether_it_is_a_registry(headers: dict[str, str], status: int) -> None:
    error = refused(status, HTML.encode(), **headers)
    assert isinstance(error, APIResponseError)
    assert str(error) == (
        f"{REQUEST}: {status} with a page instead of JSON. Check that the endpoint is a BentoCloud or Yatai registry."
    )


# What may be missing

MAY_BE_MISSING = {
    "bento": lambda client: client.bentos.get("iris", "v1"),
    "bento_repository": lambda client: client.bentos.get_repository("iris"),
    "bentos_of_a_repository": lambda client: client.bentos.list("iris", count=1),
    "model": lambda client: client.models.get("iris", "v1"),
    "model_repository": lambda client: client.models.get_repository("iris"),
    "models_of_a_repository": lambda client: client.models.list("iris", count=1),
}
may_be_missing = pytest.mark.parametrize("ask", MAY_BE_MISSING.values(), ids=MAY_BE_MISSING)


def answer_anything(registry_mock: RegistryMock, method: str = "GET", **kwargs: Any) -> None:
    registry_mock.add(re.compile(".*"), method=method, **{"repeat": True, **kwargs})


@may_be_missing
@pytest.mark.parametrize(
    ("status", "payload"),
    [(404, {"error": "no such bento"}), (404, None), (400, {"error": "get bento: record not found"})],
)
async def test_what_is_not_there_is_none(
    ask: Callable[[RestApiClient], Awaitable[Any]],
    status: int,
    payload: Any,
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    answer_anything(registry_mock, status=status, payload=payload)
    assert await ask(client) is None
    assert registry_mock.asked == 1


@may_be_missing
async def test_another_400_is_an_error(
    ask: Callable[[RestApiClient], Awaitable[Any]], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    answer_anything(registry_mock, status=400, payload={"error": "start must be a number"})
    with pytest.raises(APIStatusError, match="400 Bad Request: start must be a number"):
        await ask(client)


async def test_another_status_is_an_error_whatever_it_says(client: RestApiClient, registry_mock: RegistryMock) -> None:
    answer_anything(registry_mock, status=500, payload={"error": "record not found"})
    with pytest.raises(ServerError, match="500 Internal Server Error: record not found"):
        await client.bentos.get("iris", "v1")


@may_be_missing
async def test_a_page_with_404_is_not_taken_for_a_missing_record(
    ask: Callable[[RestApiClient], Awaitable[Any]], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    answer_anything(registry_mock, status=404, body=HTML, content_type="text/html")
    with pytest.raises(APIResponseError, match="Check that the endpoint is a BentoCloud or Yatai registry"):
        await ask(client)


async def test_what_must_be_there_and_is_not_is_an_error(client: RestApiClient, registry_mock: RegistryMock) -> None:
    answer_anything(registry_mock, "PATCH", status=404, payload={"error": "record not found"})
    with pytest.raises(APIStatusError, match="404 Not Found: record not found") as caught:
        await client.bentos.start_upload("iris", "v1")
    assert caught.value.status == 404


# A 200 that is none


@pytest.mark.parametrize("body", [HTML.encode(), b"", b"{", b"\xff", b'{"version": "\\ud800"}'])
def test_an_answer_that_is_no_json_asks_whether_it_is_a_registry(body: bytes) -> None:
    with pytest.raises(
        APIResponseError, match=r"not JSON\. Check that the endpoint is a BentoCloud or Yatai registry"
    ) as caught:
        parse(body, BentoFullSchema)
    assert caught.value.field is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "version"),
        (b'{"version": 5}', "version"),
        (b'{"version": "v1", "labels": [{"value": "x"}]}', "labels.0.key"),
        (b'{"version": "v1", "manifest": {"models": "m:1"}}', "manifest.models"),
        (b'{"version": "v1", "created_at": "yesterday"}', "created_at"),
    ],
)
def test_an_answer_that_does_not_fit_names_its_first_wrong_field(body: bytes, field: str) -> None:
    with pytest.raises(APIResponseError, match=f"does not fit the protocol: {field}: ") as caught:
        parse(body, BentoFullSchema)
    assert caught.value.field == field


def test_a_field_in_a_list_is_named_with_its_place() -> None:
    with pytest.raises(APIResponseError) as caught:
        parse(b'{"items": [{"version": "v1"}, {}]}', BentoWithRepositoryListSchema)
    assert caught.value.field == "items.1.version"


@pytest.mark.parametrize("body", [b"[]", b'"v1"', b"null", b"7"])
def test_an_answer_that_is_no_object_does_not_fit_as_a_whole(body: bytes) -> None:
    with pytest.raises(APIResponseError, match="does not fit the protocol: the response: "):
        parse(body, BentoFullSchema)


async def test_a_page_with_200_is_an_error_of_the_client(client: RestApiClient, registry_mock: RegistryMock) -> None:
    answer_anything(registry_mock, status=200, body=HTML, content_type="text/html")
    with pytest.raises(APIResponseError, match="Check that the endpoint is"):
        await client.current_user()
    assert registry_mock.asked == 1


# No answer


@pytest.fixture
def once() -> Config:
    return Config(retry={"attempts": 1})


async def test_a_refused_connection_asks_whether_the_registry_runs(once: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with RestApiClient(endpoint, TOKEN, config=once) as client:
            with pytest.raises(APIConnectionError) as caught:
                await client.current_user()
    assert str(caught.value) == (
        f"cannot reach the registry at {endpoint}: Connection refused. "
        "Check that it is running and that the endpoint is right."
    )
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)


async def test_a_name_that_does_not_resolve_is_told_so(once: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with RestApiClient("https://nowhere.example", TOKEN, config=once) as client:
        with pytest.raises(
            APIConnectionError, match=r"cannot reach the registry at https://nowhere\.example: Name or service not"
        ):
            await client.current_user()


async def test_a_registry_that_is_silent_times_out(once: Config, serve: Callable[..., Awaitable[str]]) -> None:
    enough = asyncio.Event()

    async def silent(request: web.Request) -> web.Response:
        await enough.wait()
        return web.Response()

    endpoint = await serve(silent)
    async with RestApiClient(endpoint, TOKEN, 0.05, config=once) as client:
        with pytest.raises(APITimeoutError) as caught:
            await client.current_user()
    enough.set()
    assert (
        str(caught.value) == f"GET {endpoint}/api/v1/auth/current: no response within 0.05 s. "
        "Check the registry, or raise the timeout."
    )


async def test_a_connection_that_is_not_made_in_time_says_which_timeout_it_was(
    once: Config, registry_mock: RegistryMock
) -> None:
    answer_anything(registry_mock, exception=aiohttp.ConnectionTimeoutError())
    async with RestApiClient(ENDPOINT, TOKEN, config=once) as client:
        with pytest.raises(APITimeoutError, match=r"no connection within 10 s\. Check the endpoint and the network\.$"):
            await client.current_user()


async def test_a_registry_that_hangs_up_is_told_so(once: Config, serve: Callable[..., Awaitable[str]]) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    endpoint = await serve(hang_up)
    async with RestApiClient(endpoint, TOKEN, config=once) as client:
        with pytest.raises(APIConnectionError, match=f"^the connection to the registry at {endpoint} broke: "):
            await client.current_user()


async def test_an_answer_that_breaks_off_is_a_broken_connection(
    once: Config, serve: Callable[..., Awaitable[str]]
) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"name": "ada"}')
        assert request.transport is not None
        request.transport.close()
        return response

    async with RestApiClient(await serve(half), TOKEN, config=once) as client:
        with pytest.raises(APIConnectionError, match="broke: "):
            await client.current_user()


def connection_key(host: str) -> Any:
    return aiohttp.client_reqrep.ConnectionKey(host, 443, is_ssl=True, ssl=True, proxy=None, proxy_auth=None, **_MORE)


_MORE: dict[str, Any] = {
    name: None
    for name in aiohttp.client_reqrep.ConnectionKey._fields
    if name not in {"host", "port", "is_ssl", "ssl", "proxy", "proxy_auth"}
}


async def test_a_certificate_nobody_knows_says_how_to_trust_it(once: Config, registry_mock: RegistryMock) -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    answer_anything(
        registry_mock, exception=aiohttp.ClientConnectorCertificateError(connection_key("registry.example"), refused)
    )
    async with RestApiClient(ENDPOINT, TOKEN, config=once) as client:
        with pytest.raises(APIConnectionError, match=r"certificate verify failed: .*\. If .* set SSL_CERT_FILE\.$"):
            await client.current_user()


async def test_a_proxy_that_is_not_there_is_blamed_by_its_name(once: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"127.0.0.1:{taken.getsockname()[1]}"
        async with RestApiClient(ENDPOINT, TOKEN, config=once, proxy=f"http://ada:5ecret@{proxy}") as client:
            with pytest.raises(APIConnectionError) as caught:
                await client.current_user()
    assert str(caught.value) == (
        f"cannot reach the registry at {ENDPOINT} through the proxy at {proxy}: Connection refused. Check the proxy."
    )


# Another try

UNSAFE = {
    "create_bento_repository": lambda client: client.bentos.create_repository("iris"),
    "create_model_repository": lambda client: client.models.create_repository("iris"),
    "create_model": lambda client: client.models.create(
        "iris",
        CreateModelSchema(
            manifest=ModelManifestSchema(), version="v1", build_at=datetime(2024, 5, 1, tzinfo=timezone.utc)
        ),
    ),
}
SAFE = {
    "get": ("GET", lambda client: client.bentos.get("iris", "v1")),
    "list": ("GET", lambda client: client.models.list(count=1)),
    "update": (
        "PATCH",
        lambda client: client.models.update("iris", "v1", UpdateModelSchema(manifest=ModelManifestSchema())),
    ),
    "start_upload": ("PATCH", lambda client: client.models.start_upload("iris", "v1")),
    "presign_part": ("PATCH", lambda client: client.bentos.presign_part("iris", "v1", "u", 1)),
    "complete": ("PATCH", lambda client: client.bentos.complete_multipart_upload("iris", "v1", "u", [])),
}
safe = pytest.mark.parametrize(("method", "ask"), SAFE.values(), ids=SAFE)
FAULTS: dict[str, dict[str, Any]] = {
    "408": {"status": 408},
    "429": {"status": 429},
    "500": {"status": 500},
    "502": {"status": 502, "body": HTML, "content_type": "text/html"},
    "503": {"status": 503},
    "504": {"status": 504},
    "lost": {"exception": aiohttp.ServerDisconnectedError()},
    "reset": {"exception": aiohttp.ClientOSError(104, "Connection reset by peer")},
    "silent": {"exception": asyncio.TimeoutError()},
}


@safe
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_what_is_safe_to_ask_twice_is_asked_again(
    fault: dict[str, Any],
    method: str,
    ask: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    answer_anything(registry_mock, method, repeat=False, **fault)
    answer_anything(registry_mock, method, repeat=False, payload=ITEM)
    assert await ask(client) is not None
    assert registry_mock.asked == 2


@safe
async def test_after_the_last_try_the_last_fault_is_refused(
    method: str,
    ask: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    answer_anything(registry_mock, method, status=503)
    with pytest.raises(ServerError):
        await ask(client)
    assert registry_mock.asked == 3


async def test_a_lost_answer_is_asked_for_again(config: Config, serve: Callable[..., Awaitable[str]]) -> None:
    tries: list[str] = []

    async def lose_the_first(request: web.Request) -> web.Response:
        tries.append(request.method)
        if len(tries) == 1:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(ITEM)

    async with RestApiClient(await serve(lose_the_first), TOKEN, config=config) as client:
        assert (await client.bentos.start_upload("iris", "v1")).version == "v1"
    assert tries == ["PATCH", "PATCH"]


@pytest.mark.parametrize("ask", UNSAFE.values(), ids=UNSAFE)
@pytest.mark.parametrize("fault", [FAULTS["503"], FAULTS["429"], FAULTS["lost"], FAULTS["silent"]])
async def test_a_create_is_never_repeated(
    fault: dict[str, Any],
    ask: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    answer_anything(registry_mock, "POST", **fault)
    with pytest.raises(APIError):
        await ask(client)
    assert registry_mock.asked == 1


@safe
@pytest.mark.parametrize("status", [302, 400, 401, 403, 409, 413, 422])
async def test_a_no_is_a_no(
    status: int,
    method: str,
    ask: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    answer_anything(registry_mock, method, status=status)
    with pytest.raises(APIStatusError):
        await ask(client)
    assert registry_mock.asked == 1


async def test_a_404_is_not_asked_for_again(client: RestApiClient, registry_mock: RegistryMock) -> None:
    answer_anything(registry_mock, "PATCH", status=404)
    with pytest.raises(APIStatusError):
        await client.bentos.start_upload("iris", "v1")
    assert registry_mock.asked == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_goes_before_our_own_waits(
    status: int, waits: list[float], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    answer_anything(registry_mock, repeat=False, status=status, headers={"Retry-After": "0.015625"})
    answer_anything(registry_mock, payload=ITEM)
    await client.bentos.get("iris", "v1")
    assert waits == [0.015625]


async def test_a_retry_after_beyond_the_cap_ends_the_call(
    waits: list[float], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    answer_anything(registry_mock, status=429, headers={"Retry-After": "121"})
    with pytest.raises(RateLimitError) as caught:
        await client.bentos.get("iris", "v1")
    assert (registry_mock.asked, waits, caught.value.retry_after) == (1, [], 121.0)

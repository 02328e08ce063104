"""Responses and connection faults as results, None or errors; retries."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from datetime import datetime, timezone
from http import HTTPStatus
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
from async_bento._core.retry import is_transient
from async_bento.rest.request_schemas import CreateModelSchema, UpdateModelSchema
from async_bento.rest.responses import RawResponse, is_not_found, parse_response, status_error
from async_bento.rest.schemas import BentoFullSchema, BentoWithRepositoryListSchema, ModelManifestSchema
from tests.platforms import REFUSED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.rest.conftest import RegistryMock

ENDPOINT = "https://registry.example"
TOKEN = "tk-of-registry-example"
GET = "bento_repositories/iris/bentos/v1"
REQUEST = f"GET {ENDPOINT}/api/v1/{GET}"
HTML = "<!DOCTYPE html><html><head><title>Bad Gateway</title></head><body>nginx</body></html>"
ITEM = {"version": "v1"}
CHECK_TOKEN = "Check the API token from BENTO_CLOUD_API_KEY: it may be mistyped, expired or without this right."
CREDENTIALS = Credentials(ENDPOINT, SecretStr(TOKEN), "BENTO_CLOUD_API_KEY")


def error_of(status: int, body: bytes = b"", **headers: str) -> APIError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status_error(RawResponse(status, named, body, REQUEST), CREDENTIALS)


def parse(body: bytes, schema: type[BaseModel]) -> BaseModel:
    return parse_response(RawResponse(200, {}, body, REQUEST), schema)


# Statuses


def test_401_names_token_source() -> None:
    error = error_of(401)
    assert isinstance(error, AuthenticationError)
    assert str(error) == (f"{REQUEST}: 401 Unauthorized: the registry does not know this token. {CHECK_TOKEN}")


def test_403_shows_server_message() -> None:
    error = error_of(403, b'{"message": "yatai login failed"}')
    assert isinstance(error, AuthenticationError)
    assert str(error) == (f"{REQUEST}: 403 Forbidden: yatai login failed. {CHECK_TOKEN}")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("access denied: the API token is unknown. Check the token.", "access denied: the API token is unknown"),
        ("get api token: record not found", "the registry does not know this token"),
        ("", "the registry does not know this token"),
    ],
)
def test_403_has_one_reason_and_remedy(message: str, reason: str) -> None:
    error = error_of(403, json.dumps({"message": message}).encode())
    assert isinstance(error, AuthenticationError)
    assert str(error) == f"{REQUEST}: 403 Forbidden: {reason}. {CHECK_TOKEN}"
    assert error.server_message == message


def test_403_for_role_names_source() -> None:
    reason = "access denied: the token ci has the role read, and this request needs the role push"
    error = error_of(403, json.dumps({"message": f"{reason}. Use another token."}).encode())
    assert str(error) == f"{REQUEST}: 403 Forbidden: {reason}. The token comes from BENTO_CLOUD_API_KEY."


TROUBLE = [
    (403, "get api token: FATAL: terminating connection due to administrator command (SQLSTATE 57P01)"),
    (403, "get api token: FATAL: the database system is starting up (SQLSTATE 57P03)"),
    (403, "get api token: dial tcp 10.0.0.7:5432: connect: connection refused"),
    (
        403,
        "get api token: failed to connect to `host=pg user=yatai`: hostname resolving error (lookup pg: i/o timeout)",
    ),
    (403, "get api token: read tcp 10.0.0.5:41234->10.0.0.7:5432: read: connection reset by peer"),
    (403, "get api token: FATAL: sorry, too many clients already (SQLSTATE 53300)"),
    (403, "get api token: unexpected EOF"),
    (403, "get api token: driver: bad connection"),
    (400, 'failed to start multipart upload: Post "http://minio:9000/b/k?…": dial tcp 10.0.0.8:9000: connect: refused'),
    (400, "failed to presign: dial tcp: lookup minio.yatai.svc on 10.96.0.10:53: no such host"),
    (400, "failed to complete multipart upload: We encountered an internal error. Please try again."),
    (400, "bucket exists: Resource requested is unreadable, please reduce your request rate"),
    (400, "list bentos: write tcp 10.0.0.5:41234->10.0.0.7:5432: write: broken pipe"),
    (404, "get bento: FATAL: the database system is shutting down (SQLSTATE 57P03)"),
]


@pytest.mark.parametrize(("status", "message"), TROUBLE)
def test_backend_4xx_is_server_error(status: int, message: str) -> None:
    error = error_of(status, json.dumps({"message": message}).encode())
    assert type(error) is ServerError
    assert error.status == status
    assert is_transient(error)
    assert not is_not_found(error)
    assert "token from" not in str(error)
    assert str(error).endswith(" The registry cannot reach its database or its storage: try again later.")


@pytest.mark.parametrize(
    ("status", "hint"),
    [(429, " The registry throttles requests: try again later."), (500, "")],
)
def test_backend_429_or_500_keeps_its_hint(status: int, hint: str) -> None:
    message = "Resource requested is unreadable, please reduce your request rate"
    error = error_of(status, json.dumps({"message": message}).encode())
    assert type(error) is (RateLimitError if status == 429 else ServerError)
    phrase = HTTPStatus(status).phrase
    assert str(error) == f"{REQUEST}: {status} {phrase}: {message}{f'.{hint}' if hint else ''}"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "invalid name: dial a number"),
        (400, "start must be a number"),
        (403, "the token may not write to this repository"),
        (409, "duplicate key value violates unique constraint (SQLSTATE 23505)"),
    ],
)
def test_request_4xx_is_not_retried(status: int, message: str) -> None:
    error = error_of(status, json.dumps({"error": message}).encode())
    assert not isinstance(error, ServerError)
    assert not is_transient(error)
    assert "redirects" not in str(error)


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (413, APIStatusError, "client_max_body_size"),
        (429, RateLimitError, "The registry throttles requests"),
        (502, ServerError, "A proxy in front of the registry got no response: "),
        (503, ServerError, "The registry is not ready"),
        (504, ServerError, "got no response in time"),
    ],
)
def test_proxy_page_becomes_hint(status: int, kind: type[APIStatusError], hint: str) -> None:
    error = error_of(status, HTML.encode(), Content_Type="text/html; charset=utf-8")
    assert type(error) is kind
    assert isinstance(error, APIStatusError)
    assert (error.status, error.server_message) == (status, "")
    assert hint in str(error)
    assert "<" not in str(error)
    assert "nginx" not in str(error).replace("(nginx: client_max_body_size)", "")


def test_registry_413_blames_no_proxy() -> None:
    error = error_of(413, b'{"error": "the body is larger than 4194304 bytes"}', Content_Type="application/json")
    assert str(error) == f"{REQUEST}: 413 {HTTPStatus(413).phrase}: the body is larger than 4194304 bytes"


@pytest.mark.parametrize("body", [HTML, f"\n  {HTML}", "<?xml version='1.0'?><Error/>", f'{{"message": "{HTML}"}}'])
def test_untyped_page_is_recognized(body: str) -> None:
    error = error_of(500, body.encode())
    assert isinstance(error, ServerError)
    assert str(error) == f"{REQUEST}: 500 Internal Server Error"


def test_500_shows_server_message() -> None:
    error = error_of(500, b'{"error": "create bento: duplicate key"}', Content_Type="application/json")
    assert isinstance(error, ServerError)
    assert str(error) == f"{REQUEST}: 500 Internal Server Error: create bento: duplicate key"
    assert error.server_message == "create bento: duplicate key"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"upstream is\n  gone", "upstream is gone"),
        (b'{"message": null, "error": "e"}', "e"),
        (b'{"message": {"code": 7}}', "{'code': 7}"),
        (b'{"detail": "unknown"}', ""),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"9" * 5000, "9" * 300 + "…"),
        (b"[" * 5000, "[" * 300 + "…"),
        (b"x" * 300, "x" * 300),
        (b"x" * 301, "x" * 300 + "…"),
    ],
)
def test_server_message_fits_one_line(body: bytes, message: str) -> None:
    error = error_of(500, body)
    assert isinstance(error, ServerError)
    assert error.server_message == message


def test_deep_json_is_server_error() -> None:
    assert isinstance(error_of(500, b"[" * 60_000), ServerError)


@pytest.mark.parametrize("status", [418, 499, 520, 599, 999])
def test_unknown_status_is_shown(status: int) -> None:
    assert f"{REQUEST}: {status}" in str(error_of(status))


def test_trace_id_is_in_error() -> None:
    error = error_of(500, x_trace_id="4bf92f35")
    assert isinstance(error, APIStatusError)
    assert error.trace_id == "4bf92f35"
    assert str(error).endswith(". The trace id is 4bf92f35.")


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("0", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", None)]
)
def test_retry_after_becomes_seconds(header: str, seconds: float | None) -> None:
    error = error_of(429, Retry_After=header)
    assert isinstance(error, RateLimitError)
    assert error.retry_after == seconds


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_redirect_hides_secrets(status: int) -> None:
    error = error_of(status, Location="https://user:pw@elsewhere.example/api?X-Amz-Signature=5ecret#top")
    assert isinstance(error, APIStatusError)
    assert "The registry redirects to https://elsewhere.example/api, where the token is not sent" in str(error)


def test_relative_redirect_hides_query() -> None:
    assert "redirects to /login, where" in str(error_of(302, Location="/login?session=5ecret"))


def test_redirect_without_location() -> None:
    assert "redirects to elsewhere, where" in str(error_of(302))


def test_server_message_hides_query() -> None:
    error = error_of(500, b'{"error": "PUT https://s3.example/b/k?X-Amz-Signature=5ecret: timeout"}')
    assert str(error).endswith(": PUT https://s3.example/b/k?… timeout")


def test_server_message_hides_token() -> None:
    body = b'{"message": "bad token ' + b"x" * 280 + TOKEN.encode() + b'"}'
    headers = {"x-trace-id": TOKEN, "Location": f"/login/{TOKEN}"}
    for status in (302, 403, 500):
        error = status_error(RawResponse(status, headers, body, REQUEST), CREDENTIALS)
        assert isinstance(error, APIStatusError)
        assert TOKEN[:8] not in f"{error} {error.server_message} {error.trace_id}"


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("headers", [{"Content_Type": "text/html"}, {}])
def test_404_page_hints_at_endpoint(headers: dict[str, str], status: int) -> None:
    error = error_of(status, HTML.encode(), **headers)
    assert isinstance(error, APIResponseError)
    assert str(error) == (
        f"{REQUEST}: the response is not JSON, but a page with status {status}. "
        "Check that the endpoint is a BentoCloud or Yatai registry."
    )


@pytest.mark.parametrize("body", [b"", b"404 page not found", b'{"error": "Not Found"}'])
def test_unknown_path_hints_at_endpoint(body: bytes) -> None:
    error = error_of(404, body)
    assert str(error).endswith("Check that the endpoint is a BentoCloud or Yatai registry.")
    assert "Check" not in str(error_of(404, b'{"error": "no such upload"}'))


# Missing records

MAY_BE_MISSING = {
    "bento": lambda client: client.bentos.get("iris", "v1"),
    "bento_repository": lambda client: client.bentos.get_repository("iris"),
    "bentos_of_a_repository": lambda client: client.bentos.list("iris", count=1),
    "model": lambda client: client.models.get("iris", "v1"),
    "model_repository": lambda client: client.models.get_repository("iris"),
    "models_of_a_repository": lambda client: client.models.list("iris", count=1),
}
may_be_missing = pytest.mark.parametrize("call", MAY_BE_MISSING.values(), ids=MAY_BE_MISSING)


def respond_to_any(registry_mock: RegistryMock, method: str = "GET", **kwargs: Any) -> None:
    registry_mock.add(re.compile(".*"), method=method, **{"repeat": True, **kwargs})


@may_be_missing
@pytest.mark.parametrize(
    ("status", "payload"),
    [(404, {"error": "no such bento"}), (404, None), (400, {"error": "get bento: record not found"})],
)
async def test_missing_record_is_none(
    call: Callable[[RestApiClient], Awaitable[Any]],
    status: int,
    payload: Any,
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    respond_to_any(registry_mock, status=status, payload=payload)
    assert await call(client) is None
    assert registry_mock.request_count == 1


@may_be_missing
async def test_400_other_message_is_error(
    call: Callable[[RestApiClient], Awaitable[Any]], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    respond_to_any(registry_mock, status=400, payload={"error": "start must be a number"})
    with pytest.raises(APIStatusError, match="400 Bad Request: start must be a number"):
        await call(client)


async def test_500_not_found_is_error(client: RestApiClient, registry_mock: RegistryMock) -> None:
    respond_to_any(registry_mock, status=500, payload={"error": "record not found"})
    with pytest.raises(ServerError, match="500 Internal Server Error: record not found"):
        await client.bentos.get("iris", "v1")


@may_be_missing
async def test_404_page_is_no_missing_record(
    call: Callable[[RestApiClient], Awaitable[Any]], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    respond_to_any(registry_mock, status=404, body=HTML, content_type="text/html")
    with pytest.raises(APIResponseError, match="Check that the endpoint is a BentoCloud or Yatai registry"):
        await call(client)


async def test_upload_missing_record_raises(client: RestApiClient, registry_mock: RegistryMock) -> None:
    respond_to_any(registry_mock, "PATCH", status=404, payload={"error": "record not found"})
    with pytest.raises(APIStatusError, match="404 Not Found: record not found") as caught:
        await client.bentos.start_upload("iris", "v1")
    assert caught.value.status == 404


# Responses that are not valid


@pytest.mark.parametrize("body", [HTML.encode(), b"", b"{", b"\xff", b'{"version": "\\ud800"}'])
def test_non_json_hints_at_endpoint(body: bytes) -> None:
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
def test_invalid_response_names_field(body: bytes, field: str) -> None:
    with pytest.raises(APIResponseError, match=f"does not fit the protocol: {field}: ") as caught:
        parse(body, BentoFullSchema)
    assert caught.value.field == field


def test_invalid_list_names_index() -> None:
    with pytest.raises(APIResponseError) as caught:
        parse(b'{"items": [{"version": "v1"}, {}]}', BentoWithRepositoryListSchema)
    assert caught.value.field == "items.1.version"


@pytest.mark.parametrize("body", [b"[]", b'"v1"', b"null", b"7"])
def test_non_object_is_invalid(body: bytes) -> None:
    with pytest.raises(APIResponseError, match="does not fit the protocol: the response: "):
        parse(body, BentoFullSchema)


async def test_200_page_is_not_retried(client: RestApiClient, registry_mock: RegistryMock) -> None:
    respond_to_any(registry_mock, status=200, body=HTML, content_type="text/html")
    with pytest.raises(APIResponseError, match="Check that the endpoint is"):
        await client.current_user()
    assert registry_mock.request_count == 1


# Connections


@pytest.fixture
def once() -> Config:
    return Config(retry={"attempts": 1})


async def test_connection_refused_has_remedy(once: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with RestApiClient(endpoint, TOKEN, config=once) as client:
            with pytest.raises(APIConnectionError) as caught:
                await client.current_user()
    assert str(caught.value) == (
        f"cannot reach the registry at {endpoint}: {REFUSED}. "
        "Check that the registry is running and that the endpoint is right."
    )
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)


async def test_unknown_host_names_reason(once: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    async with RestApiClient("https://nowhere.example", TOKEN, config=once) as client:
        with pytest.raises(
            APIConnectionError, match=r"cannot reach the registry at https://nowhere\.example: Name or service not"
        ):
            await client.current_user()


async def test_response_timeout_names_seconds(once: Config, serve: Callable[..., Awaitable[str]]) -> None:
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


async def test_connect_timeout_names_seconds(once: Config, registry_mock: RegistryMock) -> None:
    respond_to_any(registry_mock, exception=aiohttp.ConnectionTimeoutError())
    async with RestApiClient(ENDPOINT, TOKEN, config=once) as client:
        with pytest.raises(APITimeoutError, match=r"no connection within 10 s\. Check the endpoint and the network\.$"):
            await client.current_user()


async def test_connection_closed_is_error(once: Config, serve: Callable[..., Awaitable[str]]) -> None:
    async def abort(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    endpoint = await serve(abort)
    async with RestApiClient(endpoint, TOKEN, config=once) as client:
        with pytest.raises(APIConnectionError, match=f"^the connection to the registry at {endpoint} broke: "):
            await client.current_user()


async def test_truncated_response_is_error(once: Config, serve: Callable[..., Awaitable[str]]) -> None:
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


async def test_certificate_error_has_remedy(once: Config, registry_mock: RegistryMock) -> None:
    failure = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    respond_to_any(
        registry_mock, exception=aiohttp.ClientConnectorCertificateError(connection_key("registry.example"), failure)
    )
    async with RestApiClient(ENDPOINT, TOKEN, config=once) as client:
        with pytest.raises(
            APIConnectionError, match=r"certificate verify failed: .*\. If .* set SSL_CERT_FILE to .*\.$"
        ):
            await client.current_user()


async def test_proxy_error_hides_password(once: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"127.0.0.1:{taken.getsockname()[1]}"
        async with RestApiClient(ENDPOINT, TOKEN, config=once, proxy=f"http://ada:5ecret@{proxy}") as client:
            with pytest.raises(APIConnectionError) as caught:
                await client.current_user()
    assert str(caught.value) == (
        f"cannot reach the registry at {ENDPOINT} through the proxy at {proxy}: {REFUSED}. Check the proxy."
    )


# Retries

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
safe = pytest.mark.parametrize(("method", "call"), SAFE.values(), ids=SAFE)
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
async def test_safe_request_is_retried(
    fault: dict[str, Any],
    method: str,
    call: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    respond_to_any(registry_mock, method, repeat=False, **fault)
    respond_to_any(registry_mock, method, repeat=False, payload=ITEM)
    assert await call(client) is not None
    assert registry_mock.request_count == 2


async def test_complete_retry_has_rest_of_timeout(registry_mock: RegistryMock) -> None:
    config = Config(retry={"attempts": 3, "wait_initial": 0, "wait_max": 0}, timeouts={"api": 7, "complete": 70})
    respond_to_any(registry_mock, "PATCH", repeat=False, status=503)
    respond_to_any(registry_mock, "PATCH", payload=ITEM)
    async with RestApiClient(ENDPOINT, TOKEN, config=config) as client:
        await client.bentos.complete_multipart_upload("iris", "v1", "u", [])
    (calls,) = registry_mock.requests.values()
    first, second = (call.kwargs["timeout"].total for call in calls)
    assert first == 70
    assert 7 < second < 70


async def test_retry_has_whole_timeout(client: RestApiClient, registry_mock: RegistryMock) -> None:
    respond_to_any(registry_mock, repeat=False, status=503)
    respond_to_any(registry_mock, payload=ITEM)
    await client.bentos.get("iris", "v1")
    (calls,) = registry_mock.requests.values()
    assert [call.kwargs["timeout"].total for call in calls] == [60, 60]


@safe
async def test_exhausted_retries_raise(
    method: str,
    call: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    respond_to_any(registry_mock, method, status=503)
    with pytest.raises(ServerError):
        await call(client)
    assert registry_mock.request_count == 3


async def test_retry_after_lost_response(config: Config, serve: Callable[..., Awaitable[str]]) -> None:
    methods: list[str] = []

    async def abort_first(request: web.Request) -> web.Response:
        methods.append(request.method)
        if len(methods) == 1:
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(ITEM)

    async with RestApiClient(await serve(abort_first), TOKEN, config=config) as client:
        assert (await client.bentos.start_upload("iris", "v1")).version == "v1"
    assert methods == ["PATCH", "PATCH"]


@pytest.mark.parametrize("call", UNSAFE.values(), ids=UNSAFE)
@pytest.mark.parametrize("fault", [FAULTS["503"], FAULTS["429"], FAULTS["lost"], FAULTS["silent"]])
async def test_create_is_never_retried(
    fault: dict[str, Any],
    call: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    respond_to_any(registry_mock, "POST", **fault)
    with pytest.raises(APIError):
        await call(client)
    assert registry_mock.request_count == 1


@safe
@pytest.mark.parametrize("status", [302, 400, 401, 403, 409, 413, 422])
async def test_permanent_status_not_retried(
    status: int,
    method: str,
    call: Callable[[RestApiClient], Awaitable[Any]],
    client: RestApiClient,
    registry_mock: RegistryMock,
) -> None:
    respond_to_any(registry_mock, method, status=status)
    with pytest.raises(APIStatusError):
        await call(client)
    assert registry_mock.request_count == 1


async def test_retry_not_on_404(client: RestApiClient, registry_mock: RegistryMock) -> None:
    respond_to_any(registry_mock, "PATCH", status=404)
    with pytest.raises(APIStatusError):
        await client.bentos.start_upload("iris", "v1")
    assert registry_mock.request_count == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_overrides_backoff(
    status: int, waits: list[float], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    respond_to_any(registry_mock, repeat=False, status=status, headers={"Retry-After": "0.015625"})
    respond_to_any(registry_mock, payload=ITEM)
    await client.bentos.get("iris", "v1")
    assert waits == [0.015625]


async def test_retry_after_beyond_cap_raises(
    waits: list[float], client: RestApiClient, registry_mock: RegistryMock
) -> None:
    respond_to_any(registry_mock, status=429, headers={"Retry-After": "121"})
    with pytest.raises(RateLimitError) as caught:
        await client.bentos.get("iris", "v1")
    assert (registry_mock.request_count, waits, caught.value.retry_after) == (1, [], 121.0)

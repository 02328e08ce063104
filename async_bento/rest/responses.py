"""Parse responses of the registry: into a schema, or into an error."""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from pydantic import BaseModel, RootModel, ValidationError

from async_bento._core.retry import parse_date, seconds_to_wait
from async_bento._core.urls import without_queries
from async_bento._core.validation import JsonObject, first_error
from async_bento.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    RateLimitError,
    ServerError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_bento.rest.credentials import Credentials

ResponseT = TypeVar("ResponseT", bound=BaseModel)

_LONGEST_MESSAGE = 300

_TROUBLE = re.compile(
    r"\(SQLSTATE (57P0|08|53)\w+\)"  # PostgreSQL shuts down or starts, lost the connection, or lacks resources
    r"|\b(dial|read|write) (tcp|udp|unix)\b|\bEOF$|TLS handshake timeout|context deadline exceeded"  # Go's network
    r"|i/o timeout|no such host|driver: bad connection|\bconn closed"
    r"|failed to connect to `|database system is (starting|shutting|in recovery)"
    r"|please (try again|reduce your request rate)",  # S3 and MinIO
    re.IGNORECASE,
)
"""Messages by which Yatai reports that its database or storage fails. It sends them with 403 where it looks up the
token, and with 400 elsewhere, so the status does not distinguish them from a wrong token or a wrong request."""

_NO_REGISTRY = "Check that the endpoint is a BentoCloud or Yatai registry."

_NO_ROUTE = frozenset({"", "not found", "404 page not found", "404: not found"})
"""Messages of servers, in lower case, that have no such path; a registry names what it did not find."""

DISK_FULL_HINT = "Free space for the registry, then try again."

_HINTS = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        "A proxy in front of the registry limits the size of requests: raise the limit (nginx: client_max_body_size), "
        "or let the registry presign uploads."
    ),
    HTTPStatus.TOO_MANY_REQUESTS: "The registry throttles requests: try again later.",
    HTTPStatus.BAD_GATEWAY: "A proxy in front of the registry got no response: try again later.",
    HTTPStatus.SERVICE_UNAVAILABLE: "The registry is not ready: try again later.",
    HTTPStatus.GATEWAY_TIMEOUT: "A proxy in front of the registry got no response in time: try again later.",
    HTTPStatus.INSUFFICIENT_STORAGE: DISK_FULL_HINT,
}


class RawResponse(NamedTuple):
    """A response whose body was read, not yet parsed."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    request: str  # the method and the URL without its query, for messages


class RawRecord(RootModel[JsonObject]):
    """A record with all fields that the registry sent, also those that no schema has."""


def parse_record(record: JsonObject, schema: type[ResponseT], request: str) -> ResponseT:
    """Parse a record that was read as a `RawRecord`; raise APIResponseError if it does not match the schema."""
    try:
        return schema.model_validate(record)
    except ValidationError as error:
        raise _misfit(error, request) from None


def parse_response(response: RawResponse, schema: type[ResponseT]) -> ResponseT:
    """Parse the body of a 200; raise APIResponseError if it is not JSON, or does not match the schema."""
    try:
        return schema.model_validate_json(response.body)
    except ValidationError as error:
        # No cause: pydantic's text quotes the body, which may hold a presigned URL.
        first = first_error(error)
        if first.type == "json_invalid":
            raise APIResponseError(f"{response.request}: the response is not JSON. {_NO_REGISTRY}") from None
        raise _misfit(error, response.request) from None


def _misfit(error: ValidationError, request: str) -> APIResponseError:
    first = first_error(error)
    field = first.field or "the response"
    return APIResponseError(f"{request}: the response does not fit the protocol: {field}: {first.message}", field=field)


def read_date(headers: Mapping[str, str]) -> float | None:
    """The `Date` header (RFC 9110, 6.6.1) in seconds since 1970; None if it is missing or invalid."""
    return parse_date(headers.get("Date", ""))


_LACKS_RIGHT = "access denied: the token "
"""The begin of our registry's message for a valid token; the rest names its role, or the repositories it is for."""


def status_error(response: RawResponse, credentials: Credentials) -> APIError:
    """The error for a status other than 200."""
    status, headers = response.status, response.headers
    token = credentials.api_token.get_secret_value()

    def one_line(text: str) -> str:
        return " ".join(without_queries(text.replace(token, "…") if token else text).split())  # servers may echo it

    markup = is_markup(headers, response.body)
    # A registry answers in JSON: this is some other web server.
    if markup and status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
        return APIResponseError(
            f"{response.request}: the response is not JSON, but a page with status {status}. {_NO_REGISTRY}"
        )
    message = "" if markup else one_line(_server_message(response.body))
    message = message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"
    trace_id = one_line(headers.get("x-trace-id", ""))[:_LONGEST_MESSAGE] or None
    error_type: type[APIStatusError] = APIStatusError
    # Proxies send statuses that HTTPStatus lacks, as nginx's 499.
    hint = _HINTS.get(HTTPStatus(status), "") if status in HTTPStatus.__members__.values() else ""
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and message:
        hint = ""  # a proxy sends a page; the registry gives its own limit
    # Before 401 and 403: Yatai sends 403 while its database is away.
    if _is_trouble(status, message):
        error_type = ServerError
        hint = "The registry cannot reach its database or its storage: try again later."
    elif status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        error_type = AuthenticationError
        hint = f"Check the API token from {credentials.source}: it may be mistyped, expired or without this right."
        if message.startswith(_LACKS_RIGHT):
            hint = f"The token comes from {credentials.source}."
    elif status == HTTPStatus.NOT_FOUND and message.lower() in _NO_ROUTE:
        hint = _NO_REGISTRY
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        error_type = RateLimitError
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        error_type = ServerError
    elif HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        location = _without_secrets(one_line(headers.get("Location", "elsewhere")))[:_LONGEST_MESSAGE]
        hint = (
            f"The registry redirects to {location}, where the token is not sent: "
            "if that is the registry, use it as the endpoint."
        )
    reason = _refusal(message) if error_type is AuthenticationError else message
    text = ": ".join(filter(None, (response.request, _status_line(status), reason)))
    sentences = [sentence for sentence in (hint, f"The trace id is {trace_id}." if trace_id else "") if sentence]
    return error_type(
        " ".join([f"{text.rstrip('.')}.", *sentences]) if sentences else text,
        status=status,
        server_message=message,
        trace_id=trace_id,
        retry_after=seconds_to_wait(headers.get("Retry-After")),
    )


def _is_trouble(status: int, message: str) -> bool:
    """Whether a 4xx reports a fault of the server: its database or its storage is away."""
    return (
        HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        and status != HTTPStatus.TOO_MANY_REQUESTS
        and _TROUBLE.search(message) is not None
    )


def _refusal(message: str) -> str:
    """Why the registry refuses a token: the first sentence of its message, or ours where that explains nothing."""
    if not message or "record not found" in message:  # Yatai: of no token is there a record
        return "the registry does not know this token"
    return message.partition(". ")[0]


def is_markup(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a response is HTML or XML, by its Content-Type or its first byte."""
    return "html" in headers.get("Content-Type", "").lower() or body.lstrip()[:1] == b"<"


def is_not_found(error: APIStatusError) -> bool:
    """Whether the registry has no such record: 404, or 400 from older releases of Yatai."""
    if isinstance(error, ServerError):
        return False
    return error.status == HTTPStatus.NOT_FOUND or (
        error.status == HTTPStatus.BAD_REQUEST and "record not found" in error.server_message
    )


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _server_message(body: bytes) -> str:
    """The message of an error response: Yatai's login sends `{"message": …}`, its other routes `{"error": …}`."""
    text = body[: 64 * 1024].decode(errors="replace").strip()
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError):
        content = text
    if isinstance(content, dict):
        fields = cast("dict[str, object]", content)
        content = fields.get("message") or fields.get("error") or ""
    message = str(content).strip()
    return "" if message.startswith("<") else message  # a proxy's page inside JSON


def _without_secrets(location: str) -> str:
    """A `Location` without user, query and fragment; it may be relative, which `without_queries` does not handle."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", location)[0])

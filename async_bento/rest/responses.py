"""What an answer of the registry means: a schema, or one of our errors."""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar, cast

from pydantic import BaseModel, ValidationError

from async_bento._core.retry import seconds_to_wait
from async_bento._core.urls import without_queries
from async_bento._core.validation import first_error
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

AnswerT = TypeVar("AnswerT", bound=BaseModel)

_LONGEST_MESSAGE = 300

_HINTS = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        "a proxy before the registry limits the size of a request (nginx: client_max_body_size); "
        "raise it, or let the registry presign uploads"
    ),
    HTTPStatus.TOO_MANY_REQUESTS: "the registry asks for fewer requests",
    HTTPStatus.BAD_GATEWAY: "a proxy before the registry did not get an answer from it",
    HTTPStatus.SERVICE_UNAVAILABLE: "the registry is not ready",
    HTTPStatus.GATEWAY_TIMEOUT: "a proxy before the registry did not get an answer from it in time",
}


def read_answer(body: bytes, schema: type[AnswerT], request: str) -> AnswerT:
    """Read the body of a 200.

    Args:
        body: The body.
        schema: What it should be.
        request: What was asked, for the message.

    Returns:
        The answer.

    Raises:
        APIResponseError: It is no JSON, or a field does not fit.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        # No cause: what pydantic says quotes the answer, and that may hold a presigned URL.
        first = first_error(error)
        if first.type == "json_invalid":
            raise APIResponseError(
                f"{request}: the answer is not JSON; is this endpoint a BentoCloud or Yatai registry?"
            ) from None
        field = first.field or "the answer"
        raise APIResponseError(
            f"{request}: the answer does not fit the protocol: {field}: {first.message}", field=field
        ) from None


def clock_of(headers: Mapping[str, str]) -> float | None:
    """Read a `Date` header (RFC 9110, 6.6.1).

    Args:
        headers: The answer's headers.

    Returns:
        Seconds since 1970; None where there is no such header, or nothing that can be read.
    """
    try:
        return parsedate_to_datetime(headers.get("Date", "")).timestamp()
    except ValueError:
        return None


def status_error(
    status: int, headers: Mapping[str, str], body: bytes, request: str, token_source: str, token: str = ""
) -> APIError:
    """Tell what a status other than 200 means.

    Args:
        status: The HTTP status.
        headers: The answer's headers.
        body: Its body.
        request: What was asked, for the message.
        token_source: Where the token came from, for 401 and 403.
        token: The token, which a server may repeat and the error must not.

    Returns:
        The error to raise.
    """

    def readable(text: str) -> str:
        return " ".join(without_queries(text.replace(token, "…") if token else text).split())

    markup = is_markup(headers, body)
    if markup and status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
        return APIResponseError(
            f"{request}: {status}, with a page instead of JSON; is this endpoint a BentoCloud or Yatai registry?"
        )
    said = "" if markup else readable(_server_message(body))
    said = said if len(said) <= _LONGEST_MESSAGE else f"{said[:_LONGEST_MESSAGE]}…"
    trace_id = readable(headers.get("x-trace-id", ""))[:_LONGEST_MESSAGE] or None
    kind: type[APIStatusError] = APIStatusError
    hint = _HINTS.get(HTTPStatus(status), "") if status in HTTPStatus.__members__.values() else ""
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        kind = AuthenticationError
        hint = f"the registry does not accept the API token from {token_source}"
    elif status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = RateLimitError
    elif status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        kind = ServerError
    elif HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        target = _without_secrets(readable(headers.get("Location", "elsewhere")))[:_LONGEST_MESSAGE]
        hint = (
            f"it redirects to {target}, and the token is not sent there; if that is the registry, make it the endpoint"
        )
    details = [part for part in (said, hint, f"trace id {trace_id}" if trace_id else "") if part]
    return kind(
        "; ".join([f"{request}: {_status_line(status)}", *details]),
        status=status,
        server_message=said,
        trace_id=trace_id,
        retry_after=seconds_to_wait(headers.get("Retry-After")),
    )


def is_markup(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether an answer is a page, or XML, where neither is spoken.

    Args:
        headers: The answer's headers.
        body: Its body, or how it begins.

    Returns:
        True for what says so of itself, and for what looks so.
    """
    return "html" in headers.get("Content-Type", "").lower() or body.lstrip()[:1] == b"<"


def is_not_found(error: APIStatusError) -> bool:
    """Whether a registry says that there is no such record: 404, or 400 as older ones did.

    Args:
        error: What was raised.

    Returns:
        True for "no such record".
    """
    return error.status == HTTPStatus.NOT_FOUND or (
        error.status == HTTPStatus.BAD_REQUEST and "record not found" in error.server_message
    )


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _server_message(body: bytes) -> str:
    """Yatai says `{"message": …}` of the login and `{"error": …}` of the rest; others may say it plainly."""
    text = body[: 64 * 1024].decode(errors="replace").strip()
    try:
        said: object = json.loads(text)
    except (ValueError, RecursionError):
        said = text
    if isinstance(said, dict):
        fields = cast("dict[str, object]", said)
        said = fields.get("message") or fields.get("error") or ""
    message = str(said).strip()
    return "" if message.startswith("<") else message  # a page that a proxy made, handed on in JSON


def _without_secrets(location: str) -> str:
    """A `Location` may be relative, so that `without_queries` does not know it for a URL."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", location)[0])

"""Interpret the response to an upload or a download: the size, the ETag, or an error."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp

from async_bento._core.retry import seconds_to_wait
from async_bento._core.urls import without_queries
from async_bento.errors import APITimeoutError, BentoError, IntegrityError, PartError, StalledError, TransferError
from async_bento.rest.responses import DISK_FULL_HINT, RawResponse, status_error
from async_bento.rest.transport import connection_error, explain_failure, no_connection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_bento.errors import APIConnectionError
    from async_bento.rest.transport import Target

# Not by an XML parser: the text is untrusted, and may be cut at `MAX_ERROR_BODY`.
_ERROR_CODE = re.compile(r"<Code>([^<]{1,100})</Code>(?:.*?<Message>([^<]{1,200})</Message>)?", re.DOTALL)
_LOST_BODY: dict[str, type[TransferError]] = {"RequestTimeout": StalledError, "IncompleteBody": IntegrityError}
"""S3's codes for a body that did not arrive, which is worth a retry; S3 sends them with 400."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)$")  # RFC 9110, 14.4; a size of `*` is of no use
_MD5_ETAG = re.compile(r'^(?:W/)?"?([0-9a-fA-F]{32})"?$')  # W/: proxies that compress mark ETags as weak


def total_size(headers: Mapping[str, str], start: int, stop: int, request: str) -> int:
    """The object's size by Content-Range, which must state the range that was asked for."""
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if match is None:
        raise PartError(
            f"{request}: the storage sent a 206 response without Content-Range", status=HTTPStatus.PARTIAL_CONTENT
        )
    first, last, total = (int(group) for group in match.groups())
    if first != start or last != min(stop, total) - 1:
        raise PartError(
            f"{request}: the storage sent bytes {first}-{last} of {total} instead of {start}-{stop - 1}",
            status=HTTPStatus.PARTIAL_CONTENT,
        )
    return total


def is_partial(status: int, headers: Mapping[str, str], start: int, stop: int) -> bool:
    """Whether a response has the range that was asked for; rclone's `serve s3` sends one with 200 instead of 206."""
    if status == HTTPStatus.PARTIAL_CONTENT:
        return True
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    if match is None:
        return False
    first, last, total = (int(group) for group in match.groups())
    return (first, last) == (start, min(stop, total) - 1)


def verified_etag(headers: Mapping[str, str], md5: str | None, request: str) -> str | None:
    """Return the ETag; raise IntegrityError if it is an MD5, and not that of the bytes that were sent."""
    etag = headers.get("ETag")
    match = None if _has_opaque_etag(headers) else _MD5_ETAG.match(etag or "")
    if md5 and match and match[1].lower() != md5:
        raise IntegrityError(f"{request}: the storage received different bytes (MD5 {match[1]} instead of {md5})")
    return etag


def _has_opaque_etag(headers: Mapping[str, str]) -> bool:
    """Whether S3 encrypted the object with a KMS or customer key: its ETag looks like an MD5 and is not one."""
    return (
        headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )


class RedirectError(PartError):
    """The storage has redirected a request, which has moved no byte yet."""

    def __init__(self, target: Target, status: int) -> None:
        super().__init__(f"redirected to {target}", status=status)
        self.target = target


def refused(
    target: Target, request: str, response: aiohttp.ClientResponse, body: bytes, part_number: int | None
) -> BentoError:
    """Make the error for a response with another status than 2xx; a RedirectError where the storage redirects."""
    if target.credentials is not None:
        return status_error(RawResponse(response.status, response.headers, body, request), target.credentials)
    if redirected := target.redirected(response.status, response.headers.get("Location")):
        return RedirectError(redirected, response.status)
    code = _ERROR_CODE.search(body.decode(errors="replace"))
    reason = ": ".join(filter(None, code.groups())) if code else response.reason or ""
    message = f"{request}: the storage refused the request: {response.status} {without_queries(reason)}".rstrip()
    if code and (error_type := _LOST_BODY.get(code[1])):
        return error_type(message)
    if response.status == HTTPStatus.INSUFFICIENT_STORAGE:
        message = f"{message.rstrip('.')}. {DISK_FULL_HINT}"
    # rclone's `serve s3` sends 400 for an expired URL, where S3 sends 403 with the same code.
    status = HTTPStatus.FORBIDDEN if code and code[1] == "AccessDenied" else response.status
    return PartError(
        message,
        status=status,
        part_number=part_number,
        retry_after=seconds_to_wait(response.headers.get("Retry-After")),
    )


def broken(
    target: Target, request: str, error: Exception, timeout: aiohttp.ClientTimeout
) -> APIConnectionError | PartError:
    """Make the error for a request without a response, of the registry or of the storage."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        message = no_connection(request, target, timeout)
        return PartError(message) if target.credentials is None else APITimeoutError(message)
    if target.credentials is not None:
        return connection_error(target, error)
    return PartError(f"{request}: {explain_failure(target, error)}")

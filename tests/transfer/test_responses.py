"""What the responses of a storage state: sizes, ranges, ETags and errors."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from async_bento import IntegrityError, PartError
from async_bento.errors import APITimeoutError
from async_bento.transfer.responses import broken, is_partial, refused, total_size, verified_etag

MD5 = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("content_range", "start", "stop"),
    [("bytes 0-9/100", 0, 10), ("bytes 90-99/100", 90, 100), ("bytes 90-99/100", 90, 120), ("bytes 5-5/100", 5, 6)],
)
def test_response_range_states_size(content_range: str, start: int, stop: int) -> None:
    headers = {"Content-Range": content_range}
    assert total_size(headers, start, stop, "GET key") == 100
    assert is_partial(200, headers, start, stop)
    assert is_partial(206, {}, start, stop)
    assert not is_partial(200, {}, start, stop)


@pytest.mark.parametrize("content_range", ["bytes 0-8/100", "bytes 0-10/100", "bytes 1-9/100", "bytes 2-8/100"])
def test_response_other_range_is_error(content_range: str) -> None:
    headers = {"Content-Range": content_range}
    with pytest.raises(PartError, match=f"^GET key: the storage sent {content_range[:-4]} of 100 instead of 0-9$"):
        total_size(headers, 0, 10, "GET key")
    assert not is_partial(200, headers, 0, 10)


@pytest.mark.parametrize("etag", [f'"{MD5}"', f'"{MD5.upper()}"', f'W/"{MD5}"', MD5, '"0x8DB1"', None])
def test_response_etag_of_bytes_accepted(etag: str | None) -> None:
    headers = {} if etag is None else {"ETag": etag}
    assert verified_etag(headers, MD5, "PUT key") == etag


def test_response_other_md5_is_error() -> None:
    other = "F" * 32
    message = rf"^PUT key: the storage received different bytes \(MD5 {other} instead of {MD5}\)$"
    with pytest.raises(IntegrityError, match=message):
        verified_etag({"ETag": f'"{other}"'}, MD5, "PUT key")
    assert verified_etag({"ETag": f'"{other}"'}, None, "PUT key") == f'"{other}"'


@pytest.mark.parametrize(
    ("body", "reason", "message", "status"),
    [
        (b"", "Bad Request", "400 Bad Request", 400),
        (b"", None, "400", 400),
        (b"<Code>NoSuchBucket</Code>", "Bad Request", "400 NoSuchBucket", 400),
        (b"<Code>AccessDenied</Code><Message>expired</Message>", None, "400 AccessDenied: expired", 403),
    ],
)
def test_response_refusal_has_reason(body: bytes, reason: str | None, message: str, status: int) -> None:
    target: Any = SimpleNamespace(credentials=None, redirected=lambda *_: None)
    response: Any = SimpleNamespace(status=400, reason=reason, headers={"Retry-After": "7"})

    error = refused(target, "PUT key", response, body, 3)

    assert isinstance(error, PartError)
    assert str(error) == f"PUT key: the storage refused the request: {message}"
    assert (error.status, error.part_number, error.retry_after) == (status, 3, 7)


@pytest.mark.parametrize(("credentials", "error_type"), [(None, PartError), ("token", APITimeoutError)])
def test_response_connect_timeout_names_server(credentials: str | None, error_type: type[Exception]) -> None:
    """A timeout of the registry is none of a part."""
    target: Any = SimpleNamespace(credentials=credentials, proxy=None)
    error = broken(target, "PUT key", aiohttp.ConnectionTimeoutError(), aiohttp.ClientTimeout(connect=5))
    assert type(error) is error_type
    assert str(error).startswith("PUT key: no connection within 5 s")

"""The URL that presigned URLs begin with, behind a proxy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.errors import ConfigError
from async_bento.registry import LocalRegistry
from async_bento.registry.base_url import TrustedProxies
from tests.registry.conftest import disk_only

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Caller, Serve

pytestmark = disk_only

TRUSTED = {"forwarded_allow_ips": ["127.0.0.1"]}
HTTPS = {"X-Forwarded-Proto": "https"}


async def presigned(caller: Caller, headers: dict[str, str]) -> str:
    """Return the presigned URL of a request with these headers, without the path of the item."""
    await caller.create()
    item = await caller.ok("PATCH", f"{caller.items()}/v1/presign_upload_url", headers=headers)
    return str(item["presigned_upload_url"]).partition("/blobs/")[0]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (HTTPS | {"Host": "bentos.example:8443"}, "https://bentos.example:8443"),
        (HTTPS | {"X-Forwarded-Host": "bentos.example, inner"}, "https://bentos.example"),
        (HTTPS | {"Host": "a.example", "X-Forwarded-Prefix": "/reg/"}, "https://a.example/reg"),
        ({"Forwarded": 'for=10.0.0.9;proto=https;host="a.example:444", for=10.0.0.1'}, "https://a.example:444"),
        ({"Host": "a.example"}, "http://a.example"),
    ],
)
async def test_trusted_proxy_sets_base_url(serve: Serve, headers: dict[str, str], expected: str):
    assert await presigned(await serve(**TRUSTED), headers) == expected


@pytest.mark.parametrize("options", [{}, {"forwarded_allow_ips": ["10.0.0.0/8"]}], ids=["default", "other address"])
async def test_untrusted_proxy_is_ignored(serve: Serve, options: dict[str, Any]):
    headers = HTTPS | {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "Host": "a.example"}
    assert await presigned(await serve(**options), headers) == "http://a.example"


async def test_public_url_has_precedence(serve: Serve):
    caller = await serve(public_url="https://bentos.example/reg/", **TRUSTED)
    assert caller.registry.public_url == "https://bentos.example/reg"
    assert await presigned(caller, HTTPS | {"X-Forwarded-Host": "other.example"}) == "https://bentos.example/reg"


@pytest.mark.parametrize("host", ["a.example/x?y=", "user@a.example", "a b"])
async def test_invalid_host_returns_400(serve: Serve, host: str):
    caller = await serve(**TRUSTED)
    await caller.create()
    path = f"{caller.items()}/v1/presign_upload_url"
    assert (await caller.api("PATCH", path, headers={"X-Forwarded-Host": host})).status == 400


@pytest.mark.parametrize(
    ("options", "headers", "warnings"),
    [
        ({}, HTTPS, 1),
        ({}, {"Forwarded": "proto=https"}, 1),
        ({}, {}, 0),
        (TRUSTED, HTTPS, 0),
        ({"public_url": "https://bentos.example"}, HTTPS, 0),
    ],
)
async def test_tls_proxy_without_url_warns(
    serve: Serve, caplog: pytest.LogCaptureFixture, options: dict[str, Any], headers: dict[str, str], warnings: int
):
    caller = await serve(**options)
    await presigned(caller, headers)
    await caller.ok("PATCH", f"{caller.items()}/v1/presign_upload_url", headers=headers)
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(found) == warnings
    assert all("--public-url" in message for message in found)


@pytest.mark.parametrize(
    ("allowed", "address", "is_trusted"),
    [
        ([], "127.0.0.1", False),
        (["*"], "192.0.2.1", True),
        (["10.0.0.0/8", "::1"], "10.1.2.3", True),
        (["10.0.0.0/8", "::1"], "::1", True),
        (["10.9.9.9/8"], "10.1.2.3", True),
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["10.0.0.0/8"], "11.0.0.1", False),
        (["10.0.0.0/8"], None, False),
        ("127.0.0.1, ::1", "::1", True),
    ],
)
def test_proxy_address_is_trusted(allowed: list[str], address: str | None, is_trusted: bool):
    assert TrustedProxies(allowed).trusts(address) is is_trusted


def test_invalid_address_raises(tmp_path: Path):
    with pytest.raises(ConfigError, match="invalid forwarded_allow_ips: 'localhost'"):
        LocalRegistry(tmp_path, forwarded_allow_ips=["localhost"])

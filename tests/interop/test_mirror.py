"""The real bentoml pulls through a mirror."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from async_bento.registry import LocalRegistry
from tests.fault_proxy import DOWNLOAD, GET, FaultProxy
from tests.interop.homes import OTHERS, Home
from tests.interop.test_transfers import TAG, check_all

if TYPE_CHECKING:
    from aiohttp import web

    from tests.fault_proxy import Exchange

pytestmark = pytest.mark.interop

OTHER = [sys.executable, *OTHERS][-1]
"""A Python with the newest release of BentoML, if the session has one. Old releases pull links as files."""

LONGER_THAN_A_PRESIGNED_URL = 6
"""Seconds. BentoML's read timeout for a presigned URL is 5 seconds."""


async def test_bentoml_pulls_from_mirror(with_bento, there, registry, tmp_path):
    async with with_bento.api(registry) as api:
        await api.push(TAG)

    async def wait(exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(LONGER_THAN_A_PRESIGNED_URL)
        return await exchange.forward()

    second, third = Home(tmp_path / "second"), Home(tmp_path / "third")
    async with FaultProxy(registry, streams_downloads=False) as proxy:
        proxy.add_fault(f"{GET}|{DOWNLOAD}", wait, times=3)
        mirror = LocalRegistry(tmp_path / "mirror", upstream=proxy.endpoint, upstream_token=registry.api_token)
        async with mirror:
            await asyncio.gather(
                there.bentoml("pull", TAG, "--with-models", registry=mirror),
                second.python("-m", "bentoml", "pull", TAG, "--with-models", registry=mirror, interpreter=OTHER),
            )
            ranges = [(request.path, request.headers["Range"]) for request in proxy.matching(f"{GET}|{DOWNLOAD}")]
            assert len({*ranges}) == len(ranges)
            assert len({path for path, _ in ranges}) == 3

            await registry.close()
            await third.bentoml("pull", TAG, "--with-models", registry=mirror)
            assert "my_service" in await third.bentoml("list", registry=mirror)
    for home in (there, second, third):
        check_all(home, with_bento, modes=False)


async def test_bentoml_push_names_upstream(with_bento, registry, tmp_path):
    mirror = LocalRegistry(tmp_path / "mirror", upstream=registry.endpoint, upstream_token=registry.api_token)
    async with mirror:
        (result,) = await with_bento.try_calls(["push", {"tag": TAG}], registry=mirror)
    assert f"it only passes on pulls. Push to {registry.endpoint}." in result["error"]

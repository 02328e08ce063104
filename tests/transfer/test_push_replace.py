"""Forced pushes over a complete item: the old item after an interruption."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from async_bento import BentoError
from tests.builders import MiB, contents, make_bento, make_model, random_bytes
from tests.fault_proxy import (
    FINISH,
    PUT,
    UPLOAD,
    FaultProxy,
    Hold,
    answer_json,
    disconnect_while_reading,
    lose_answer,
    refuse,
    stop_reading,
)
from tests.fixtures import FEW_RANGES

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy

WAYS = ["presigned_url", "auto", "proxy"]
BODY = f"{PUT}|{UPLOAD}"
OLD, NEW = random_bytes(6 * MiB, 1), random_bytes(6 * MiB, 2)


async def whole(start_proxy: StartProxy, make_client: MakeClient, home: Path, way: str) -> FaultProxy:
    """A registry with a complete model, whose files in the store differ now."""
    make_model(home, files={"weights": OLD}, labels={"stage": "old"})
    proxy = await start_proxy(way)
    await make_client(proxy).models.push("mod:m1")
    make_model(home, files={"weights": NEW}, labels={"stage": "new"})
    proxy.requests.clear()
    return proxy


async def record(make_client: MakeClient, proxy: FaultProxy) -> tuple[str, str]:
    """The status and the label of the registry's record."""
    found = await make_client(proxy).models.get("mod:m1")
    return found.upload_status, found.labels[0].value


async def pulled(make_client: MakeClient, proxy: FaultProxy, elsewhere: Path) -> object:
    await make_client(proxy, elsewhere, transfer=FEW_RANGES).models.pull("mod:m1")
    return contents(elsewhere / "models/mod/m1")["weights"]


async def test_record_updated_after_bytes(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await whole(start_proxy, make_client, home, "presigned_url")

    await make_client(proxy).models.push("mod:m1", force=True, threads=1)

    steps = proxy.steps("start_upload|complete|PATCH mod/m1$|finish")
    assert steps == [
        "PATCH mod/m1/start_upload",
        "PATCH mod/m1/complete_multipart_upload",
        "PATCH mod/m1",
        "PATCH mod/m1/finish_upload",
    ]
    assert await record(make_client, proxy) == ("success", "new")
    assert await pulled(make_client, proxy, elsewhere) == NEW


@pytest.mark.parametrize("way", WAYS)
async def test_cancelled_push_keeps_old_item(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, way: str, forever: asyncio.Event
) -> None:
    proxy = await whole(start_proxy, make_client, home, way)
    proxy.add_fault(BODY, stop_reading(forever), times=None)
    pushing = asyncio.create_task(make_client(proxy).models.push("mod:m1", force=True))
    await proxy.wait_for(BODY, 1)

    pushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing

    proxy._rules.clear()
    assert await record(make_client, proxy) == ("success", "old")
    assert await pulled(make_client, proxy, elsewhere) == OLD


@pytest.mark.parametrize("way", WAYS)
async def test_refused_push_keeps_old_item(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, way: str
) -> None:
    proxy = await whole(start_proxy, make_client, home, way)
    proxy.add_fault(BODY, refuse(400), times=None)

    with pytest.raises(BentoError):
        await make_client(proxy).models.push("mod:m1", force=True)

    assert await record(make_client, proxy) == ("success", "old")
    assert await pulled(make_client, proxy, elsewhere) == OLD


async def test_broken_request_keeps_old_item(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    """The registry records the broken request as failed once it has noticed."""
    proxy = await whole(start_proxy, make_client, home, "proxy")

    received: list[Exchange] = []

    async def break_off(exchange: Exchange) -> web.StreamResponse:
        received.append(exchange)
        response = await disconnect_while_reading(2 * MiB)(exchange)
        await asyncio.sleep(0.1)
        if received[-1] is exchange:  # aiohttp itself repeats a request on a broken kept-alive connection
            item = f"{proxy.registry.endpoint}{exchange.request.path.removesuffix('/upload')}"
            headers = {"X-YATAI-API-TOKEN": proxy.registry.api_token}
            async with aiohttp.ClientSession(headers=headers) as session:
                await session.patch(f"{item}/finish_upload", json={"status": "failed", "reason": "broken"})
            recorded.set()
        return response

    recorded = asyncio.Event()
    proxy.add_fault(BODY, break_off, times=None)

    with pytest.raises(BentoError):
        await make_client(proxy, retry={"attempts": 1}).models.push("mod:m1", force=True)

    await recorded.wait()
    assert await record(make_client, proxy) == ("success", "old")
    assert await pulled(make_client, proxy, elsewhere) == OLD


@pytest.mark.parametrize("way", ["auto", "presigned_url"])
async def test_unknown_outcome_is_failed(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, way: str
) -> None:
    proxy = await whole(start_proxy, make_client, home, way)
    proxy.add_fault("PUT /blobs/[^?]*\\?(?!.*partNumber)|complete_multipart", lose_answer, times=None)
    proxy.add_fault("presign_download", answer_json(500, {"error": "no"}), times=None)

    with pytest.raises(BentoError):
        await make_client(proxy).models.push("mod:m1", force=True)

    assert (await record(make_client, proxy))[0] == "failed"


@pytest.mark.parametrize("way", WAYS)
async def test_refused_record_is_failed(start_proxy: StartProxy, make_client: MakeClient, home: Path, way: str) -> None:
    proxy = await whole(start_proxy, make_client, home, way)
    proxy.add_fault("PATCH .*/m1$", answer_json(400, {"error": "no such label"}), times=None)

    with pytest.raises(BentoError, match="no such label"):
        await make_client(proxy).models.push("mod:m1", force=True)

    assert await record(make_client, proxy) == ("failed", "old")
    assert proxy.matching(BODY)


async def test_resumed_push_replaces_item(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    proxy = await whole(start_proxy, make_client, home, "presigned_url")
    proxy.add_fault("PUT .*partNumber=2", refuse(400))
    with pytest.raises(BentoError):
        await make_client(proxy).models.push("mod:m1", force=True, threads=1)

    result = await make_client(proxy).models.push("mod:m1", force=True)

    assert result.resumed
    assert await record(make_client, proxy) == ("success", "new")
    assert await pulled(make_client, proxy, elsewhere) == NEW


async def test_failed_bare_push_keeps_item(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()
    api = make_client(proxy)
    await api.push("svc:v1")
    proxy.add_fault("PATCH .*/v1$", answer_json(400, {"error": "no"}))

    with pytest.raises(BentoError, match="no"):
        await api.push("svc:v1", bare=True, force=True)

    assert (await api.get("svc:v1")).upload_status == "success"
    assert [request.json["status"] for request in proxy.matching(FINISH)] == ["success"]


async def test_failed_push_records_failed(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home)
    proxy = await start_proxy()
    proxy.add_fault(PUT, refuse(400), times=None)
    api = make_client(proxy).models

    for _ in range(2):  # a new record, and an existing one
        with pytest.raises(BentoError):
            await api.push("mod:m1")
        assert (await api.get("mod:m1")).upload_status == "failed"


async def test_concurrent_push_is_skipped(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home)
    proxy = await start_proxy()
    held = Hold(fault=lose_answer)
    proxy.add_fault("POST .*/bentos$", held)
    pushing = asyncio.create_task(make_client(proxy).push("svc:v1"))
    await held.arrived.wait()
    other = home.parent / "other"
    make_bento(other)
    async with FaultProxy(proxy.registry) as way:
        await make_client(way, other).push("svc:v1")
    held.released.set()

    assert (await pushing).skipped

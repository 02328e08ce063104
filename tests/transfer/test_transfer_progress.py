"""The events of a real push and a real pull: parts, retries, phases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.builders import MiB, make_model, random_bytes
from tests.fault_proxy import GET, PART, answer_json

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from async_bento import ProgressEvent
    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


async def test_push_reports_parts_and_retry(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": random_bytes(11 * MiB)})
    proxy = await start_proxy()
    proxy.add_fault(PART, answer_json(503, {}))
    events: list[ProgressEvent] = []

    await make_client(proxy, progress=events.append).models.push("mod:m1")

    last = events[-1]
    assert (last.phase, last.parts_done, last.parts_total, last.retries) == ("done", 3, 3, 1)
    assert [event.message for event in events if event.message.startswith("retrying: ")]
    assert [event.parts_done for event in events] == sorted(event.parts_done for event in events)


async def test_push_finishes_once_parts_are_sent(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, files={"weights": random_bytes(11 * MiB)})
    proxy = await start_proxy("presigned_url")
    events: list[ProgressEvent] = []
    shown: list[str] = []

    async def look(exchange: Exchange) -> web.StreamResponse:
        shown.append(events[-1].phase)
        return await exchange.forward()

    proxy.add_fault("PATCH .*/complete_multipart_upload$", look)
    await make_client(proxy, progress=events.append).models.push("mod:m1")

    assert shown == ["finishing"]


@pytest.mark.parametrize("range_size", [MiB // 4, MiB], ids=["ranges at once", "one at a time"])
async def test_pull_reports_retry_and_phases(
    range_size: int, start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_model(home, files={"weights": random_bytes(2 * MiB)})
    proxy = await start_proxy()
    await make_client(proxy).models.push("mod:m1")
    proxy.add_fault(GET, answer_json(503, {}), skip=1)
    events: list[ProgressEvent] = []

    transfer = {"range_size": range_size, "window": MiB}
    await make_client(proxy, elsewhere, progress=events.append, transfer=transfer).models.pull("mod:m1")

    phases = list(dict.fromkeys(event.phase for event in events))
    assert phases == ["planning", "transferring", "extracting", "finishing", "done"]
    assert (events[-1].retries, events[-1].parts_total) == (1, None)
    extracting = next(event for event in events if event.phase == "extracting")
    assert extracting.bytes_done == extracting.bytes_total

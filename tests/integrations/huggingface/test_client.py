"""Calls of huggingface_hub in threads: cancelled ones, and the progress of a download."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from async_bento import Tag
from async_bento.integrations.huggingface import client
from async_bento.integrations.huggingface.client import DownloadMonitor, _bar_class, _call
from async_bento.integrations.huggingface.model import HubModel
from async_bento.progress.events import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento import ProgressEvent

MODEL = HubModel(Tag("bert", "h1"), "org/bert")


async def test_cancelled_call_leaves_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has no monitor that could stop it, and nobody gets its error."""
    monkeypatch.setattr(client, "SECONDS_TO_STOP", 0)
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    called, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def fail() -> None:
        loop.call_soon_threadsafe(called.set)
        released.wait(30)
        raise ValueError("nobody waits for this")

    task = asyncio.create_task(_call(MODEL, fail, asyncio.Semaphore()))
    await called.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (thread,) = (each for each in threading.enumerate() if each.name == "async-bento-hub")
    released.set()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0)  # the error reaches the loop
    await asyncio.sleep(0)
    del task
    gc.collect()
    assert reported == []


@pytest.fixture
def events() -> list[ProgressEvent]:
    return []


@pytest.fixture
async def monitor(events: list[ProgressEvent]) -> DownloadMonitor:
    return DownloadMonitor(Progress("pull", "model", "bert:h1", events.append), asyncio.get_running_loop())


@pytest.mark.parametrize("grown", [0, 1, 5])
async def test_growth_of_cache_is_progress(
    tmp_path: Path, monitor: DownloadMonitor, events: list[ProgressEvent], grown: int
) -> None:
    """Before 1.0, huggingface_hub reports no bytes; those that were in the cache do not count."""
    (tmp_path / "before").write_bytes(bytes(10))

    def download() -> None:
        with monitor.watch(tmp_path):
            (tmp_path / "new").write_bytes(bytes(grown))

    await asyncio.to_thread(download)
    await asyncio.sleep(0)
    reported = [(event.phase, event.bytes_done, event.bytes_total) for event in events]
    assert reported[-1:] == ([("transferring", grown, None)] if grown else [])


async def test_pinned_revision_is_not_requested() -> None:
    metadata = {"model_id": "org/bert", "revision": "0" * 40, "endpoint": "http://127.0.0.1:1"}
    model = HubModel.of_record(MODEL.named, metadata)

    assert await client.freeze(model, asyncio.Semaphore()) is model


async def test_growth_of_cache_is_polled(
    tmp_path: Path, monitor: DownloadMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SECONDS_BETWEEN_REPORTS", 0)
    reported, noted = threading.Event(), asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.bytes_done == 5:
            reported.set()
            noted.set()

    monitor._progress.listener = listen

    def download() -> None:
        with monitor.watch(tmp_path):
            (tmp_path / "new").write_bytes(bytes(5))
            assert reported.wait(30)

    downloading = asyncio.create_task(asyncio.to_thread(download))
    with anyio.fail_after(20):
        await noted.wait()
    await downloading


async def test_bar_of_bytes_is_progress(monitor: DownloadMonitor, events: list[ProgressEvent]) -> None:
    """Of two bars that count bytes, the second has the exact total; its total may change."""
    bar_class = await asyncio.to_thread(_bar_class, monitor)  # imports tqdm
    network, disk, files = (bar_class(total=total, unit=unit) for total, unit in ((7, "B"), (9, "B"), (3, "it")))
    network.update(7)
    files.update(3)
    disk.update(2)
    disk.update(None)
    disk.refresh()
    disk.update()
    disk.total = 12
    disk.update(4)
    await asyncio.sleep(0)
    reported = [(event.phase, event.bytes_done, event.bytes_total) for event in events]
    assert reported == [
        ("transferring", 0, 9),
        ("transferring", 2, 9),
        ("transferring", 3, 9),
        ("transferring", 3, 12),
        ("transferring", 7, 12),
    ]
    assert not [thread for thread in threading.enumerate() if thread.name == "tqdm_monitor"]

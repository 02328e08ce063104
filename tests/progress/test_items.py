"""Every item that starts also ends, under one id, even if its tag changes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoError, ProgressEvent
from async_bento.progress.events import ENDED
from tests.builders import MiB, make_bento, make_model, random_bytes
from tests.fault_proxy import GET, FaultProxy, Hold, refuse

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures import MakeClient, StartProxy


class Heard(list[ProgressEvent]):
    """A listener that records the events, and compares the started items with the ended ones."""

    def __call__(self, event: ProgressEvent, /) -> None:
        self.append(event)

    def ends(self) -> list[tuple[str, str, str]]:
        """Return the kind, the tag and the last phase of each started item."""
        last = {event.id: event for event in self}
        assert 0 not in last
        ended = [event.id for event in self if event.phase in ENDED]
        assert sorted(ended) == sorted(last)
        assert all(event.phase in ENDED for event in last.values())
        return sorted((event.kind, event.tag, event.phase) for event in last.values())


@pytest.fixture
async def proxy(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> FaultProxy:
    """A proxy of a registry with `svc:v1` and its models `one:m1` and `two:m1`."""
    for name in ("one", "two"):
        make_model(home, f"{name}:m1", files={"weights": random_bytes(MiB + 3)})
    make_bento(home, models=["one:m1", "two:m1"])
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1")
    return proxy


@pytest.mark.parametrize("tag", ["svc", "svc:latest", "svc:v1"])
async def test_pull_ends_with_exact_tags(tag: str, proxy: FaultProxy, make_client: MakeClient, elsewhere: Path) -> None:
    heard = Heard()
    api = make_client(proxy, elsewhere, progress=heard)
    await api.pull(tag, with_models=True)
    models = [("model", "one:m1"), ("model", "two:m1")]
    assert heard.ends() == [("bento", "svc:v1", "done"), *((*model, "done") for model in models)]
    heard.clear()
    await api.pull(tag, with_models=True)
    assert heard.ends() == [("bento", "svc:v1", "skipped"), *((*model, "skipped") for model in models)]


async def test_skipped_push_items_end(proxy: FaultProxy, make_client: MakeClient) -> None:
    heard = Heard()
    await make_client(proxy, progress=heard).push("svc:v1")
    assert [phase for *_, phase in heard.ends()] == ["skipped", "skipped", "skipped"]


async def test_failed_items_end(proxy: FaultProxy, make_client: MakeClient, elsewhere: Path) -> None:
    heard = Heard()
    api = make_client(proxy, elsewhere, progress=heard)
    with pytest.raises(BentoError):
        await api.pull("nope")
    assert heard.ends() == [("bento", "nope", "failed")]
    heard.clear()
    proxy.add_fault(GET, refuse(404), times=None)
    with pytest.raises(BentoError):
        await api.models.pull("one")
    assert heard.ends() == [("model", "one:m1", "failed")]


async def test_cancelled_items_interrupted(proxy: FaultProxy, make_client: MakeClient, elsewhere: Path) -> None:
    heard, hold = Heard(), Hold()
    proxy.add_fault(GET, hold)
    task = asyncio.create_task(make_client(proxy, elsewhere, progress=heard).models.pull("one"))
    await hold.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.released.set()
    assert heard.ends() == [("model", "one:m1", "interrupted")]

"""An API that is closed during calls: the calls end like cancelled ones, with an error that states the reason."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import AsyncBentoAPI, BentoAPI, ClosedError, RestApiClient
from async_bento.api.loop_thread import _RunningLoop
from tests.builders import contents, left_in_scratch, make_model, random_bytes
from tests.fault_proxy import FINISH, GET, PART, FaultProxy, Hold
from tests.transfer.quiet import nothing_left

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from async_bento import ProgressEvent
    from async_bento.registry.server import LocalRegistry
    from tests.fixtures import MakeClient, StartProxy


@pytest.fixture
async def proxy(start_proxy: StartProxy, home: Path) -> FaultProxy:
    make_model(home, files={"weights": random_bytes(300_000, 1)})
    return await start_proxy()


async def test_close_during_push_reported(proxy: FaultProxy, make_client: MakeClient) -> None:
    held = Hold()
    proxy.add_fault(PART, held)
    events: list[ProgressEvent] = []
    api = make_client(proxy, progress=events.append)

    async with nothing_left(api):
        pushing = asyncio.create_task(api.models.push("mod:m1"))
        await held.arrived.wait()
        await api.aclose()
        assert pushing.done()
        with pytest.raises(ClosedError, match="the API was closed during this call"):
            await pushing
    held.released.set()

    assert [request.json["status"] for request in proxy.matching(FINISH)] == ["failed"]
    assert events[-1].phase == "interrupted"
    assert not api._resources.client._session._connections._sessions


async def test_close_during_pull_can_resume(
    proxy: FaultProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    await make_client(proxy).models.push("mod:m1")
    held = Hold()
    proxy.add_fault(GET, held, skip=2, times=None)
    api = make_client(proxy, elsewhere)

    async with nothing_left(api):
        pulling = asyncio.create_task(api.models.pull("mod:m1"))
        await held.arrived.wait()
        await api.aclose()
        with pytest.raises(ClosedError):
            await pulling
    proxy._rules.clear()
    held.released.set()

    assert not left_in_scratch(elsewhere, kept=False)
    await make_client(proxy, elsewhere).models.pull("mod:m1")
    assert contents(elsewhere / "models/mod/m1") == contents(home / "models/mod/m1")


@pytest.mark.parametrize("call", ["get", "list", "iter"])
async def test_close_during_request_raises(proxy: FaultProxy, make_client: MakeClient, call: str) -> None:
    held = Hold()
    proxy.add_fault("GET .*models", held)
    api = make_client(proxy)

    async def ask() -> object:
        if call == "iter":
            return [record async for record in api.models.iter()]
        return await (api.models.get("mod") if call == "get" else api.models.list())

    async with nothing_left(api):
        asking = asyncio.create_task(ask())
        await held.arrived.wait()
        await api.aclose()
        with pytest.raises(ClosedError):
            await asking
    held.released.set()


async def test_error_in_context_ends_calls(proxy: FaultProxy, make_client: MakeClient) -> None:
    held = Hold()
    proxy.add_fault(PART, held)

    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the test is about the context's block
        async with make_client(proxy) as api:
            pushing = asyncio.create_task(api.models.push("mod:m1"))
            await held.arrived.wait()
            raise ZeroDivisionError
    held.released.set()

    with pytest.raises(ClosedError):
        await pushing


async def test_cancelled_call_not_closed(proxy: FaultProxy, make_client: MakeClient) -> None:
    held = Hold()
    proxy.add_fault(PART, held)
    api = make_client(proxy)
    pushing = asyncio.create_task(api.models.push("mod:m1"))
    await held.arrived.wait()
    pushing.cancel()

    with pytest.raises(asyncio.CancelledError):
        await pushing
    held.released.set()
    await api.aclose()


async def test_cancelled_close_completes(proxy: FaultProxy, make_client: MakeClient) -> None:
    sending, telling = Hold(), Hold()
    proxy.add_fault(PART, sending)
    proxy.add_fault(FINISH, telling)
    api = make_client(proxy)
    pushing = asyncio.create_task(api.models.push("mod:m1"))
    await sending.arrived.wait()
    closing = asyncio.create_task(api.aclose())
    await telling.arrived.wait()
    closing.cancel()
    await asyncio.wait([closing], timeout=0.1)
    assert not closing.done()
    telling.released.set()

    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not api._resources.client._session._connections._sessions
    sending.released.set()
    with pytest.raises(ClosedError):
        await pushing


def test_close_by_thread_ends_call(served: LocalRegistry, home: Path) -> None:
    make_model(home, files={"weights": random_bytes(300_000, 1)})
    under_way, failures = threading.Event(), []
    api = BentoAPI()

    async def stall(*_: object) -> None:
        under_way.set()
        await asyncio.sleep(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("async_bento.transfer.body.TarBody.write_with_length", stall)

        def push() -> None:
            try:
                api.models.push("mod:m1")
            except ClosedError as error:
                failures.append(str(error))

        thread = threading.Thread(target=push)
        thread.start()
        under_way.wait(10)
        api.close()
        thread.join(10)

    assert not thread.is_alive()
    assert len(failures) == 1
    assert failures[0].startswith("the API was closed during this call")


def test_close_raises_first_reason(served: LocalRegistry) -> None:
    """The cancellation fails, since the loop has ended."""
    api = BentoAPI()
    api.list()
    with pytest.MonkeyPatch.context() as patch:

        def closed(running: _RunningLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
            patch.undo()
            coroutine.close()
            api.close()
            raise ClosedError("closed during the call")

        patch.setattr(_RunningLoop, "wait_for", closed)
        with pytest.raises(ClosedError, match="closed during the call"):
            api.list()


def test_close_ends_unstarted_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end, a loop drops the last callbacks, and Python warns of a coroutine that was never awaited."""

    async def stop() -> None:
        pass

    running, call = _RunningLoop(stop), stop()
    running.stop()
    running.join()
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda coroutine, loop: Future())

    with pytest.raises(ClosedError, match="the API was closed during this call"):
        running.wait_for(call)

    assert inspect.getcoroutinestate(call) == inspect.CORO_CLOSED


CALLS = {
    "push": lambda api: api.push("svc:v1"),
    "pull": lambda api: api.pull("svc:v1"),
    "list": lambda api: api.list(),
    "get": lambda api: api.get("svc"),
    "models.push": lambda api: api.models.push("mod:m1"),
    "models.pull": lambda api: api.models.pull("mod:m1"),
    "models.list": lambda api: api.models.list(),
    "models.get": lambda api: api.models.get("mod"),
}


@pytest.mark.parametrize("call", CALLS)
async def test_closed_async_call_raises(served: LocalRegistry, call: str) -> None:
    api = AsyncBentoAPI()
    await api.aclose()
    with pytest.raises(ClosedError, match="the API was closed"):
        await CALLS[call](api)


@pytest.mark.parametrize("used", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_closed_blocking_call_raises(served: LocalRegistry, call: str, used: bool) -> None:
    api = BentoAPI()
    if used:
        api.list()
    api.close()
    with pytest.raises(ClosedError, match="the API was closed"):
        CALLS[call](api)


async def test_closed_async_iter_raises(served: LocalRegistry) -> None:
    api = AsyncBentoAPI()
    await api.aclose()
    await api.aclose()
    for items in (api, api.models):
        with pytest.raises(ClosedError):
            await anext(items.iter())
    with pytest.raises(ClosedError):
        await api.__aenter__()


def test_closed_blocking_iter_raises(served: LocalRegistry) -> None:
    api = BentoAPI()
    api.list()
    api.close()
    for items in (api, api.models):
        with pytest.raises(ClosedError):
            next(items.iter())
    with pytest.raises(ClosedError):
        api.__enter__()


async def test_callers_client_stays_open(served: LocalRegistry) -> None:
    async with RestApiClient() as client:
        async with AsyncBentoAPI(client) as api:
            await api.list()
        assert (await client.current_user()).name


async def test_closed_client_call_raises(served: LocalRegistry) -> None:
    client = RestApiClient()
    await client.aclose()
    with pytest.raises(ClosedError, match="the client was closed"):
        await AsyncBentoAPI(client).list()


def test_dropped_iter_starts_no_thread(served: LocalRegistry, home: Path) -> None:
    for version in ("v1", "v2"):
        make_model(home, f"mod:{version}")
    with BentoAPI() as api:
        api.models.push("mod:v1")
        api.models.push("mod:v2")
        records = api.models.iter()
        next(records)
    del records
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "async-bento"]

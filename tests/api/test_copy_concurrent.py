"""Copies next to other events: copies in the opposite direction, an API that is closed, a fork."""

from __future__ import annotations

import asyncio
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio
import pytest

from async_bento import BentoAPI, ClosedError
from async_bento.registry import LocalRegistry
from tests.api.scripts import Ended, run_program
from tests.builders import MiB, contents, make_bento, random_bytes
from tests.fault_proxy import DOWNLOAD, FINISH, GET, PUT, UPLOAD, Hold
from tests.fixtures import FEW_RANGES
from tests.transfer.cancellation import connections
from tests.transfer.quiet import nothing_left

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fixtures import MakeClient, StartProxy

STRATEGIES = ["presigned_url", "auto", "proxy"]
FILES = {"src/weights": random_bytes(12 * MiB + 17, 5)}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The home of the machine that pushes."""
    return tmp_path / "origin"


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_opposite_copies_both_finish(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, tmp_path: Path, strategy: str
) -> None:
    """With one request slot per API, two opposite copies do not deadlock."""
    proxies = [await start_proxy(strategy, name=name) for name in ("one", "two")]
    held = [Hold(), Hold()]
    for proxy, hold, tag in zip(proxies, held, ("one:v1", "two:v1"), strict=True):
        make_bento(origin, tag, FILES)
        await make_client(proxy, origin).push(tag)
        proxy.streams_downloads = False
        proxy.add_fault(f"{PUT}|{UPLOAD}", hold)
    one, two = (make_client(proxy, transfer=FEW_RANGES | {"concurrency": 1}) for proxy in proxies)

    async with nothing_left(one), nothing_left(two):
        with anyio.fail_after(60):
            copies = asyncio.gather(one.copy("one:v1", two, threads=1), two.copy("two:v1", one, threads=1))
            for hold in held:  # each upload has the only slot of its API
                await hold.arrived.wait()
            for hold in held:
                hold.released.set()
            results = await copies

    assert [result.skipped for result in results] == [False, False]
    for api, tag in ((one, "two:v1"), (two, "one:v1")):
        await api.pull(tag, path=tmp_path / "copy" / tag)
        assert contents(tmp_path / "copy" / tag) == contents(origin / "bentos" / tag.replace(":", "/"))


@pytest.mark.parametrize("closed", ["source", "target"])
@pytest.mark.parametrize("during", ["read", "upload"])
@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_close_during_copy_reported(
    start_proxy: StartProxy, make_client: MakeClient, origin: Path, strategy: str, during: str, closed: str
) -> None:
    source, target = await start_proxy(name="source"), await start_proxy(strategy, name="target")
    make_bento(origin, "svc:v1", FILES)
    async with make_client(source, origin) as pusher:
        await pusher.push("svc:v1")
    held = Hold()
    if during == "read":
        source.add_fault(f"{GET}|{DOWNLOAD}", held, skip=1)
    else:
        target.add_fault(f"{PUT}|{UPLOAD}", held)
    here, there = make_client(source, transfer=FEW_RANGES), make_client(target, transfer=FEW_RANGES)
    first, other = (here, there) if closed == "source" else (there, here)

    async with AsyncExitStack() as stack:
        for api in (here, there):
            await stack.enter_async_context(nothing_left(api))
        copying = asyncio.create_task(here.copy("svc:v1", there))
        await held.arrived.wait()
        await first.aclose()
        assert copying.done()
        with pytest.raises(ClosedError, match="the API was closed during this call"):
            await copying
        held.released.set()

    assert [request.json["status"] for request in target.matching(FINISH)] == ["failed"]
    await other.list()
    assert not connections(source if closed == "source" else target)
    await other.aclose()
    await asyncio.sleep(0)
    assert not connections(source)
    assert not connections(target)


@pytest.mark.parametrize("closed", ["source", "target"])
def test_close_by_thread_ends_copy(served: LocalRegistry, home: Path, tmp_path: Path, closed: str) -> None:
    make_bento(home, "svc:v1", FILES)
    under_way, failures = threading.Event(), []

    async def stall(*_: object) -> None:
        under_way.set()
        await asyncio.sleep(60)

    with LocalRegistry(tmp_path / "there") as registry, pytest.MonkeyPatch.context() as patch:
        here, there = BentoAPI(), BentoAPI(endpoint=registry.endpoint, api_token=registry.api_token)
        here.push("svc:v1")
        patch.setattr("async_bento.transfer.body.UploadBody.write_with_length", stall)

        def copy() -> None:
            try:
                here.copy("svc:v1", there)
            except ClosedError as error:
                failures.append(str(error))

        thread = threading.Thread(target=copy)
        thread.start()
        under_way.wait(30)
        (here if closed == "source" else there).close()
        thread.join(30)
        assert not thread.is_alive()
        assert failures == ["the API was closed during this call. Wait for the call before you close the API."]
        with pytest.raises(ClosedError, match="the API was closed"):
            here.copy("svc:v1", there)
        (there if closed == "source" else here).close()
        with BentoAPI(endpoint=registry.endpoint, api_token=registry.api_token) as api:
            assert api.get("svc:v1").upload_status == "failed"


@pytest.mark.posix("fork")
@pytest.mark.processes
@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_fork_during_copy_is_safe(served: LocalRegistry, home: Path, tmp_path: Path, kind: str) -> None:
    big = make_bento(home, "big:v1", {"weights": random_bytes(12_000_000, 1)})
    make_bento(home, "svc:v1")
    with BentoAPI(progress=False) as api:
        api.push(["big:v1", "svc:v1"])
    program = FORKS[kind].replace("CHILD", repr(str(tmp_path / "child")))
    with LocalRegistry(tmp_path / "there") as there:
        target = f"TARGET = dict(endpoint={there.endpoint!r}, api_token={there.api_token!r})\n"
        ended = run_program(target + program)
        assert ended == Ended(0, "0\n(12, 'success')\n", "")
        with BentoAPI(progress=False, endpoint=there.endpoint, api_token=there.api_token) as api:
            api.pull("big:v1", path=tmp_path / "copy")

    assert contents(tmp_path / "copy") == contents(big)
    assert (tmp_path / "child/bento.yaml").exists()


FORKS = {
    "blocking": """
under_way, go_on, copied = threading.Event(), threading.Event(), []
def listen(event):
    if event.phase == "transferring" and event.tag == "big:v1" and event.bytes_done and not under_way.is_set():
        under_way.set()
        go_on.wait(30)  # the fork is in the middle of the copy
api, there = BentoAPI(progress=listen), BentoAPI(progress=False, **TARGET)
thread = threading.Thread(target=lambda: copied.append(api.copy("big:v1", there)))
thread.start()
under_way.wait(30)
def use():
    assert api.get("svc").version == "v1"
    api.pull("svc", path=CHILD)
    assert not api.copy("svc", there).skipped and there.get("svc").upload_status == "success"
print(in_child(use))
go_on.set()
thread.join(30)
print((copied[0].bytes_sent // 1_000_000, there.get("big").upload_status))
api.close(), there.close()
""",
    "async": """
forked = []
def listen(event):
    if event.phase == "transferring" and event.tag == "big:v1" and event.bytes_done and not forked:
        forked.append(in_child(lambda: asyncio.run(use())))
async def use():
    assert (await api.get("svc")).version == "v1"
    await api.pull("svc", path=CHILD)
    assert not (await api.copy("svc", there)).skipped and (await there.get("svc")).upload_status == "success"
async def main():
    global api, there
    async with AsyncBentoAPI(progress=listen) as api, AsyncBentoAPI(progress=False, **TARGET) as there:
        copied = await api.copy("big:v1", there)
        print(*forked)
        print((copied.bytes_sent // 1_000_000, (await there.get("big")).upload_status))
asyncio.run(main())
""",
}

"""Programs that exit during work in a thread, drop clients, call at exit, or use a client on several loops."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

import anyio
import pytest

from async_bento import AsyncBentoAPI, BentoStore
from async_bento._core import platform
from async_bento._core.concurrency import Threads
from async_bento.transfer.tar import scan
from async_bento.transfer.tar.plan import TarPlan
from tests.api.scripts import Ended, run_program
from tests.builders import contents, make_bento, random_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry

STARTS_THREADS_AT_EXIT = sys.version_info[:3] not in {(3, 12, 0), (3, 12, 1)}  # cpython#113964

CALLS = {
    "blocking": """
def call(work, progress=False):
    with BentoAPI(progress=progress) as api:
        return work(api)
""",
    "async": """
def call(work, progress=False):
    async def main():
        async with AsyncBentoAPI(progress=progress) as api:
            return await work(api)
    return asyncio.run(main())
""",
}


@pytest.fixture
def by_name(served: LocalRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint whose host needs a DNS lookup."""
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", served.endpoint.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.usefixtures("by_name")
@pytest.mark.processes
def test_thread_outlives_main_thread(home: Path, tmp_path: Path, kind: str) -> None:
    bento = make_bento(home, "svc:v1", {"weights": random_bytes(12_000_000)})
    ended = run_program(f"""
{CALLS[kind]}
under_way = threading.Event()
def wait_for_main(event):
    if event.phase == "transferring" and event.bytes_done:
        under_way.set()
        while threading.main_thread().is_alive():
            time.sleep(0.01)

def work():
    pushed = call(lambda api: api.push("svc:v1"), wait_for_main)
    print(threading.main_thread().is_alive(), pushed.parts)

thread = threading.Thread(target=work)
thread.start()
under_way.wait(30)
""")
    assert ended == Ended(0, "False 3\n", "")

    ended = run_program(f"""
{CALLS[kind]}
under_way = threading.Event()
def wait_for_main(event):
    if event.phase == "transferring" and event.bytes_done:
        under_way.set()
        while threading.main_thread().is_alive():
            time.sleep(0.01)

def work():
    store = BentoStore({str(tmp_path)!r})
    pulled = call(lambda api: api.pull("svc:v1", bento_store=store), wait_for_main)
    print(threading.main_thread().is_alive(), pulled.tag)

thread = threading.Thread(target=work)
thread.start()
under_way.wait(30)
""")
    assert ended == Ended(0, "False svc:v1\n", "")
    assert contents(tmp_path / "svc/v1") == contents(bento)


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.usefixtures("by_name")
@pytest.mark.processes
def test_thread_after_main_transfers(home: Path, kind: str) -> None:
    make_bento(home, "svc:v1")
    ended = run_program(f"""
{CALLS[kind]}
def work():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    try:
        print(call(lambda api: api.push("svc:v1")).parts)
    except ClosedError as error:
        print(error)

thread = threading.Thread(target=work)
thread.start()
""")
    refused = "cannot start a thread: the interpreter is shutting down. Call earlier."
    assert ended == Ended(0, f"{1 if STARTS_THREADS_AT_EXIT else refused}\n", "")


@pytest.mark.processes
def test_dropped_blocking_api_is_freed(served: LocalRegistry) -> None:
    ended = run_program("""
import warnings
def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.name == "posix" else 0
def use():
    BentoAPI(progress=False).list()
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    use()
    before = descriptors()
    for _ in range(100):
        use()
    gc.collect()
    until = time.monotonic() + 30
    while threading.active_count() > 1 and time.monotonic() < until:
        time.sleep(0.01)
print(threading.active_count(), descriptors() <= before)
print(len(warned), {str(one.message) for one in warned if one.category is ResourceWarning})
""")
    warning = "unclosed BentoAPI. Use it in a `with` statement, or call close()."
    assert ended == Ended(0, f"1 True\n101 {{{warning!r}}}\n", "")


@pytest.mark.processes
def test_dropped_async_api_is_freed(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    ended = run_program("""
import warnings
def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.name == "posix" else 0
async def push():
    await AsyncBentoAPI(progress=False).push("svc:v1", force=True)
async def main():
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        before = descriptors()
        for _ in range(10):
            await push()
            gc.collect()
        until = time.monotonic() + 30
        while (threading.active_count() > 1 or descriptors() > before) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        print(threading.active_count(), descriptors() <= before)
        print(len(warned), {str(one.message) for one in warned if one.category is ResourceWarning})
asyncio.run(main())
""")
    warning = "unclosed client. Use it in an `async with` statement, or await aclose()."
    assert ended == Ended(0, f"1 True\n10 {{{warning!r}}}\n", "")


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.processes
def test_call_at_exit_ends(served: LocalRegistry, home: Path, is_last: bool) -> None:
    """A call works until the exit closes the API; later calls raise, and an open iterator logs nothing."""
    for version in ("v1", "v2"):
        make_bento(home, f"svc:{version}")
    register = "last.append" if is_last else "atexit.register"
    ended = run_program(f"""
api = BentoAPI(progress=False)
for version in ("v1", "v2"):
    api.push(f"svc:{{version}}")
records = api.iter()
next(records)

def call():
    try:
        print(api.get("svc", "v1").version)
    except ClosedError as error:
        print(error)

{register}(call)
""")
    assert ended == Ended(0, "the API was closed. Create a new one.\n" if is_last else "v1\n", "")


@pytest.mark.processes
def test_client_serves_loops_in_turn(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    ended = run_program("""
api = AsyncBentoAPI(progress=False)
async def push():
    return (await api.push("svc:v1", force=True)).parts
print(asyncio.run(push()), asyncio.run(push()))
gc.collect()
asyncio.run(api.aclose())
gc.collect()
""")
    assert ended == Ended(0, "1 1\n", "")


@pytest.mark.processes
def test_unclosed_client_logs_nothing(served: LocalRegistry) -> None:
    """Some loops are closed with open connections, which only a warning of Python shows."""
    ended = run_program(
        """
async def use(api):
    await api.list()
asyncio.run(use(AsyncBentoAPI(progress=False)))
gc.collect()
api = AsyncBentoAPI(progress=False)
loop = asyncio.new_event_loop()
loop.run_until_complete(use(api))
loop.close()
asyncio.run(use(api))
asyncio.run(api.aclose())
del loop
gc.collect()
""",
        "-W",
        "ignore::ResourceWarning",
    )
    assert ended == Ended(0, "", "")


@pytest.mark.processes
def test_close_skips_calls_of_closed_loop(served: LocalRegistry) -> None:
    """Ctrl-C in `run_until_complete` leaves such calls, which never end."""
    ended = run_program("""
api = AsyncBentoAPI(progress=False)
async def call():
    async with api._resources.call():
        await asyncio.Event().wait()
loop = asyncio.new_event_loop()
task = loop.create_task(call())
loop.run_until_complete(asyncio.sleep(0))
loop.close()
asyncio.run(asyncio.wait_for(api.aclose(), 30))
print("closed", task.done(), flush=True)
os._exit(0)  # Python would complain of the task
""")
    assert ended == Ended(0, "closed False\n", "")


@pytest.mark.processes
def test_client_on_two_loops_raises(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1", {"weights": random_bytes(3_000_000)})
    ended = run_program("""
from async_bento import BentoError
under_way, go_on = threading.Event(), threading.Event()
def listen(event):
    if event.phase == "transferring":
        under_way.set()
        go_on.wait(30)
api = AsyncBentoAPI(progress=listen)
async def push():
    print((await api.push("svc:v1")).parts, (await api.get("svc")).version)
async def get():
    return await api.get("svc")
thread = threading.Thread(target=lambda: asyncio.run(push()))
thread.start()
under_way.wait(30)
for call in (get, api.aclose):
    try:
        asyncio.run(call())
    except BentoError as error:
        print(type(error).__name__, error)
go_on.set()
thread.join(30)
print(asyncio.run(get()).version)
asyncio.run(api.aclose())
""")
    refused = (
        "ConfigError cannot use an AsyncBentoAPI on two event loops at once: calls are running on another loop. "
        "Use one AsyncBentoAPI per event loop, or a BentoAPI, which several threads may share.\n"
    )
    assert ended == Ended(0, f"{refused}{refused}1 v1\nv1\n", "")


@pytest.mark.processes
def test_rest_client_serves_two_loops(served: LocalRegistry) -> None:
    ended = run_program("""
from async_bento import RestApiClient
client = RestApiClient()
both = threading.Barrier(2, timeout=30)
async def ask(number):
    for _ in range(5):
        await client.current_user()
        await asyncio.to_thread(both.wait)
    ended.append(number)
    await asyncio.to_thread(both.wait)
    if number == 0:
        await client.aclose()
ended = []
threads = [threading.Thread(target=lambda number=number: asyncio.run(ask(number))) for number in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join(30)
print(sorted(ended))
""")
    assert ended == Ended(0, "[0, 1]\n", "")


@pytest.mark.processes
@pytest.mark.parametrize("call", ["get('svc')", "close()"])
def test_call_from_listener_raises(served: LocalRegistry, home: Path, call: str) -> None:
    make_bento(home, "svc:v1")
    ended = run_program(f"""
from async_bento import ConfigError
seen = set()
def listen(event):
    try:
        api.{call}
    except ConfigError as error:
        seen.add(str(error))
with BentoAPI(progress=listen) as api:
    print(api.push("svc:v1").parts, *seen)
""")
    refused = "cannot call a BentoAPI from its own progress listener: the call would wait for itself. "
    assert ended == Ended(0, f"1 {refused}Call it from another thread.\n", "")


async def test_context_vars_reach_threads() -> None:
    variable = ContextVar("variable", default="unset")
    threads = Threads(1)
    found = []
    for value in ("one", "two"):
        variable.set(value)
        found.append(await threads.run(variable.get))
    await threads.run(variable.set, "of a thread")
    threads.close()

    assert [*found, variable.get()] == ["one", "two", "two"]


@pytest.mark.parametrize("by_scope", [True, False])
async def test_cancelled_scan_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_scope: bool) -> None:
    root = tmp_path / "many"
    for directory in range(10):
        (root / f"{directory}").mkdir(parents=True)
        for number in range(100):
            (root / f"{directory}/{number}").touch()
    names: list[str] = []
    began = threading.Event()
    check = scan.check_name

    def slowly(name: str) -> object:
        names.append(name)
        began.set()
        time.sleep(0.01)
        return check(name)

    monkeypatch.setattr(scan, "check_name", slowly)
    threads = Threads(2)

    async def run() -> None:
        await threads.run(TarPlan.scan, root)

    async with anyio.create_task_group() as group:
        if by_scope:
            group.start_soon(run)
        else:
            running = asyncio.create_task(run())
        await threads.run(began.wait, 30)
        if by_scope:
            group.cancel_scope.cancel()
        else:
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
    threads.close()
    assert len(names) < 900


async def test_cancelled_pull_abandons_sync(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync also waits for the writes of other programs, for minutes in the worst case."""
    make_bento(home, "svc:v1", {f"files/{number}": b"content" for number in range(100)})
    store = BentoStore(tmp_path / "elsewhere" / "bentos")
    blocked, go_on = threading.Event(), threading.Event()

    def sync(path: Path) -> bool:
        blocked.set()
        return go_on.wait(60)

    monkeypatch.setattr(platform, "flush_filesystem", sync)
    async with AsyncBentoAPI(progress=False) as api:
        await api.push("svc:v1")
        pulling = asyncio.create_task(api.pull("svc:v1", bento_store=store))
        await asyncio.to_thread(blocked.wait, 30)
        pulling.cancel()
        await asyncio.wait([pulling], timeout=20)
        ended = pulling.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await pulling
        assert ended
        assert contents((await api.pull("svc:v1", bento_store=store)).path) == contents(home / "bentos/svc/v1")


async def test_cancelled_pull_stops_cleanup(
    served: LocalRegistry, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home, "svc:v1")
    elsewhere = tmp_path / "elsewhere"
    store = BentoStore(elsewhere / "bentos")
    async with AsyncBentoAPI(progress=False) as api:
        await api.push("svc:v1")
        await api.pull("svc:v1", bento_store=store)
        left = elsewhere / "tmp" / "async-bento-left"
        left.mkdir(parents=True)
        for number in range(1_000):
            (left / f"{number}").touch()
        removing = threading.Event()
        unlink = os.unlink
        removed = []

        def slowly(path: object, *arguments: object, **options: object) -> None:
            removing.set()
            removed.append(path)
            time.sleep(0.01)
            unlink(path, *arguments, **options)

        monkeypatch.setattr(os, "unlink", slowly)
        pulling = asyncio.create_task(api.pull("svc:v1", bento_store=store, force=True))
        await asyncio.to_thread(removing.wait, 30)
        pulling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pulling
    assert 0 < len(removed) < 900

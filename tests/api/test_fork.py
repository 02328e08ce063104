"""Forks, as by multiprocessing, gunicorn --preload and celery: before and after use, and during a transfer."""

from __future__ import annotations

import errno
import os
import selectors
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import BentoAPI
from async_bento._core.fork import _separate_epoll
from async_bento.api.loop_thread import LoopThread
from tests.api.scripts import Ended, run_program
from tests.builders import contents, make_bento, random_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry

pytestmark = [pytest.mark.processes, pytest.mark.posix("fork")]

APIS = {
    "blocking": """
api = BentoAPI(progress=False)
def use():
    return [record.version for record in api.list().items]
close = api.close
""",
    "async": """
api = AsyncBentoAPI(progress=False)
async def records():
    return [record.version for record in (await api.list()).items]
def use():
    return asyncio.run(records())
def close():
    asyncio.run(api.aclose())
""",
    "async on an open loop": """
api = AsyncBentoAPI(progress=False)
async def records():
    return [record.version for record in (await api.list()).items]
loop, parent = asyncio.new_event_loop(), os.getpid()
def use():
    return loop.run_until_complete(records()) if os.getpid() == parent else asyncio.run(records())
def close():
    loop.run_until_complete(api.aclose())
    loop.close()
""",
}

CHILDREN = {
    "calls": "print(in_child(lambda: print(use())))",
    "closes": "print(in_child(close))",
    "calls and closes": "print(in_child(lambda: (use(), close())))",
    "exits": """
pid = os.fork()
if not pid:
    sys.exit(0)
print(outcome(pid))
""",
    "calls and exits": """
pid = os.fork()
if not pid:
    use()
    sys.exit(0)
print(outcome(pid))
""",
}


@pytest.fixture
def pushed(served: LocalRegistry, home: Path) -> Path:
    """A pushed bento."""
    bento = make_bento(home, "svc:v1", {"weights": random_bytes(3_000_000)})
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    return bento


@pytest.mark.parametrize("kind", APIS)
def test_fork_after_use_is_safe(pushed: Path, kind: str) -> None:
    children = ["calls"] if kind == "async on an open loop" else [*CHILDREN]
    program = "".join(f"{CHILDREN[child]}\nprint(use())\n" for child in children)

    ended = run_program(f"{APIS[kind]}\nuse()\n{program}\nclose()")

    shown = "".join(("['v1']\n" if child == "calls" else "") + "0\n['v1']\n" for child in children)
    assert ended == Ended(0, shown, "")


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_fork_before_use_is_safe(pushed: Path, kind: str) -> None:
    ended = run_program(APIS[kind] + "print(in_child(lambda: print(use())))\nprint(use())\nclose()")

    assert ended == Ended(0, "['v1']\n0\n['v1']\n", "")


def test_fork_child_drops_api_silently(pushed: Path) -> None:
    """Only the parent has to close it."""
    ended = run_program(
        APIS["blocking"]
        + """
use()
def drop():
    global api, close
    del api, close
    gc.collect()
print(in_child(drop))
print(use())
close()
"""
    )

    assert ended == Ended(0, "0\n['v1']\n", "")


def test_fork_on_inherited_loop_is_safe(pushed: Path) -> None:
    """The child runs the loop that its parent made, with sessions of its own."""
    ended = run_program(
        APIS["async on an open loop"]
        + """
use()
print(in_child(lambda: print(loop.run_until_complete(records()))))
print(use())
close()
"""
    )

    assert ended == Ended(0, "['v1']\n0\n['v1']\n", "")


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_fork_pool_inherits_api(pushed: Path, kind: str) -> None:
    ended = run_program(
        APIS[kind]
        + """
use()
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.starmap_async(use, [()] * 4).get(30))
    pool.close()
    pool.join()
close()
"""
    )

    assert ended == Ended(0, "[['v1'], ['v1'], ['v1'], ['v1']]\n", "")


def test_fork_server_preloads_api(pushed: Path, tmp_path: Path) -> None:
    """Like gunicorn --preload and celery: a process uses its API, then starts and replaces workers."""
    ended = run_program(f"""
blocking, api = BentoAPI(progress=False), AsyncBentoAPI(progress=False)
async def get():
    return (await api.get("svc")).version
blocking.list(), asyncio.run(get())

def work(number):
    store = BentoStore({str(tmp_path)!r} + f"/worker-{{number}}/bentos")
    async def serve():
        bento = await api.pull("svc", bento_store=store)
        return [bento.tag.version, *await asyncio.gather(get(), get())]
    found = asyncio.run(serve())
    assert found == ["v1", "v1", "v1"] == [blocking.get("svc").version] * 3 and blocking.push("svc:v1").skipped
    sys.exit(0)

def start(number):
    return os.fork() or work(number)

workers = [start(number) for number in range(2)]
print(*map(outcome, workers))
blocking.list()
print(outcome(start(2)), asyncio.run(get()))
blocking.close()
""")

    assert ended == Ended(0, "0 0\n0 v1\n", "")


TRANSFERS = {
    "push": 'api.push("big:v1")',
    "pull": 'api.pull("big:v1", bento_store=BentoStore({store!r}))',
}


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("child_ends_by", ["exit", "_exit"])
def test_fork_in_blocking_call_is_safe(
    pushed: Path, home: Path, tmp_path: Path, transfer: str, child_ends_by: str
) -> None:
    big = make_bento(home, "big:v1", {"weights": random_bytes(12_000_000, 1)})
    store = tmp_path / "elsewhere"
    call = TRANSFERS[transfer].format(store=str(store))
    ended = run_program(f"""
under_way, go_on, forked = threading.Event(), threading.Event(), []
def listen(event):
    if event.phase == "transferring" and event.tag == "big:v1" and event.bytes_done and not under_way.is_set():
        under_way.set()
        go_on.wait(30)  # the fork is in the middle of the transfer
api = BentoAPI(progress=listen)
if {transfer!r} == "pull":
    with BentoAPI(progress=False) as first: first.push("big:v1")
def work():
    {call}
thread = threading.Thread(target=work)
thread.start()
under_way.wait(30)
pid = os.fork()
if not pid:
    assert api.get("svc").version == "v1"
    assert api.pull("svc", bento_store=BentoStore({str(tmp_path / "child")!r})).tag.version == "v1"
    {"sys.exit(0)" if child_ends_by == "exit" else "os._exit(0)"}
print(outcome(pid))
go_on.set()
thread.join(30)
print(thread.is_alive(), api.get("big").upload_status)
api.close()
""")

    assert ended == Ended(0, "0\nFalse success\n", "")
    if transfer == "pull":
        assert contents(store / "big/v1") == contents(big)
    assert contents(tmp_path / "child/svc/v1") == contents(pushed)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_fork_in_async_call_is_safe(pushed: Path, home: Path, tmp_path: Path, transfer: str) -> None:
    """A fork on the event loop, as by a coroutine that starts a process."""
    big = make_bento(home, "big:v1", {"weights": random_bytes(12_000_000, 1)})
    store = tmp_path / "elsewhere"
    call = TRANSFERS[transfer].format(store=str(store))
    ended = run_program(f"""
forked = []
def listen(event):
    if event.phase == "transferring" and event.tag == "big:v1" and event.bytes_done and not forked:
        forked.append(in_child(lambda: asyncio.run(use())))

async def use():
    assert (await api.get("svc")).version == "v1"
    await api.pull("svc", bento_store=BentoStore({str(tmp_path / "child")!r}))

async def main():
    global api
    if {transfer!r} == "pull":
        async with AsyncBentoAPI(progress=False) as first:
            await first.push("big:v1")
    async with AsyncBentoAPI(progress=listen) as api:
        await {call}
        print(*forked, (await api.get("big")).upload_status)

asyncio.run(main())
""")

    assert ended == Ended(0, "0 success\n", "")
    if transfer == "pull":
        assert contents(store / "big/v1") == contents(big)
    assert contents(tmp_path / "child/svc/v1") == contents(pushed)


def test_child_abort_spares_parent(pushed: Path) -> None:
    """Garbage collection in the child may abort transports, which must stay in the epoll of the parent."""
    ended = run_program("""
loop = asyncio.new_event_loop()
api = AsyncBentoAPI(progress=False, config=Config(timeouts={"api": 5}, retry={"attempts": 1}))
async def records():
    return [record.version for record in (await api.list()).items]
def abort_all():
    for transport in [*loop._transports.values()]:
        transport.abort()
print(loop.run_until_complete(records()))
print(in_child(abort_all))
print(loop.run_until_complete(records()))
loop.run_until_complete(api.aclose())
loop.close()
""")

    assert ended == Ended(0, "['v1']\n0\n['v1']\n", "")


def test_hook_abort_spares_parent(pushed: Path) -> None:
    """Hooks of the fork may abort transports, too, so the child replaces its epoll first."""
    ended = run_program("""
from async_bento._core.fork import watch_forks
loop = asyncio.new_event_loop()
class Aborting:
    def forget_parent(self):
        for transport in [*loop._transports.values()]:
            transport.abort()
hooks = [Aborting() for _ in range(20)]  # called in any order
for hook in hooks:
    watch_forks(hook)
api = AsyncBentoAPI(progress=False, config=Config(timeouts={"api": 5}, retry={"attempts": 1}))
async def records():
    return [record.version for record in (await api.list()).items]
print(loop.run_until_complete(records()))
print(in_child(lambda: None))
print(loop.run_until_complete(records()))
loop.run_until_complete(api.aclose())
loop.close()
""")

    assert ended == Ended(0, "['v1']\n0\n['v1']\n", "")


def test_calls_import_no_module(pushed: Path, tmp_path: Path) -> None:
    """A child forked during an import of another thread would wait forever on the lock of the module."""
    ended = run_program(f"""
os.environ["BENTO_CLOUD_API_ENDPOINT"] = os.environ["BENTO_CLOUD_API_ENDPOINT"].replace("127.0.0.1", "localhost")
store = BentoStore({str(tmp_path / "other/bentos")!r})
imported = {{*sys.modules}}
api = BentoAPI(progress=False)
api.push("svc:v1", force=True), api.list(), api.pull("svc:v1", bento_store=store)
print(sorted({{*sys.modules}} - imported))
api.close()
""")

    assert ended == Ended(0, "[]\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
@pytest.mark.parametrize("is_closed", [False, True], ids=["no descriptor left", "closed"])
def test_loop_without_own_epoll_is_left(monkeypatch: pytest.MonkeyPatch, is_closed: bool) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with selectors.EpollSelector() as selector, monkeypatch.context() as patch:
        if is_closed:
            selector.close()
        else:
            patch.setattr(os, "dup2", refuse)
        loop: Any = SimpleNamespace(_selector=selector)
        _separate_epoll(loop)  # in a child, which an error would end


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
def test_own_epoll_ends_with_exec() -> None:
    with selectors.EpollSelector() as selector:
        loop: Any = SimpleNamespace(_selector=selector)
        _separate_epoll(loop)
        assert not os.get_inheritable(selector.fileno())


@pytest.mark.skipif(sys.platform != "linux", reason="epoll")
def test_own_epoll_watches_same_descriptors() -> None:
    ours, other = socket.socketpair()
    with selectors.EpollSelector() as selector, ours, other:
        selector.register(ours, selectors.EVENT_READ)
        loop: Any = SimpleNamespace(_selector=selector)
        _separate_epoll(loop)
        assert selector.select(0) == []
        other.send(b"x")
        assert [key.fileobj for key, _ in selector.select(0)] == [ours]


def test_forked_child_has_own_lock() -> None:
    """Another thread of the parent held the lock at the fork."""

    async def stop() -> None:
        pass

    loop = LoopThread(stop)
    with loop._lock:
        loop.forget_parent()
        assert not loop._lock.locked()

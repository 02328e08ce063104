"""A process that is stopped, forked or killed during its work does not block other processes."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from async_bento.errors import TransferError
from async_bento.store import items, locks, store as store_module
from async_bento.store.store import BentoStore
from async_bento.transfer.tar.writer import TreeWriter
from tests.builders import MiB, make_bento, random_bytes
from tests.eventually import eventually
from tests.fault_proxy import GET, refuse
from tests.store.real_places import outcome
from tests.store.stores import NEW, OLD, latest, put, spawn

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Iterator

    from tests.fixtures import MakeClient, StartProxy

pytestmark = pytest.mark.processes

LONG = 30  # seconds; a call without waits ends sooner on any machine

HOLDER = """
import sys, time
from pathlib import Path
from async_bento.store.store import BentoStore
from tests.store.stores import put

def stop(path, target, replace=Path.replace):
    if Path(target).name == "latest":  # which is written under the lock of the name
        print("holding", flush=True)
        time.sleep(600)
    return replace(path, target)

Path.replace = stop
put(BentoStore(sys.argv[1]), "svc:v0")
"""


@contextmanager
def name_lock_held(store: BentoStore) -> Iterator[subprocess.Popen[str]]:
    """Stop another process while it changes an item of `svc`."""
    with spawn(HOLDER, store.path) as process:
        try:
            assert process.stdout.readline() == "holding\n"
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def name_locked(store: BentoStore) -> AsyncIterator[subprocess.Popen[str]]:
    """The same on an event loop."""
    held = name_lock_held(store)
    try:
        yield await asyncio.to_thread(held.__enter__)
    finally:
        await asyncio.to_thread(held.__exit__, None, None, None)


async def test_cancelled_pull_ends_lock_wait(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_bento(home)
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1")
    api = make_client(proxy, elsewhere)
    async with name_locked(BentoStore(elsewhere / "bentos")) as process:
        pull = asyncio.create_task(api.pull("svc:v1"))
        await asyncio.sleep(3)  # enough for the pull to reach the lock, of either version
        pull.cancel()
        ended, _ = await asyncio.wait([pull], timeout=LONG)
        process.kill()
    await asyncio.wait([pull])
    assert ended == {pull}


async def test_client_close_ends_lock_wait(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path
) -> None:
    make_bento(home)
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1")
    api = make_client(proxy, elsewhere)
    async with name_locked(BentoStore(elsewhere / "bentos")) as process:
        pull = asyncio.create_task(api.pull("svc:v1"))
        await asyncio.sleep(3)  # enough for the pull to reach the lock, of either version
        closing = asyncio.create_task(api.aclose())
        ended, _ = await asyncio.wait([closing], timeout=LONG)
        process.kill()
    await asyncio.gather(closing, pull, return_exceptions=True)
    assert ended == {closing}


def test_name_lock_timeout_is_error(store, monkeypatch):
    monkeypatch.setattr(store_module, "_NAME_TIMEOUT", 0.5, raising=False)
    put(store, "svc:v1")
    with name_lock_held(store) as process, ThreadPoolExecutor(2) as threads:
        found = [
            threads.submit(outcome, lambda: store.delete("svc:v1")),
            threads.submit(outcome, lambda: put(store, "svc:v2")),
        ]
        timer = threading.Timer(LONG, process.kill)
        timer.start()
        messages = [str(each.result()) for each in found]
        timer.cancel()
    assert messages[0].startswith(f"StoreError: cannot delete svc:v1 from {store.path}: another process has held ")
    assert messages[1].startswith(f"StoreError: cannot write svc:v2 to {store.path}: another process has held ")


def test_get_latest_of_locked_name(store):
    put(store, "svc:v1", OLD)
    with name_lock_held(store) as process:
        (store.path / "svc" / "latest").unlink()
        timer = threading.Timer(LONG, process.kill)
        timer.start()
        assert store.get("svc").tag.version == "v1"
        still_held = process.poll() is None
        timer.cancel()
    assert still_held


def test_commit_reads_are_constant(store, monkeypatch):
    """The lock of a name is held meanwhile."""
    read = []
    read_info = items.read_info

    def count(*arguments):
        read.append(arguments)
        return read_info(*arguments)

    monkeypatch.setattr(items, "read_info", count)
    counts = []
    for number in range(40):
        put(store, f"iris:v{number}", OLD)
        if number in {1, 39}:
            read.clear()
            put(store, "iris:v0", NEW, replace=True)
            read.clear()
            put(store, "iris:v0", NEW, replace=True)
            counts.append(len(read))
            put(store, "iris:v0", OLD, replace=True)
    assert counts[0] == counts[1]
    assert latest(store) == "v9"  # of equal age, the highest


FORKER = """
import os, sys, time
from async_bento.store.store import BentoStore

def interrupted():
    with BentoStore().stage(resume="iris:v1") as staged:
        BentoStore.state_of(staged).touch()
        (staged / "half").touch()
        if (child := os.fork()) == 0:
            time.sleep(600)
        print(child, flush=True)
        raise ValueError

try:
    interrupted()
except ValueError:
    pass
try:
    with BentoStore().stage(resume="iris:v1") as staged:
        print((staged / "half").exists(), flush=True)
except Exception as error:
    print(error, flush=True)
"""


@pytest.mark.posix("fork")
def test_forked_child_holds_no_lock(store):
    with spawn(FORKER) as process:
        child = int(process.stdout.readline())
        try:
            assert process.stdout.readline() == "True\n"
        finally:
            os.kill(child, 9)


KILLED_PARENT = """
import os, time
from async_bento.store.store import BentoStore
lock = BentoStore().lock("iris:v1")
lock.acquire()
if (child := os.fork()) == 0:
    print(os.getpid(), flush=True)
    time.sleep(600)
time.sleep(600)
"""


@pytest.mark.posix("fork")
def test_killed_parent_releases_lock(store):
    with spawn(KILLED_PARENT) as process:
        child = int(process.stdout.readline())
        try:
            lock = store.lock("iris:v1")
            assert not lock.acquire(timeout=0)
            process.kill()
            process.wait()
            assert lock.acquire(timeout=5)
            lock.release()
        finally:
            os.kill(child, 9)


ENDING_CHILD = """
import os
from async_bento.store.store import BentoStore
stage = BentoStore().stage()
staged = stage.__enter__()
if (child := os.fork()) == 0:
    stage.__exit__(None, None, None)  # as its collection does when the child exits
    os._exit(0)
os.waitpid(child, 0)
print(staged.exists(), flush=True)
"""


@pytest.mark.posix("fork")
def test_forked_child_keeps_parent_dir(store):
    with spawn(ENDING_CHILD) as process:
        assert process.stdout.readline() == "True\n"


def test_slow_recover_blocks_no_pull(store, home, monkeypatch):
    left = home / "tmp" / "async-bento-kept-bentos+iris+v1"
    (left / "item" / "half").mkdir(parents=True)
    removing, may_remove, rmtree = threading.Event(), threading.Event(), shutil.rmtree

    def remove_slowly(path, **options):
        if Path(path, "item", "half").exists():
            removing.set()
            may_remove.wait(LONG)
        rmtree(path, **options)

    def stage():
        with store.stage(resume="iris:v1") as staged:
            return list(staged.iterdir())

    monkeypatch.setattr("shutil.rmtree", remove_slowly)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(put, store, "rose:v1")
        assert removing.wait(LONG)
        try:
            assert outcome(stage) == []
        finally:
            may_remove.set()
        assert other.result().tag.version == "v1"


KILLED_COMMIT = """
import os, sys
from pathlib import Path
from async_bento.store.store import BentoStore
from tests.store.stores import OLD, put

def kill(path, target, rename=Path.rename):
    rename(path, target)
    if Path(target).name == "v0":
        os.kill(os.getpid(), 9)

Path.rename = kill
put(BentoStore(sys.argv[1]), "iris:v0", OLD)
"""


def test_recover_keeps_valid_latest(store):
    put(store, "iris:v1", NEW)
    with spawn(KILLED_COMMIT, store.path) as process:
        process.wait()
    with store.stage():
        assert (store.path / "iris" / "v0").is_dir()
        assert (store.path / "iris" / "latest").exists()
    assert latest(store) == "v1"


def test_removed_lock_file_is_no_lock(store):
    """A waiter has opened the file of the lock; the release of the lock removes this file."""
    turns, inside = [], threading.Lock()

    def work(number):
        for _ in range(50):
            with store.lock("iris:v1"):
                assert inside.acquire(blocking=False), "two threads hold one lock"
                turns.append(number)
                inside.release()

    with ThreadPoolExecutor(4) as threads:
        for each in [threads.submit(work, number) for number in range(4)]:
            each.result(timeout=LONG)
    assert len(turns) == 200
    unused = locks.Lock(store.path.parent / "tmp" / "unused")
    assert unused.acquire(timeout=0)
    unused.release()


async def test_cancelled_pull_ends_recover(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home)
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1")
    left = elsewhere / "tmp" / "async-bento-dead"
    left.mkdir(parents=True)
    for number in range(1000):
        (left / str(number)).touch()
    unlink = os.unlink

    def unlink_slowly(path: str, **options: int) -> None:
        if str(path).rpartition("/")[2].isdigit():
            time.sleep(0.06)
        unlink(path, **options)

    monkeypatch.setattr("os.unlink", unlink_slowly)
    pull = asyncio.create_task(make_client(proxy, elsewhere).pull("svc:v1"))
    await asyncio.sleep(3)
    pull.cancel()
    ended, _ = await asyncio.wait([pull], timeout=LONG)
    monkeypatch.undo()
    await asyncio.wait([pull])
    assert ended == {pull}


async def test_cancelled_pull_ends_sync(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home, files={str(number): b"" for number in range(200)})
    proxy = await start_proxy()
    await make_client(proxy).push("svc:v1")
    fsync, syncing = os.fsync, threading.Event()

    def fsync_slowly(descriptor: int) -> None:
        syncing.set()
        time.sleep(0.3)
        fsync(descriptor)

    monkeypatch.setattr("async_bento._core.platform.flush_filesystem", lambda _: False)
    monkeypatch.setattr("os.fsync", fsync_slowly)
    pull = asyncio.create_task(make_client(proxy, elsewhere).pull("svc:v1"))
    await eventually(syncing.is_set)
    pull.cancel()
    ended, _ = await asyncio.wait([pull], timeout=LONG)
    monkeypatch.undo()
    await asyncio.wait([pull])
    assert ended == {pull}
    assert not (elsewhere / "bentos" / "svc").exists()


async def test_cancelled_resume_closes_file(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bento(home, files={"weights": random_bytes(3 * MiB)})
    proxy = await start_proxy()
    proxy.hides_checksums = True  # a pull that verifies resumes at the start of a part
    await make_client(proxy).push("svc:v1")
    proxy.add_fault(GET, refuse(403), skip=20, times=None)
    api = make_client(proxy, elsewhere)
    with pytest.raises(TransferError):
        await api.pull("svc:v1")
    reopening, reopen = threading.Event(), TreeWriter._reopen

    def reopen_slowly(writer, file):
        reopen(writer, file)
        reopening.set()
        time.sleep(0.5)

    monkeypatch.setattr(TreeWriter, "_reopen", reopen_slowly)
    pull = asyncio.create_task(api.pull("svc:v1"))
    await eventually(reopening.is_set)
    pull.cancel()
    await asyncio.wait([pull])
    assert pull.cancelled()
    opened = await asyncio.to_thread(open_below, elsewhere)
    assert [path for path in opened if path.name == "weights"] == []


def open_below(directory: Path) -> list[Path]:
    """List the files below a directory that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(descriptor.readlink())
    return [path for path in found if path.is_relative_to(directory)]

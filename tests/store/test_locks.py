"""Locks exclude other processes and threads, and end with their process."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import anyio
import pytest

from async_bento._core.concurrency import Threads
from async_bento.errors import StoreError
from async_bento.store import locks
from tests.store.real_places import refuse_locks
from tests.store.stores import put, spawn


def test_process_lock_ends_with_kill(store):
    script = (
        "from async_bento.store.store import BentoStore\n"
        "with BentoStore().lock('iris:v1'): print('locked', flush=True); input()"
    )
    with spawn(script) as process:
        assert process.stdout.readline() == "locked\n"
        lock = store.lock("iris:v1")
        assert not lock.acquire(timeout=0)
        assert not lock.acquire(timeout=0.1)
        with store.lock("iris:v2"):
            pass
        process.kill()
    assert lock.acquire(timeout=5)
    lock.release()


def test_thread_lock_excludes_others(store):
    mine, other = store.lock("iris:v1"), store.lock("iris:v1")
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        assert one.submit(mine.acquire).result()
        assert not one.submit(other.acquire, 0).result()
        assert not two.submit(other.acquire, 0).result()
        two.submit(mine.release).result()
        assert one.submit(other.acquire).result()
        two.submit(other.release).result()


def test_thread_lock_without_flock(store, monkeypatch, caplog):
    refuse_locks(monkeypatch, errno.ENOSYS)
    mine, other = store.lock("iris:v1"), store.lock("iris:v1")
    assert mine.acquire(timeout=0)
    assert mine.acquire(timeout=0)  # which holds it already
    assert not mine.excludes_processes
    assert not other.acquire(timeout=0)
    assert store.lock("iris:v2").acquire(timeout=0)
    mine.release()
    assert other.acquire(timeout=0)
    mine.release()  # no longer held: must not release the lock of the other
    assert not mine.acquire(timeout=0)
    other.release()
    assert caplog.text.count("cannot lock files in") == 1
    assert [*mine.path.parent.iterdir()] == []


def test_lock_held_twice_is_released_once(store):
    lock = store.lock("iris:v1")
    assert lock.acquire(timeout=0)
    assert lock.acquire(timeout=0)
    assert lock.excludes_processes
    lock.release()
    with store.lock("iris:v1"):
        pass


async def test_cancelled_wait_for_lock_ends(store, monkeypatch):
    waiting, threads = threading.Event(), Threads(1)

    def sleep(seconds):
        waiting.set()
        time.sleep(seconds)

    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    held, wanted = await asyncio.to_thread(lambda: [store.lock("iris:v1") for _ in range(2)])
    await asyncio.to_thread(held.acquire)
    task = asyncio.create_task(threads.run(wanted.acquire))
    await asyncio.to_thread(waiting.wait)
    task.cancel()
    with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(held.release)
    threads.close()


def test_lock_io_error_raises(store, monkeypatch):
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(StoreError, match=r"cannot lock .*/async-bento-lock-.*: Input/output error"):
        store.lock("iris:v1").acquire()


def test_released_lock_survives_fork(store):
    """The child would close its descriptor, whose number another file may have by then."""
    lock = store.lock("iris:v1")
    lock.acquire()
    assert lock in locks._held

    lock.release()

    assert lock not in locks._held


def test_lock_holder_changes_item(store):
    with store.lock("iris:v1"):
        put(store, "iris:v1")
        store.delete("iris:v1")


@pytest.mark.posix("words of POSIX in errors")
def test_lock_without_directory_raises(store, home):
    home.mkdir()
    (home / "bentos").touch()
    with pytest.raises(StoreError, match=r"cannot write to .*bentos: File exists"):
        store.lock("iris:v1").acquire()

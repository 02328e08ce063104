"""Threads, task groups, locks and budgets."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from async_bento._core import concurrency
from async_bento._core.concurrency import (
    ByteBudget,
    Threads,
    background_task,
    for_each,
    gathered,
    hold_lock,
    run_abandonable,
    shielded,
)
from async_bento._core.thread_pool import DaemonThreadPool

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.executor.shutdown()


async def turns(count: int = 10) -> None:
    """Run all ready callbacks of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


class Gate:
    """A blocking call that signals its start and ends on request."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.open = threading.Event()
        self.ended = False

    def __call__(self, result: object = None) -> object:
        self.started.set()
        assert self.open.wait(30)
        self.ended = True
        if isinstance(result, Exception):
            raise result
        return result

    async def has_started(self) -> None:
        await asyncio.to_thread(self.started.wait, 30)


# Threads.run


async def test_threads_run_in_own_thread(threads: Threads) -> None:
    def where(*args: int, **kwargs: int) -> tuple[object, ...]:
        return threading.current_thread().name, args, kwargs

    name, args, kwargs = await threads.run(where, 1, two=2)
    assert str(name).startswith("async-bento")
    assert (args, kwargs) == ((1,), {"two": 2})


async def test_threads_reraise_error(threads: Threads) -> None:
    with pytest.raises(KeyError, match="gone"):
        await threads.run({}.__getitem__, "gone")


async def test_threads_stay_within_limit(threads: Threads) -> None:
    gates = [Gate() for _ in range(3)]
    running = [asyncio.ensure_future(threads.run(gate)) for gate in gates]
    await gates[0].has_started()
    await gates[1].has_started()
    await turns()
    assert not gates[2].started.is_set()
    for gate in gates:
        gate.open.set()
    await asyncio.gather(*running)


async def test_cancelled_call_awaits_thread(threads: Threads) -> None:
    gate = Gate()
    call = asyncio.ensure_future(threads.run(gate))
    await gate.has_started()
    call.cancel()
    await turns()
    assert not call.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert gate.ended


async def test_cancelled_twice_awaits_thread(threads: Threads) -> None:
    gate = Gate()
    call = asyncio.ensure_future(threads.run(gate))
    await gate.has_started()
    for _ in range(3):
        call.cancel()
        await turns()
    assert not call.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_cancelled_scope_awaits_thread(threads: Threads) -> None:
    gate = Gate()
    left = False

    async def call() -> None:
        nonlocal left
        try:
            await threads.run(gate)
        finally:
            left = True

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await gate.has_started()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await turns()
        assert not left
        gate.open.set()
    assert gate.ended
    assert left


async def test_cancelled_call_drops_error(threads: Threads) -> None:
    gate = Gate()
    contexts: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
    call = asyncio.ensure_future(threads.run(gate, OSError("no space")))
    await gate.has_started()
    call.cancel()
    await turns()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    del call
    await turns()  # the loop itself holds it until the next
    gc.collect()  # the loop reports unretrieved exceptions now
    assert contexts == []


async def occupy(threads: Threads) -> list[Gate]:
    """Let both threads run until the gates open."""
    gates = [Gate(), Gate()]
    for gate in gates:
        threads.executor.submit(gate)
        await gate.has_started()
    return gates


async def test_cancelled_call_in_queue_never_runs(threads: Threads) -> None:
    gates, ran = await occupy(threads), list[str]()
    call = asyncio.ensure_future(threads.run(ran.append, "cancelled"))
    await turns()

    call.cancel()
    await turns()

    assert call.cancelled()  # while both threads are busy
    for gate in gates:
        gate.open.set()
    await asyncio.gather(*(threads.run(ran.append, "next") for _ in range(3)))
    assert ran == ["next"] * 3


async def test_threads_closed_end() -> None:
    threads = Threads(1)
    thread = await threads.run(threading.current_thread)
    threads.close()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError):
        await threads.run(int)


class ClosingQueue:
    """A queue in which another thread tries to close the pool before each job."""

    def __init__(self, pool: DaemonThreadPool) -> None:
        self._pool = pool
        self._queue = pool._workers.queue

    def put(self, job: Any) -> None:
        if job is not None:
            closing = threading.Thread(target=self._pool.shutdown)
            closing.start()
            closing.join(0.2)  # it waits for the job, unless the pool is at fault
        self._queue.put(job)

    def get(self) -> Any:
        return self._queue.get()


def test_pool_close_keeps_submitted_job() -> None:
    pool = DaemonThreadPool(1)
    pool._workers.queue = ClosingQueue(pool)  # type: ignore[assignment]

    assert pool.submit(int).result(timeout=5) == 0


def test_pool_reuses_idle_thread() -> None:
    pool = DaemonThreadPool(3, "reused")
    for _ in range(3):
        pool.submit(int).result(timeout=30)
    started = [thread for thread in threading.enumerate() if thread.name.startswith("reused")]
    pool.shutdown()

    assert [thread.name for thread in started] == ["reused-0"]
    assert started[0].daemon  # or an idle thread would keep the interpreter from its exit


def test_pool_works_until_exit() -> None:
    """Functions of `atexit` that were registered first are called last."""
    script = """
import atexit
atexit.register(lambda: print(pool.submit(int).result(30)))
from async_bento._core.thread_pool import DaemonThreadPool
pool = DaemonThreadPool(1)
pool.submit(int).result(30)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


# run_abandonable


async def test_abandoned_call_is_left(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "_CANCEL_POLL_INTERVAL", 0.001)
    gate, found = Gate(), list[threading.Thread]()

    def function() -> None:
        found.append(threading.current_thread())
        gate()

    call = asyncio.ensure_future(threads.run(run_abandonable, function))
    await gate.has_started()
    call.cancel()
    await asyncio.wait([call])

    assert call.cancelled()
    assert not gate.ended
    assert found[0].daemon  # or the call would keep the interpreter from its exit
    gate.open.set()
    await asyncio.to_thread(found[0].join, 30)


async def test_abandonable_call_has_result(threads: Threads) -> None:
    assert await threads.run(run_abandonable, lambda: "done") == run_abandonable(lambda: "done") == "done"
    with pytest.raises(KeyError, match="gone"):
        await threads.run(run_abandonable, lambda: {}["gone"])


# Threads.entered


@contextmanager
def noting(notes: list[str], *, swallow: bool = False) -> Iterator[str]:
    notes.append(f"in {threading.current_thread().name[:11]}")
    try:
        yield "value"
    except ValueError as error:
        notes.append(f"saw {error}")
        if not swallow:
            raise
    finally:
        notes.append(f"out {threading.current_thread().name[:11]}")


async def test_entered_runs_in_threads(threads: Threads) -> None:
    notes: list[str] = []
    async with threads.entered(noting(notes)) as value:
        assert value == "value"
        assert notes == ["in async-bento"]
    assert notes == ["in async-bento", "out async-bento"]


async def test_entered_passes_error_to_exit(threads: Threads) -> None:
    notes: list[str] = []
    with pytest.raises(ValueError, match="wrong"):
        async with threads.entered(noting(notes)):
            raise ValueError("wrong")
    assert notes == ["in async-bento", "saw wrong", "out async-bento"]


async def test_entered_may_suppress_error(threads: Threads) -> None:
    notes: list[str] = []
    async with threads.entered(noting(notes, swallow=True)):
        raise ValueError("wrong")
    assert notes[-1] == "out async-bento"


async def test_entered_cancelled_body_exits(threads: Threads) -> None:
    notes: list[str] = []
    inside = asyncio.Event()

    async def body() -> None:
        async with threads.entered(noting(notes)):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert notes == ["in async-bento", "out async-bento"]


async def test_entered_cancelled_enter_exits(threads: Threads) -> None:
    gate = Gate()
    notes: list[str] = []

    @contextmanager
    def slow() -> Iterator[None]:
        gate()
        notes.append("in")
        yield
        notes.append("out")

    async def body() -> None:
        async with threads.entered(slow()):
            notes.append("body")

    task = asyncio.ensure_future(body())
    await gate.has_started()
    task.cancel()
    await turns()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert notes == ["in", "out"]


async def test_entered_cancelled_in_queue_no_enter(threads: Threads) -> None:
    gates, notes = await occupy(threads), list[str]()

    async def body() -> None:
        async with threads.entered(noting(notes)):
            raise AssertionError

    task = asyncio.ensure_future(body())
    await turns()
    task.cancel()
    await turns()

    assert task.cancelled()
    for gate in gates:
        gate.open.set()
    await threads.run(int)
    assert notes == []


async def test_entered_failed_enter_no_exit(threads: Threads) -> None:
    class Locked:
        def __enter__(self) -> None:
            raise OSError("locked")

        def __exit__(self, *_: object) -> None:
            raise AssertionError("it was never entered")

    with pytest.raises(OSError, match="locked"):
        async with threads.entered(Locked()):
            raise AssertionError


# finish


async def test_shielded_returns_result() -> None:
    assert await shielded(asyncio.sleep(0, "result")) == "result"


async def test_shielded_raises_error() -> None:
    async def fail() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"):
        await shielded(fail())


async def test_shielded_cancelled_completes() -> None:
    go, ended = asyncio.Event(), False

    async def work() -> None:
        nonlocal ended
        await go.wait()
        ended = True

    task = asyncio.ensure_future(shielded(work()))
    await turns()
    task.cancel()
    await turns()
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_shielded_awaitable_cancelled() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)
    with pytest.raises(asyncio.CancelledError):
        await shielded(future)


# gathered


async def test_gathered_returns_results_and_errors() -> None:
    async def fail() -> None:
        raise OSError

    first, second, third = await gathered(asyncio.sleep(0, "first"), fail(), asyncio.sleep(0, "third"))

    assert (first, third) == ("first", "third")
    assert isinstance(second, OSError)


@pytest.mark.parametrize("finished_first", [False, True])
async def test_gathered_cancelled_scope_ends(*, finished_first: bool) -> None:
    cancelled: list[str] = []

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("waiting")
            raise

    async def finish() -> None:
        pass

    calls = [finish(), wait_for_ever()] if finished_first else [wait_for_ever(), finish()]
    with anyio.move_on_after(60) as scope:
        asyncio.get_running_loop().call_later(0.01, scope.cancel)
        await gathered(*calls)

    assert scope.cancel_called
    assert cancelled == ["waiting"]


# for_each


async def test_for_each_stays_within_limit() -> None:
    running, most, done = 0, 0, list[int]()

    async def operation(item: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await turns(3)
        running -= 1
        done.append(item)

    await for_each(operation, range(10), 3)
    assert sorted(done) == list(range(10))
    assert most == 3


async def test_for_each_takes_items_lazily() -> None:
    taken: list[int] = []
    go = asyncio.Event()

    def items() -> Iterator[int]:
        for item in range(5):
            taken.append(item)
            yield item

    async def operation(item: int) -> None:
        await go.wait()

    task = asyncio.ensure_future(for_each(operation, items(), 2))
    await turns()
    assert taken == [0, 1]
    go.set()
    await task
    assert taken == [0, 1, 2, 3, 4]


async def test_for_each_no_items_returns() -> None:
    await for_each(asyncio.sleep, [], 3)


async def test_for_each_error_cancels_others() -> None:
    ended: list[str] = []

    async def operation(item: str) -> None:
        try:
            if item == "fails":
                await turns(3)
                raise KeyError("first")
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    with pytest.raises(KeyError, match="first"):
        await for_each(operation, ["waits", "fails", "waits too", "never started"], 3)
    assert sorted(ended) == ["fails", "waits", "waits too"]


async def test_for_each_raises_first_error() -> None:
    async def operation(item: int) -> None:
        if item == 1:
            raise KeyError("first")
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("second")

    with pytest.raises(KeyError, match="first"):
        await for_each(operation, [0, 1, 2], 3)


async def test_for_each_raises_iterator_error() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        await for_each(lambda item: asyncio.sleep(0), items(), 2)


async def test_for_each_cancelled_ends_tasks() -> None:
    ended: list[int] = []

    async def operation(item: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    task = asyncio.ensure_future(for_each(operation, range(3), 3))
    await turns()
    before = asyncio.all_tasks()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1, 2]
    assert len(before) - len(asyncio.all_tasks()) == 4


# Locks and background tasks


class BusyLock:
    """A lock that another process holds during the first attempts."""

    def __init__(self, attempts: float) -> None:
        self.attempts = attempts
        self.timeouts: list[float | None] = []
        self.releases = 0

    def acquire(self, timeout: float | None = None) -> bool:
        self.timeouts.append(timeout)
        return len(self.timeouts) > self.attempts

    def release(self) -> None:
        self.releases += 1


async def test_hold_lock_never_blocks_thread(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting thread delays the message, and the end of a cancelled call."""
    monkeypatch.setattr(concurrency, "LOCK_POLL_INTERVAL", 0)
    lock, messages = BusyLock(3), list[str]()

    async with hold_lock(lock, threads, lambda: messages.append("waiting")):
        assert (lock.timeouts, messages, lock.releases) == ([0, 0, 0, 0], ["waiting"], 0)

    assert lock.releases == 1


async def test_hold_lock_pauses_between_tries(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses, sleep = list[float](), asyncio.sleep

    async def note(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    async with hold_lock(BusyLock(3), threads, lambda: None):
        assert pauses == [concurrency.LOCK_POLL_INTERVAL] * 2


@pytest.mark.parametrize(("refusals", "expected"), [(0, []), (1, []), (2, ["waiting"])])
async def test_hold_lock_reports_second_refusal(threads: Threads, refusals: int, expected: list[str]) -> None:
    lock, messages = BusyLock(refusals), list[str]()

    async with hold_lock(lock, threads, lambda: messages.append("waiting")):
        assert (lock.timeouts, messages) == ([0] * (refusals + 1), expected)


async def test_hold_lock_cancel_releases(threads: Threads) -> None:
    lock, is_waiting = BusyLock(float("inf")), asyncio.Event()

    async def hold() -> None:
        async with hold_lock(lock, threads, is_waiting.set):
            raise AssertionError

    task = asyncio.create_task(hold())
    await is_waiting.wait()
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    assert lock.releases == 1


async def test_background_task_cancel_cleans_up() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await turns()
            steps.append("cleaned up")

    async with background_task(work()) as task:
        await turns()
        assert not task.done()
    steps.append("left")

    assert steps == ["cleaned up", "left"]
    assert task.cancelled()


async def test_background_task_error_is_raised() -> None:
    async def fail() -> None:
        raise KeyError("gone")

    async with background_task(fail()) as task:
        await turns()
    with pytest.raises(KeyError, match="gone"):
        await task


# A budget


async def test_byte_budget_exact_share() -> None:
    budget = ByteBudget(10)

    assert not budget.would_block(10)
    await budget.acquire(10)

    assert budget.free == 0


async def test_byte_budget_exact_waiter() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    waiting = asyncio.create_task(budget.acquire(10))
    await turns()

    budget.release(10)
    await turns()

    assert waiting.done()
    assert budget.free == 0


async def test_budget_serves_in_order() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6)
    order: list[str] = []

    async def take(name: str, share: int) -> None:
        await budget.acquire(share)
        order.append(name)

    waiting = [asyncio.create_task(take("large", 8)), asyncio.create_task(take("small", 1))]
    await asyncio.sleep(0)
    assert budget.would_block(1)  # the first waiter is served first
    assert order == []

    budget.release(6)
    await asyncio.gather(*waiting)
    assert order == ["large", "small"]
    assert budget.free == 1


async def test_budget_skips_cancelled_waiter() -> None:
    budget = ByteBudget(10)
    await budget.acquire(6)
    first, second = asyncio.create_task(budget.acquire(8)), asyncio.create_task(budget.acquire(2))
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.wait([first, second])

    assert first.cancelled()
    assert budget.free == 2


async def test_budget_cancelled_grant_released() -> None:
    budget = ByteBudget(10)
    await budget.acquire(10)
    waiting = asyncio.create_task(budget.acquire(4))
    await asyncio.sleep(0)

    budget.release(10)
    waiting.cancel()
    await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert budget.free == 10


@pytest.mark.parametrize("share", [5, 20])
async def test_budget_release_keeps_cancellation(share: int) -> None:
    """A release between the cancellation of a waiter and the next step of its task drops the waiter."""
    budget = ByteBudget(20)
    await budget.acquire(20)
    cancelled, next_one = asyncio.create_task(budget.acquire(5)), asyncio.create_task(budget.acquire(share))
    await asyncio.sleep(0)

    cancelled.cancel()
    budget.release(20)
    await asyncio.wait([cancelled, next_one])

    assert cancelled.cancelled()
    assert budget.free == 20 - share
    budget.release(share)
    assert not budget.would_block(20)

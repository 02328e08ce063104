"""Worker threads for blocking calls, shielding from cancellation, byte budgets and bounded task groups.

Blocking calls never run in asyncio's default executor: its `min(32, cpu + 4)` threads belong to the application, and it
refuses work once the main thread has ended. A thread cannot be cancelled, so a cancelled call waits for its thread to
finish; otherwise the thread could write into a directory that the clean-up has removed. Functions that may take long
call `check_cancelled` on the way. A cancelled call that still waits for a thread does not run, so calls that clean up
are `shielded`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio
from anyio.from_thread import start_blocking_portal

from async_bento._core.thread_pool import DaemonThreadPool, start_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
    from contextlib import AbstractContextManager

    from anyio.from_thread import BlockingPortal
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

# anyio imports its backend on first use, perhaps in a thread: a child that is forked meanwhile would have half of it.
import_module("anyio._backends._asyncio")

LOCK_POLL_INTERVAL = 0.2
"""Seconds between two attempts to acquire a lock that another process holds."""

_CANCEL_POLL_INTERVAL = 0.2  # seconds until a call that cannot be stopped is left alone

_cancelled: ContextVar[threading.Event] = ContextVar("cancelled")
"""Set once the call that a worker thread runs for was cancelled."""


def check_cancelled() -> None:
    """Raise CancelledError in a worker thread whose call was cancelled; do nothing elsewhere."""
    cancelled = _cancelled.get(None)
    if cancelled is not None and cancelled.is_set():
        raise asyncio.CancelledError


def run_abandonable(function: Callable[[], T]) -> T:
    """Call a function that changes nothing and cannot be stopped, in a thread that a cancelled call leaves behind."""
    if _cancelled.get(None) is None:  # no worker thread of `Threads`, so nothing cancels the call
        return function()
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised by the future
            future.set_exception(error)

    start_thread(threading.Thread(target=run, name="async-bento-wait", daemon=True))
    while not wait([future], _CANCEL_POLL_INTERVAL).done:
        check_cancelled()
    return future.result()


class Threads:
    """At most `limit` worker threads for disk access and hashing."""

    def __init__(self, limit: int) -> None:
        self.executor = DaemonThreadPool(limit)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in a worker thread; cancellation propagates after a started function has returned."""
        return await _completed(*self._submit(function, *args, **kwargs))

    @asynccontextmanager
    async def entered(self, manager: AbstractContextManager[T]) -> AsyncGenerator[T]:
        """Enter and exit a blocking context manager in worker threads."""
        entering, cancelled = self._submit(manager.__enter__)
        try:
            value = await _completed(entering, cancelled)
        except asyncio.CancelledError:
            if not entering.cancelled() and entering.exception() is None:  # entered, and no block will exit it
                await shielded(self.run(manager.__exit__, None, None, None))
            raise
        try:
            yield value
        except BaseException as error:
            if not await shielded(self.run(manager.__exit__, type(error), error, error.__traceback__)):
                raise
        else:
            await shielded(self.run(manager.__exit__, None, None, None))

    def _submit(
        self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> tuple[Future[T], threading.Event]:
        """Submit a function; the event informs `check_cancelled` that no caller wants the result."""
        cancelled = threading.Event()

        def run() -> T:
            _cancelled.set(cancelled)  # in the context of this call alone
            return function(*args, **kwargs)

        return self.executor.submit(run), cancelled

    def close(self) -> None:
        """Stop the threads without waiting: `run` returns only after its thread is idle."""
        self.executor.shutdown(wait=False)


async def run_in_new_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one blocking function in a thread of its own, like `Threads.run`."""
    threads = Threads(1)
    try:
        return await threads.run(function, *args, **kwargs)
    finally:
        threads.close()


async def _completed(job: Future[T], cancelled: threading.Event) -> T:
    """Await a job of a worker thread; if cancelled, drop the job or wait for its thread, and raise the cancellation."""
    future = asyncio.wrap_future(job)
    try:
        await asyncio.wait([future])  # not shielded, so that a cancelled anyio scope arrives here, too
    except asyncio.CancelledError:
        cancelled.set()
        job.cancel()  # no effect once the job runs
        with suppress(asyncio.CancelledError, Exception):  # the cancellation takes precedence over the thread's error
            await shielded(future)
        raise
    return future.result()


async def shielded(awaitable: Awaitable[T]) -> T:
    """Await to completion even if cancelled, then raise the cancellation."""
    future = asyncio.ensure_future(awaitable)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # a cancelled scope cancels again in every iteration of the loop
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # marks the exception as retrieved, or asyncio would log it
        raise cancelled
    return future.result()


async def gathered(*calls: Awaitable[T]) -> list[T | BaseException]:
    """Await all calls, and return their results and errors in order; cancellation cancels the calls and propagates.

    `asyncio.gather(return_exceptions=True)` raises a new CancelledError if its last call had finished, and anyio does
    not recognize that as the cancellation of its scope.
    """
    results = asyncio.gather(*calls, return_exceptions=True)
    try:
        await asyncio.wait([results])
    except asyncio.CancelledError:
        results.cancel()
        with suppress(asyncio.CancelledError):
            await shielded(results)
        raise
    return results.result()


class ByteBudget:
    """FIFO weighted semaphore that bounds the `size` bytes held in memory; `free` is the number not held."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def would_block(self, share: int) -> bool:
        """Whether `acquire` would have to wait."""
        return bool(self._waiting) or share > self.free

    async def acquire(self, share: int) -> None:
        """Wait for `share` bytes, at most the size of the budget, and hold them until `release`."""
        if not self.would_block(share):
            self.free -= share
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((share, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(share)  # acquired and cancelled in the same iteration of the loop
            else:
                with suppress(ValueError):  # `_serve` has dropped the waiter if the same iteration released a share
                    self._waiting.remove((share, turn))
                self._serve()  # a smaller share behind this one may fit now
            raise

    def release(self, share: int) -> None:
        """Release bytes acquired before."""
        self.free += share
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            share, turn = self._waiting.popleft()
            if not turn.done():
                self.free -= share
                turn.set_result(None)


class Lock(Protocol):
    """A lock between processes. Its methods block."""

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds, None for no limit, and return whether the lock is held now."""
        ...

    def release(self) -> None:
        """Release the lock; releasing a lock that is not held does nothing."""
        ...


@asynccontextmanager
async def hold_lock(lock: Lock, threads: Threads, waiting: Callable[[], None]) -> AsyncGenerator[None]:
    """Hold a lock; `waiting` is called once if another process keeps it."""

    async def acquire() -> bool:  # polled, since a thread that waits for the lock could not be cancelled
        return await threads.run(lock.acquire, timeout=0)

    try:
        if not await acquire():
            await asyncio.sleep(LOCK_POLL_INTERVAL)  # a process that removes unused lock files holds each for a moment
            if not await acquire():
                waiting()
                while not await acquire():  # noqa: ASYNC110 - no event crosses processes
                    await asyncio.sleep(LOCK_POLL_INTERVAL)
        yield
    finally:  # also after a cancelled `acquire`, whose thread may have got the lock
        await shielded(threads.run(lock.release))


@asynccontextmanager
async def background_task(coroutine: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T]]:
    """Run a coroutine in the background of a block; the end of the block cancels its task."""
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await shielded(asyncio.gather(task, return_exceptions=True))


async def for_each(operation: Callable[[T], Awaitable[None]], items: Iterable[T], limit: int) -> None:
    """Run `operation` for each item, at most `limit` at a time; the first error cancels the others and is raised.

    No task outlives the call. Items are taken from the iterable only when a worker is free.
    """
    failures: list[Exception] = []
    waiting = iter(items)

    async def work() -> None:
        try:
            for item in waiting:
                await operation(item)
        except Exception as error:  # noqa: BLE001 - the first error is raised below
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(limit):
            group.start_soon(work)
    if failures:  # raised within the group, it would become an ExceptionGroup
        raise failures[0]


@contextmanager
def open_portal(name: str) -> Generator[BlockingPortal]:
    """Run an event loop in a thread of this name; anyio before 4.10 cannot name it."""
    with start_blocking_portal() as portal:
        portal.call(_name_thread, name)
        yield portal


def _name_thread(name: str) -> None:
    threading.current_thread().name = name

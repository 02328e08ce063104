"""Blocking work off the event loop, in threads of our own; and tasks that end together.

asyncio's default executor has `min(32, cpu + 4)` threads and belongs to the caller's code and to name resolution, so
disk work never goes there. And a thread cannot be cancelled: a call that is cancelled waits here until its thread is
done, so that no thread writes into a directory that the clean-up has removed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
    from contextlib import AbstractContextManager

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 0.2
"""How often it is looked whether another process has given a lock back."""


class Threads:
    """A bounded set of worker threads for disk work and hashing.

    Args:
        limit: How many threads at most.
    """

    def __init__(self, limit: int) -> None:
        self.executor = ThreadPoolExecutor(max_workers=limit, thread_name_prefix="async-bento")

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in a worker thread; when cancelled, wait for its end, then propagate.

        Args:
            function: What to run.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What the function returned.
        """
        return await shielded(
            asyncio.get_running_loop().run_in_executor(self.executor, partial(function, *args, **kwargs))
        )

    @asynccontextmanager
    async def entered(self, manager: AbstractContextManager[T]) -> AsyncGenerator[T]:
        """Enter and leave a blocking context manager in worker threads.

        Args:
            manager: The context manager.

        Yields:
            What it yields.
        """
        entering = asyncio.ensure_future(self.run(manager.__enter__))
        try:
            value = await shielded(entering)
        except asyncio.CancelledError:
            if not entering.cancelled() and entering.exception() is None:
                await shielded(self.run(manager.__exit__, None, None, None))
            raise
        try:
            yield value
        except BaseException as error:
            if not await shielded(self.run(manager.__exit__, type(error), error, error.__traceback__)):
                raise
        else:
            await shielded(self.run(manager.__exit__, None, None, None))

    def close(self) -> None:
        """Let the threads end. None has work any more when every call has returned, so there is nothing to wait for."""
        self.executor.shutdown(wait=False)


async def shielded(awaitable: Awaitable[T]) -> T:
    """Await something that must not be left half-done: cancellation is held back until it has ended.

    Args:
        awaitable: A coroutine, task or future.

    Returns:
        Its result.

    Raises:
        asyncio.CancelledError: When cancelled meanwhile, after the awaitable's end.
    """
    future = asyncio.ensure_future(awaitable)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # or a cancelled scope would knock again in every turn of the loop
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # retrieved: the cancellation is what the caller hears of
        raise cancelled
    return future.result()


class ByteBudget:
    """A number of bytes that may be held at once, taken in shares of any size. Who waits first, is served first.

    Args:
        size: The bytes.

    Attributes:
        free: The bytes that nobody holds.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def would_block(self, share: int) -> bool:
        """Whether `acquire` would have to wait."""
        return bool(self._waiting) or share > self.free

    async def acquire(self, share: int) -> None:
        """Take a share, when it is free.

        Args:
            share: The bytes, no more than there are in all.
        """
        if not self.would_block(share):
            self.free -= share
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((share, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(share)  # it was had in the same moment
            else:
                self._waiting.remove((share, turn))
                self._serve()
            raise

    def release(self, share: int) -> None:
        """Give a share back.

        Args:
            share: The bytes.
        """
        self.free += share
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free:
            share, turn = self._waiting.popleft()
            if not turn.done():
                self.free -= share
                turn.set_result(None)


class Lock(Protocol):
    """A lock that other processes respect. Its methods block."""

    def acquire(self, timeout: float | None = None) -> bool:
        """Try to take it.

        Args:
            timeout: How long to wait for it, in seconds; None for as long as it takes.

        Returns:
            Whether it was taken.
        """
        ...

    def release(self) -> None:
        """Give it back; nothing happens where it is not held."""
        ...


@asynccontextmanager
async def hold_lock(lock: Lock, threads: Threads, waiting: Callable[[], None]) -> AsyncGenerator[None]:
    """Hold a lock; asked for again and again, since a thread that waits for it could not be cancelled.

    Args:
        lock: The lock.
        threads: Where it is asked for.
        waiting: Called once, where another holds it.

    Yields:
        Nothing.
    """
    try:
        if not await threads.run(lock.acquire, timeout=0):
            waiting()
            while not await threads.run(lock.acquire, timeout=0):  # noqa: ASYNC110 - no event crosses processes
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        yield
    finally:
        await shielded(threads.run(lock.release))


@asynccontextmanager
async def background_task(coroutine: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T]]:
    """Do something beside something else; at the block's end it is cancelled, if it has not ended.

    Args:
        coroutine: What to do.

    Yields:
        Its task.
    """
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await shielded(asyncio.gather(task, return_exceptions=True))


async def for_each(operation: Callable[[T], Awaitable[None]], items: Iterable[T], limit: int) -> None:
    """Do something for each item, a few at a time, until all are done or one has failed; no task outlives the call.

    Args:
        operation: What to do with one item.
        items: The items; each is taken when its turn comes.
        limit: How many at a time.

    Raises:
        Exception: What failed first, bare; the others have been cancelled and have ended.
    """
    failures: list[Exception] = []
    waiting = iter(items)

    async def work() -> None:
        try:
            for item in waiting:
                await operation(item)
        except Exception as error:  # noqa: BLE001 - whatever it is, the first one is raised below
            failures.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(limit):
            group.start_soon(work)
    if failures:
        raise failures[0]

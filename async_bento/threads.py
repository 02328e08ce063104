"""Blocking work off the event loop, in threads of our own.

asyncio's default executor has `min(32, cpu + 4)` threads and belongs to the caller's code and to name resolution, so
disk work never goes there. And a thread cannot be cancelled: a call that is cancelled waits here until its thread is
done, so that no thread writes into a directory that the clean-up has removed.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")


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
        return await finish(asyncio.get_running_loop().run_in_executor(self.executor, partial(function, *args, **kwargs)))

    def close(self) -> None:
        """Let the threads end. None has work any more when every call has returned, so there is nothing to wait for."""
        self.executor.shutdown(wait=False)


async def finish(awaitable: Awaitable[T]) -> T:
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

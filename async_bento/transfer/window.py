"""PendingRanges: the requested ranges of a tar, each of which holds its bytes of the window of all downloads."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

from async_bento._core.concurrency import shielded
from async_bento.transfer.http import ByteRange

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from async_bento._core.concurrency import ByteBudget
    from async_bento.transfer.adaptive import AdaptiveRanges

T = TypeVar("T")


class PendingRanges(Generic[T]):
    """The ranges that `fetch` was called for and whose results were not taken yet."""

    def __init__(
        self, fetch: Callable[[ByteRange], Coroutine[Any, Any, T]], pace: AdaptiveRanges, window: ByteBudget
    ) -> None:
        self._fetch = fetch
        self._pace = pace
        self._window = window
        self._ranges: deque[tuple[asyncio.Task[T], int]] = deque()  # with the bytes that each holds

    def __bool__(self) -> bool:
        return bool(self._ranges)

    @property
    def first(self) -> asyncio.Task[T]:
        """The task of the first range."""
        return self._ranges[0][0]

    @property
    def running(self) -> list[asyncio.Task[T]]:
        """The tasks of the ranges that have not arrived yet."""
        return [task for task, _ in self._ranges if not task.done()]

    async def request(self, start: int, stop: int) -> int:
        """Request ranges from `start` on, as many as pace and window allow, and return where the next one starts.

        The window is waited for only while none of it is held, so that items that share it never wait for each other.
        """
        while start < stop:
            size = min(self._pace.size, stop - start)
            if self and (len(self.running) >= self._pace.concurrency or self._window.would_block(size)):
                break
            await self._window.acquire(size)
            task = asyncio.create_task(self._fetch(ByteRange(start, start + size)))
            self._ranges.append((task, size))
            start += size
        return start

    def release_first(self) -> None:
        """Remove the first range, whose result was taken."""
        self._window.release(self._ranges.popleft()[1])

    async def aclose(self) -> None:
        """Cancel the ranges that are left."""
        for task, _ in self._ranges:
            task.cancel()
        # The window is released after the tasks, which hold its bytes until they end.
        await shielded(asyncio.gather(*(task for task, _ in self._ranges), return_exceptions=True))
        while self._ranges:
            self.release_first()

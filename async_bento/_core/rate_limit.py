"""A token bucket for bytes, which all transfers of a client share."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_BURST = 0.125
"""Seconds of unused rate that are kept: short pauses do not lower the average, and long ones cause no burst."""

_MIN_STEP = 4096  # bytes


class RateLimit:
    """Lets `rate` bytes pass per second, in the order of the calls; one bucket may serve several event loops."""

    def __init__(
        self,
        rate: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.step = max(_MIN_STEP, int(rate * _BURST))
        """Bytes that should pass at once: with more, parallel transfers would stop and go in turns."""
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free = clock()  # when all bytes so far have passed

    async def acquire(self, count: int) -> None:
        """Wait until `count` more bytes may pass."""
        now, share = self._clock(), count / self._rate
        start = max(self._free, now - _BURST)
        self._free = start + share  # before the wait: later calls queue behind this one
        if start > now:
            try:
                await self._sleep(start - now)
            except BaseException:
                self._free -= share  # the bytes do not pass
                raise

"""The watchdog of a transfer: it finds requests that make no progress."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from async_bento._core import platform

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    import anyio

_CHECKS_PER_STALL = 10  # how often the watchdog looks within the stall timeout


class Watchdog:
    """Cancels a request in which no byte moves, from before it has a connection to the end of the response.

    aiohttp has no timeout for a server that stops reading, and none that a byte of a header now and then does not
    restart. `moved` returns how far the request is: for an upload what the peer has acknowledged, so that a connection
    of one byte per second counts as alive, however much the buffers on the way hold. `patience` returns the seconds
    for which no byte may move, None while the peer is not waited for.

    It counts its checks, not seconds: after a pause of the whole process, the peer has not been silent.
    """

    def __init__(
        self,
        scope: anyio.CancelScope,
        stall: float,
        patience: Callable[[], float | None],
        moved: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.exceeded = 0.0
        """Seconds without a byte after which the request was cancelled."""
        self.reached = moved()
        """How far the request was; once it has ended, `moved` no longer knows."""
        self._scope = scope
        self._interval = stall / _CHECKS_PER_STALL
        self._patience = patience
        self._moved = moved
        self._still = 0.0
        self._is_waiting = True
        self._next = self._schedule()

    def stop(self) -> None:
        """Stop watching."""
        self._next.cancel()

    def rest(self) -> None:
        """Do not count until `waiting`: the peer is not waited for."""
        self._is_waiting = False

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Count from 0 in this block, and rest after it."""
        self._is_waiting, self._still = True, 0.0
        try:
            yield
        finally:
            self._is_waiting = False

    def _schedule(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._interval, self._check)

    def _check(self) -> None:
        moved, patience = self._moved(), self._patience()
        if moved != self.reached or patience is None or not self._is_waiting:
            self.reached, self._still = moved, 0.0
        else:
            self._still += self._interval
            if self._still >= patience:
                self.exceeded = patience
                self._scope.cancel()
                return
        self._next = self._schedule()


def unacknowledged(transport: asyncio.WriteTransport) -> int | None:
    """Bytes in the kernel that the peer has not acknowledged (tcp(7)); None where the system does not report them."""
    if transport.is_closing():
        return 0
    connection = transport.get_extra_info("socket")
    return None if connection is None else platform.unacknowledged(connection)

"""How large the ranges of a pull are, and how many are on their way: by what has come, and how fast.

Small ranges over many connections fill a link that gives each connection little; large ones over few spare the
requests where one connection would do. Nobody says beforehand which link it is, so the first ranges are small, and
what they took is measured. Pure: the clock is the caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_bento.config import MiB

if TYPE_CHECKING:
    from async_bento.config import Transfer

SECONDS_A_RANGE = 0.125
"""How long a range should take: several round trips over most links, so that little time goes by between two."""

SMALLEST_RANGE = MiB
"""Of a link that gives a connection less, in bytes: each range costs a request, at most storages money too."""

FIRST_AT_ONCE = 8
"""Ranges on their way before anything is known: a loopback is full with them."""

_SHARE = 0.3  # of the latest range in what is known of the rate
_WORTH = 1.1  # how many times as fast it must have become for more ranges to have been worth it
_CALM = 1.0  # seconds in which the refusals of a busy storage count as one


class Pace:
    """What a pull goes by.

    Args:
        transfer: The bounds.

    Attributes:
        size: What the next range should ask for, in bytes.
        at_once: How many ranges may be on their way.
    """

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._largest = transfer.range_in_window
        self.size = min(SMALLEST_RANGE, self._largest)
        self.at_once = min(FIRST_AT_ONCE, self._most)
        self._rate = 0.0
        self._best = 0.0
        self._came = 0
        self._bytes = 0
        self._since: float | None = None
        self._refused: float | None = None

    @property
    def _most(self) -> int:
        return max(1, min(self._transfer.concurrency, self._transfer.window // self.size))

    def came(self, size: int, seconds: float, now: float) -> None:
        """A range has come.

        Args:
            size: Its bytes.
            seconds: How long it took, from its request.
            now: The time, in seconds.
        """
        rate = size / max(seconds, 1e-6)
        self._rate = rate if not self._rate else (1 - _SHARE) * self._rate + _SHARE * rate
        self.size = self._nearest(self._rate * SECONDS_A_RANGE)
        self.at_once = min(self.at_once, self._most)
        if self._since is None:
            self._since = now - seconds
        self._came += 1
        self._bytes += size
        if self._came >= self.at_once:
            self._judge(self._bytes / max(now - self._since, 1e-6))
            self._since, self._came, self._bytes = now, 0, 0

    def _nearest(self, wanted: float) -> int:
        """The nearest size; each is twice the last, since buffers of any size would leave holes in memory."""
        size = min(SMALLEST_RANGE, self._largest)
        while size < self._largest and size * 2**0.5 < wanted:
            size *= 2
        return min(size, self._largest)

    def refused(self, now: float) -> None:
        """The storage has said that it is busy.

        Args:
            now: The time, in seconds.
        """
        if self._refused is None or now - self._refused > _CALM:
            self.at_once = max(1, self.at_once // 2)
        self._refused = now

    def _judge(self, rate: float) -> None:
        """As many ranges as are on their way at once have come; may there be more?"""
        if self._refused is not None:
            self.at_once = min(self._most, self.at_once + 1)  # carefully: it has been too much before
        elif rate > _WORTH * self._best:
            self._best = rate
            self.at_once = min(self._most, 2 * self.at_once)

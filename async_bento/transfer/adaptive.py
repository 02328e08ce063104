"""The size and number of concurrent ranges of a download, adapted to the measured rate.

Many small ranges fill a link that limits each connection; few large ranges save requests where one connection fills the
link. The first ranges are small, and the time they take decides. Pure: callers pass the time in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_bento.config import MiB

if TYPE_CHECKING:
    from async_bento.config import Transfer

RANGE_SECONDS = 0.125
"""How long a range should take: several round trips on most links, so that little time passes between two ranges."""

MIN_RANGE = MiB
"""The smallest range in bytes: each range costs a request, and most storages charge for requests."""

INITIAL_CONCURRENCY = 8
"""Ranges in flight before any rate is known; as many saturate a loopback."""

_SMOOTHING = 0.3  # weight of the latest range in the average rate
_WORTHWHILE = 1.1  # more ranges must raise the rate by this factor to be kept
_THROTTLE_WINDOW = 1.0  # seconds in which refusals of a busy storage count as one


class AdaptiveRanges:
    """Decides `size`, the bytes of the next range, and `concurrency`, how many ranges may be in flight."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._max_size = transfer.range_in_window
        self.size = min(MIN_RANGE, self._max_size)
        self.concurrency = min(INITIAL_CONCURRENCY, self._max_concurrency)
        self._rate = 0.0
        self._best = 0.0
        self._ranges = 0
        self._bytes = 0
        self._since: float | None = None
        self._throttled: float | None = None

    @property
    def _max_concurrency(self) -> int:
        return min(self._transfer.concurrency, self._transfer.window // self.size)

    def record(self, size: int, seconds: float, now: float) -> None:
        """Record a range of `size` bytes that arrived `seconds` after its request."""
        rate = size / max(seconds, 1e-6)
        self._rate = rate if not self._rate else (1 - _SMOOTHING) * self._rate + _SMOOTHING * rate
        self.size = self._nearest_size(self._rate * RANGE_SECONDS)
        self.concurrency = min(self.concurrency, self._max_concurrency)
        if self._since is None:
            self._since = now - seconds  # the first round starts with its first request, the next with the adjustment
        self._ranges += 1
        self._bytes += size
        if self._ranges >= self.concurrency:
            self._adjust(self._bytes / max(now - self._since, 1e-6))
            self._since, self._ranges, self._bytes = now, 0, 0

    def throttle(self, now: float) -> None:
        """Halve the concurrency: the storage replied that it is busy."""
        if self._throttled is None or now - self._throttled > _THROTTLE_WINDOW:
            self.concurrency = max(1, self.concurrency // 2)
        self._throttled = now

    def _nearest_size(self, wanted: float) -> int:
        """The nearest power-of-two multiple of the smallest range: buffers of arbitrary sizes would fragment memory."""
        size = min(MIN_RANGE, self._max_size)
        while size < self._max_size and size * 2**0.5 < wanted:  # the geometric mean of this size and the next
            size *= 2
        return min(size, self._max_size)

    def _adjust(self, rate: float) -> None:
        """Raise the concurrency after a round of ranges, if the last raise paid off."""
        if self._throttled is not None:
            self.concurrency = min(self._max_concurrency, self.concurrency + 1)  # slowly: more was too much before
        elif rate > _WORTHWHILE * self._best:
            self._best = rate
            self.concurrency = min(self._max_concurrency, 2 * self.concurrency)

"""The size and the number of concurrent ranges of a pull, by the measured rate."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, strategies as st

from async_bento import Transfer
from async_bento.transfer.adaptive import AdaptiveRanges
from tests.builders import KiB, MiB
from tests.properties import unhurried


def pull(pace: AdaptiveRanges, total: int, each: float, altogether: float, latency: float) -> tuple[float, int]:
    """Simulate a pull over a link with a rate per connection and in total; return the time and the peak concurrency."""
    now, start, most = 0.0, 0, 0
    on_their_way: deque[tuple[float, int, float]] = deque()
    while start < total or on_their_way:
        while start < total and len(on_their_way) < pace.concurrency:
            rate = min(each, altogether / (len(on_their_way) + 1))
            on_their_way.append((now + latency + pace.size / rate, pace.size, now))
            start += pace.size
        most = max(most, len(on_their_way))
        end, size, began = min(on_their_way)
        on_their_way.remove((end, size, began))
        now = max(now, end)
        pace.record(size, end - began, now)
    return now, most


@pytest.mark.parametrize(
    ("each", "altogether", "latency", "size", "at_once"),
    [
        (5 * MiB, 1e12, 0.1, MiB, 32),  # a low rate per connection: many connections
        (20 * MiB, 1e12, 0.04, 2 * MiB, 28),
        (1e9, 1e9, 0.0005, 8 * MiB, 8),  # one connection suffices: few large ranges
    ],
    ids=["5 MB/s", "20 MB/s", "loopback"],
)
def test_ranges_grow_until_link_is_full(
    each: float, altogether: float, latency: float, size: int, at_once: int
) -> None:
    pace = AdaptiveRanges(Transfer())

    pull(pace, 512 * MiB, each, altogether, latency)

    assert pace.size == pytest.approx(size, abs=MiB)
    assert pace.concurrency == pytest.approx(at_once, abs=6)


def test_ranges_outpace_one_connection() -> None:
    took, _ = pull(AdaptiveRanges(Transfer()), 256 * MiB, 5 * MiB, 1e12, 0.1)
    assert took < 256 / 5 / 10


def test_ranges_stop_at_max_throughput() -> None:
    pace = AdaptiveRanges(Transfer(range_size=MiB))

    _, most = pull(pace, 512 * MiB, 100 * MiB, 100 * MiB, 0.01)

    assert most <= 16


@pytest.mark.parametrize(("second", "concurrency"), [(22, 16), (23, 32)])
def test_ranges_double_after_faster_round(second: int, concurrency: int) -> None:
    """A round has as many ranges as may be in flight, and counts if it is more than a tenth faster."""
    pace = AdaptiveRanges(Transfer())

    for size in (2, 2, 2, 2, 2, 2, 2, 6):
        assert pace.concurrency == 8
        pace.record(size, 1, 1)
    for size in (*[1] * 15, second - 15):
        assert pace.concurrency == 16
        pace.record(size, 1, 2)

    assert pace.concurrency == concurrency


def test_range_size_follows_average_rate() -> None:
    pace = AdaptiveRanges(Transfer())
    sizes = []
    for rate in (64, 16, 16):
        pace.record(rate * MiB, 1, 1)
        sizes.append(pace.size)
    assert sizes == [8 * MiB, 8 * MiB, 4 * MiB]


@unhurried
@given(
    st.integers(64 * KiB, 16 * MiB),
    st.integers(MiB, 128 * MiB),
    st.integers(1, 64),
    st.lists(st.tuples(st.integers(1, 16 * MiB), st.floats(0, 100), st.booleans()), max_size=60),
)
def test_ranges_stay_within_bounds(
    range_size: int, window: int, concurrency: int, events: list[tuple[int, float, bool]]
) -> None:
    transfer = Transfer(range_size=range_size, window=window, concurrency=concurrency)
    pace, now = AdaptiveRanges(transfer), 0.0
    for size, seconds, busy in events:
        now += seconds
        if busy:
            pace.throttle(now)
        else:
            pace.record(size, seconds, now)
        assert 0 < pace.size <= min(range_size, window)
        assert 1 <= pace.concurrency <= concurrency
        assert pace.concurrency * pace.size <= window or pace.concurrency == 1


def test_ranges_halve_when_throttled() -> None:
    pace = AdaptiveRanges(Transfer(range_size=MiB))
    assert pace.concurrency == 8

    pace.throttle(0.0)
    pace.throttle(0.1)  # the same event
    assert pace.concurrency == 4
    pace.throttle(5.0)
    pace.throttle(6.0)
    assert pace.concurrency == 2

    for number in range(2):
        pace.record(MiB, 0.1, 7.0 + number)
    assert pace.concurrency == 3
    for _ in range(200):
        pace.record(MiB, 0.1, 9.0)
    assert pace.concurrency > 8


def test_throttled_ranges_min_one() -> None:
    pace = AdaptiveRanges(Transfer())
    for number in range(10):
        pace.throttle(10.0 * number)
    assert pace.concurrency == 1

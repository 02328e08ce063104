"""The token bucket of `Transfer.rate_limit`."""

from __future__ import annotations

import asyncio

import pytest

from async_bento._core.rate_limit import RateLimit


class Clock:
    """A clock that advances only by sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps = 0
        self.cancels = False

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if self.cancels:
            raise asyncio.CancelledError
        self.now = max(self.now, self.now + seconds)
        self.sleeps += 1


async def test_rate_limit_paces_bytes() -> None:
    clock = Clock()
    limit = RateLimit(1000, clock, clock.sleep)
    for _ in range(10):
        await limit.acquire(500)
    assert clock.now == pytest.approx(4.5)
    assert clock.sleeps == 9  # the first pass without a wait


async def test_rate_limit_bounds_burst() -> None:
    clock = Clock()
    limit = RateLimit(1000, clock, clock.sleep)
    await limit.acquire(1000)
    clock.now = 100
    for _ in range(3):
        await limit.acquire(1000)
    assert clock.now == pytest.approx(102 - 0.125)


async def test_rate_limit_cancel_refunds() -> None:
    clock = Clock()
    limit = RateLimit(1000, clock, clock.sleep)
    await limit.acquire(1000)
    clock.cancels = True
    with pytest.raises(asyncio.CancelledError):
        await limit.acquire(50_000)
    clock.cancels = False
    await limit.acquire(1)
    assert clock.now == pytest.approx(1)


def test_rate_limit_steps_are_small() -> None:
    assert [RateLimit(rate).step for rate in (1024, 80_000, 8_000_000)] == [4096, 10_000, 1_000_000]

"""The ranges in flight, which share a window of bytes."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento._core.concurrency import ByteBudget
from async_bento.transfer.window import PendingRanges

if TYPE_CHECKING:
    from async_bento.transfer.http import ByteRange


async def wait_for_ever(_: ByteRange) -> None:
    await asyncio.Event().wait()


async def fetch(byte_range: ByteRange) -> ByteRange:
    return byte_range


@pytest.mark.parametrize(("concurrency", "window", "requested"), [(3, 100, 30), (5, 25, 20), (9, 100, 35)])
async def test_window_limits_ranges(concurrency: int, window: int, requested: int) -> None:
    budget = ByteBudget(window)
    pace: Any = SimpleNamespace(size=10, concurrency=concurrency)

    async with aclosing(PendingRanges(wait_for_ever, pace, budget)) as pending:
        assert not pending
        assert await pending.request(0, 35) == requested
        assert len(pending.running) == -(-requested // 10)
        assert pending
        assert budget.free == window - requested
        assert await pending.request(requested, 35) == requested

    assert not pending
    assert budget.free == window


async def test_window_returns_ranges_in_order() -> None:
    budget = ByteBudget(100)
    pace: Any = SimpleNamespace(size=10, concurrency=9)

    async with aclosing(PendingRanges(fetch, pace, budget)) as pending:
        assert await pending.request(5, 28) == 28
        ranges = []
        while pending:
            ranges.append(await pending.first)
            pending.release_first()

    assert ranges == [(5, 15), (15, 25), (25, 28)]
    assert budget.free == 100

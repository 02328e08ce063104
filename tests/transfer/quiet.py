"""When a client has come to rest, and what it leaves behind: tasks, connections."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_bento import AsyncBentoAPI

_SERVERS = (
    "_accept_connection2",
    "ClientRequest.write_bytes",
    "RequestHandler.",
    "FaultProxy.",
    "Api.",
    "Records.",
    "Blobs.",
)


def tasks() -> set[asyncio.Task[object]]:
    """The tasks that run, but for those of the servers of this test."""
    return {
        task
        for task in asyncio.all_tasks()
        if not any(name in getattr(task.get_coro(), "__qualname__", "") for name in _SERVERS)
        and not any("/registry/" in frame.f_code.co_filename for frame in task.get_stack())
    }


async def round_trips(api: AsyncBentoAPI, count: int = 4) -> None:
    """Long enough for whatever is on its way to arrive at the proxy."""
    for _ in range(count):
        await api._resources.client.current_user()


@asynccontextmanager
async def nothing_left(api: AsyncBentoAPI) -> AsyncIterator[None]:
    """See that what is done within leaves no task and no connection in use."""
    before = tasks()
    yield
    left = tasks() - before
    assert not left, left
    for session in api._resources.client._session._connections._sessions.values():
        assert session.connector is not None
        assert not session.connector._acquired
    pool = api._resources.pool
    transfer = api._resources.config.transfer
    assert pool.slots._value == transfer.concurrency
    assert pool.window.free == transfer.window

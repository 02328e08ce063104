"""Checks that a client leaves no tasks and no connections in use."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from async_bento import AsyncBentoAPI

_in_server: ContextVar[bool] = ContextVar("in_server", default=False)
_of_servers: WeakSet[asyncio.Task[Any]] = WeakSet()


@contextmanager
def serving() -> Iterator[None]:
    """Mark the tasks of servers started in the block; each task inherits the mark of its creator.

    The code of a task does not show its owner: a library closes a database connection in a separate task.
    """
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is None:
        loop.set_task_factory(create_task)
    token = _in_server.set(True)
    try:
        yield
    finally:
        _in_server.reset(token)


def create_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Create a task, and record those of servers: before Python 3.12, a task does not show its context."""
    task = asyncio.Task(coroutine, loop=loop, **options)
    if _in_server.get():
        _of_servers.add(task)
    return task


def tasks() -> set[asyncio.Task[Any]]:
    """Return the running tasks, except those of servers."""
    return {task for task in asyncio.all_tasks() if not _is_of_server(task)}


def _is_of_server(task: asyncio.Task[Any]) -> bool:
    if sys.version_info >= (3, 12):  # aiohttp creates eager tasks without the loop
        return task.get_context().get(_in_server, False)
    return task in _of_servers


async def round_trips(api: AsyncBentoAPI, count: int = 4) -> None:
    """Seconds; enough for all sent requests to reach the proxy."""
    for _ in range(count):
        await api._resources.client.current_user()


@asynccontextmanager
async def nothing_left(api: AsyncBentoAPI) -> AsyncIterator[None]:
    """Check that the block leaves no task and no connection in use."""
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

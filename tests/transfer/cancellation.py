"""Cancels calls at every await, and checks for leftovers: tasks, threads, files, connections, records.

By default only some awaits are tested; with `EVERY_AWAIT=1`, all of them (`nox -s every-await`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from async_bento import NotFoundError
from tests.builders import KiB
from tests.platforms import IS_WINDOWS
from tests.transfer.quiet import nothing_left
from tests.transfer.steps import Steps, counting_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from async_bento import AsyncBentoAPI
    from tests.fault_proxy import FaultProxy

    Call = Callable[[], Awaitable[object]]
    Way = Callable[[Call, Steps], Awaitable[None]]

ALL = bool(os.environ.get("EVERY_AWAIT"))
SAMPLES = 5
PART = 64 * KiB


# Cancellation


async def by_task(call: Call, steps: Steps) -> None:
    with steps.counted():
        task = asyncio.ensure_future(call())
    steps.act = task.cancel
    with suppress(asyncio.CancelledError):
        await task
        steps.at = 0  # it had finished


async def by_scope(call: Call, steps: Steps) -> None:
    async def run() -> None:
        with anyio.CancelScope() as scope:
            steps.act = scope.cancel
            await call()
            steps.at = 0

    with steps.counted():
        task = asyncio.ensure_future(run())
    await task


async def by_group(call: Call, steps: Steps) -> None:
    async def one() -> None:
        await call()
        steps.at = 0

    async def run() -> None:
        async with anyio.create_task_group() as group:
            steps.act = group.cancel_scope.cancel
            group.start_soon(one)

    with steps.counted():
        task = asyncio.ensure_future(run())
    await task


async def by_deadline(call: Call, steps: Steps) -> None:
    """The call sees a cancellation, which `fail_after` replaces by a TimeoutError."""

    async def run() -> None:
        with anyio.fail_after(60) as scope:
            steps.act = lambda: setattr(scope, "deadline", -1)
            await call()
            steps.at = 0

    with steps.counted():
        task = asyncio.ensure_future(run())
    with suppress(TimeoutError):
        await task
        assert not steps.at


async def by_wait_for(call: Call, steps: Steps) -> None:
    """A timeout of asyncio: `wait_for` awaits the call directly, like `asyncio.timeout`, or in a task."""
    expired = asyncio.get_running_loop().create_future()

    def expire() -> None:
        if not expired.done():
            expired.set_result(None)

    steps.act = expire
    with steps.counted():
        task = asyncio.ensure_future(call())
    await asyncio.wait([task, expired], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        steps.at = 0
        task.result()
        return
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(task, 0)


WAYS: dict[str, Way] = {
    "task": by_task,
    "scope": by_scope,
    "group": by_group,
    "fail_after": by_deadline,
    "wait_for": by_wait_for,
}


async def places(call: Callable[[Steps], Awaitable[None]]) -> list[Steps]:
    """Return the awaits to test, after a first run that counts the awaits of the call."""
    steps = Steps()
    await call(steps)
    count = steps.count
    if ALL:
        return [Steps(at, woken=woken) for at in range(1, count + 1) for woken in (False, True)]
    return [Steps(1 + index * (count - 1) // SAMPLES, woken=bool(index % 2)) for index in range(SAMPLES + 1)]


# Leftovers


@dataclass
class Books:
    """The parts that journals recorded, by the journal's path."""

    noted: dict[Path, set[int]] = field(default_factory=dict)


def descriptors() -> Iterator[tuple[int, str]]:
    """Return the file descriptors of this process with their targets; empty on Windows, which does not list them."""
    if IS_WINDOWS:
        return
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            yield int(link.name), str(link.readlink())


def open_files(below: Path) -> list[str]:
    """Return the open files and directories of this process below a path."""
    return [target for _, target in descriptors() if target.startswith(f"{below}/")]


def connections(proxy: FaultProxy) -> int:
    """Count the sockets of this process that are connected to a proxy."""
    port, count = int(proxy.endpoint.rpartition(":")[2]), 0
    for descriptor, target in descriptors():
        if target.startswith("socket:"):
            with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
                count += connection.getpeername()[1:2] == (port,)
    return count


def busy_threads() -> list[str]:
    """Return the threads that run code of a client."""
    busy = []
    for thread in threading.enumerate():
        if thread.name == "async-bento-hub":  # its last step reports the result, so the thread may still run
            thread.join(0.5)
    frames = sys._current_frames()
    for thread in threading.enumerate():
        files = []
        frame = frames.get(thread.ident or 0) if thread.name.startswith("async-bento") else None
        while frame is not None:
            if not frame.f_code.co_filename.endswith("/thread_pool.py"):  # an idle thread waits there
                files.append(frame.f_code.co_filename)
            frame = frame.f_back
        if any("/async_bento/" in file for file in files) and not any("/registry/" in file for file in files):
            busy.append(thread.name)
    return busy


@contextmanager
def ends_soon() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 15


async def cancelled(
    api: AsyncBentoAPI,
    call: Call,
    steps: Steps,
    way: Way,
    proxy: FaultProxy,
    home: Path,
    *targets: tuple[AsyncBentoAPI, FaultProxy],
) -> None:
    """Cancel a call at an await, and check that it ends and closes everything; `targets` are those of a copy."""
    assert not open_files(home)
    with counting_loop(), ends_soon():
        async with nothing_left(api), AsyncExitStack() as stack:
            for target, _ in targets:
                await stack.enter_async_context(nothing_left(target))
            await way(call, steps)
        assert not steps.unfinished()
    assert not busy_threads()
    assert not open_files(home)
    for client, _ in ((api, proxy), *targets):
        await client.aclose()
    for _ in range(3):  # a closed transport closes its socket in a later iteration of the loop
        await asyncio.sleep(0)
    assert not any(connections(each) for _, each in ((api, proxy), *targets))


async def statuses(api: AsyncBentoAPI, tags: dict[str, str]) -> dict[str, str]:
    """Return the upload status of each existing record."""
    found = {}
    for tag, kind in tags.items():
        with suppress(NotFoundError):
            found[tag] = (await (api if kind == "bento" else api.models).get(tag)).upload_status
    return found


async def settled(api: AsyncBentoAPI, tags: dict[str, str]) -> dict[str, str]:
    """Return the same once the registry has noticed broken connections."""
    until = time.monotonic() + 1
    while True:
        found = await statuses(api, tags)
        if not {*found.values()} & {"pending", "uploading"} or time.monotonic() > until:
            return found
        await asyncio.sleep(0.02)

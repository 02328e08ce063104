"""Checks that a test leaves no descriptor, no thread and no task."""

from __future__ import annotations

import asyncio.runners
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

TESTS = Path(__file__).parent
SECONDS = 5
"""Seconds until a stopped thread must have ended and closed its descriptors."""

OF_THE_PROCESS = {"tqdm_monitor"}
"""Threads of libraries that start at the first use and never end."""

HANDLER = "RequestHandler.start"
"""The task of aiohttp that waits for the rest of a body to which a server has responded, until its loop ends."""

_allowed: set[object] = set()
_tasks: list[str] = []


def held() -> set[object]:
    """Return the threads and, on Linux, the descriptors of this process with their targets."""
    found: set[object] = {thread for thread in threading.enumerate() if thread.name not in OF_THE_PROCESS}
    if sys.platform == "linux":
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - a tenth of the time of a Path, for every test
            with suppress(OSError):  # the descriptor of the list itself
                found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))  # noqa: PTH115
    return found


def name_of(task: asyncio.Task[Any]) -> str:
    return getattr(task.get_coro(), "__qualname__", "")


@pytest.fixture(scope="session", autouse=True)
def tasks_seen_at_the_end_of_a_loop() -> Iterator[None]:
    """Note the tasks that the loop of a test cancels when it ends."""
    cancel = asyncio.runners._cancel_all_tasks

    def note(loop: asyncio.AbstractEventLoop) -> None:
        if threading.current_thread() is threading.main_thread():
            _tasks.extend(repr(task) for task in asyncio.all_tasks(loop) if name_of(task) != HANDLER)
        cancel(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.runners, "_cancel_all_tasks", note)
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, tasks_seen_at_the_end_of_a_loop: None) -> Iterator[None]:
    """Compare the resources of this process after a test and its other fixtures with those before."""
    if not request.path.is_relative_to(TESTS):  # such as a nested test run
        yield
        return
    _tasks.clear()
    _allowed.clear()
    _allowed.update(held())
    yield
    until = time.monotonic() + SECONDS
    while (left := held() - _allowed) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left, f"a test must not leave {left}"
    assert not _tasks, f"a test must not leave {_tasks}"


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """Allow the resources of fixtures with a wider scope, which may be set up during a test."""
    before = held() if fixturedef.scope != "function" else set()
    result = yield
    if fixturedef.scope != "function":
        _allowed.update(held() - before)
    return result

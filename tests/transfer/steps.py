"""Counts the awaits of a call, and acts at a chosen one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tests.transfer.quiet import create_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_counting: ContextVar[Steps | None] = ContextVar("counting", default=None)


class Steps:
    """Counts the waits of all tasks of a call.

    Args:
        at: The number of the wait at which `act` is called, from 1; 0 for none.
        woken: Whether `act` is called once the awaited result is ready, before the task resumes.

    Attributes:
        act: The action.
        count: The number of waits so far.
        tasks: The counted tasks.
    """

    def __init__(self, at: int = 0, *, woken: bool = False) -> None:
        self.at = at
        self.woken = woken
        self.act: Callable[[], object] = lambda: None
        self.count = 0
        self.tasks: list[asyncio.Task[Any]] = []

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """The counted tasks that are not done."""
        return [task for task in self.tasks if not task.done()]

    def note(self, waited_for: object) -> None:
        self.count += 1
        if self.count != self.at:
            return
        if self.woken and isinstance(waited_for, asyncio.Future):
            waited_for.add_done_callback(lambda _: self.act())  # before the task's own
        else:
            self.act()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the tasks started in the block, and the tasks that they start."""
        token = _counting.set(self)
        try:
            yield
        finally:
            _counting.reset(token)


class _Counted(Coroutine[Any, Any, Any]):
    def __init__(self, inner: Any, steps: Steps) -> None:
        self._inner = inner
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __await__(self) -> Any:
        return self._inner.__await__()

    def send(self, value: Any) -> Any:
        return self._noted(self._inner.send(value))

    def throw(self, *error: Any) -> Any:
        return self._noted(self._inner.throw(*error))

    def close(self) -> None:
        self._inner.close()

    def _noted(self, waited_for: object) -> object:
        self._steps.note(waited_for)
        return waited_for


@contextmanager
def counting_loop() -> Iterator[None]:
    """Install the task factory of `Steps.counted` on the running loop."""

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        steps = _counting.get()
        if steps is None:
            return create_task(loop, coroutine, **options)
        steps.tasks.append(asyncio.Task(_Counted(coroutine, steps), loop=loop, **options))
        return steps.tasks[-1]

    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(make)
    try:
        yield
    finally:
        loop.set_task_factory(before)

"""What a transfer tells its listener.

A listener is anything that can be called with a `ProgressEvent`, so a plain function will do. It is called on the
event loop, so it must return at once. One that raises is told no more; the transfer goes on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__name__)

Phase = Literal["planning", "transferring", "extracting", "finishing", "done", "skipped", "failed"]
"""Where an item is: being looked at, on its way, all here and not yet unpacked, being closed, or ended in one of three
ways."""

ENDED: frozenset[Phase] = frozenset({"done", "skipped", "failed"})


@dataclass(frozen=True)
class ProgressEvent:
    """How far one bento or model has come.

    Attributes:
        direction: Which way it goes.
        kind: `bento` or `model`.
        tag: Which one.
        phase: Where it is.
        bytes_done: Bytes of its tar that have moved. It shrinks when a part is sent again.
        bytes_total: Bytes of its tar, or None while that is not known.
        message: What a person may want to know of it, like `already there`; else empty.
        bytes_resumed: Those of `bytes_done` that an interrupted transfer had moved.
        parts_done: Parts that have arrived, those of an interrupted push included.
        parts_total: Parts of a push in parts; None for all else.
        retries: How often something of it was tried again.
    """

    direction: Literal["push", "pull"]
    kind: Literal["bento", "model"]
    tag: str
    phase: Phase
    bytes_done: int = 0
    bytes_total: int | None = None
    message: str = ""
    bytes_resumed: int = 0
    parts_done: int = 0
    parts_total: int | None = None
    retries: int = 0


class ProgressListener(Protocol):
    """Anything that can be called with a `ProgressEvent`."""

    def __call__(self, event: ProgressEvent, /) -> None:
        """Take note of an event; must not block.

        Args:
            event: How far an item has come.
        """
        ...


@dataclass
class Progress:
    """The progress of one item, kept by the transfer and told to the listener.

    Attributes:
        direction: Which way the item goes.
        kind: `bento` or `model`.
        tag: Which one.
        listener: Who is told; None for nobody.
        bytes_done: Bytes that have moved.
        bytes_total: Bytes there are, or None while that is not known.
        phase: Where the item is.
        note: What is to be said of it at its end.
        bytes_resumed: Those of the bytes that an interrupted transfer had moved.
        parts_done: Parts that have arrived.
        parts_total: Parts of a push in parts.
        retries: How often something of it was tried again.
    """

    direction: Literal["push", "pull"]
    kind: Literal["bento", "model"]
    tag: str
    listener: ProgressListener | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    phase: Phase = field(default="planning", init=False)
    note: str = ""
    bytes_resumed: int = field(default=0, init=False)
    parts_done: int = field(default=0, init=False)
    parts_total: int | None = field(default=None, init=False)
    retries: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        self._tell()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.phase not in ENDED:
            self.enter("done" if error is None else "failed", self.note if error is None else _reason(error))

    def enter(self, phase: Phase, message: str = "", *, bytes_total: int | None = None) -> None:
        """Go on to another phase.

        Args:
            phase: The phase.
            message: What a person may want to know of it.
            bytes_total: Bytes there are, where it is known now.
        """
        self.phase = phase
        if bytes_total is not None:
            self.bytes_total = bytes_total
        self._tell(message)

    def advance(self, count: int) -> None:
        """Count bytes that have moved.

        Args:
            count: How many; negative to take bytes back that must move again.
        """
        self.bytes_done += count
        self._tell()

    def resume(self, count: int, total: int) -> None:
        """Go on where an interrupted transfer has stopped.

        Args:
            count: Bytes that it had moved.
            total: Bytes there are.
        """
        self.bytes_done += count
        self.bytes_resumed = count
        self.enter("transferring", f"resuming at {100 * count // total} %", bytes_total=total)

    def start_afresh(self, why: str) -> None:
        """Move all bytes again.

        Args:
            why: Why those that have moved are of no use.
        """
        self.bytes_done = self.bytes_resumed = self.parts_done = 0
        self.parts_total = None
        self.enter("transferring", f"starting afresh{why}")

    def part_arrived(self) -> None:
        """Count a part."""
        self.parts_done += 1
        self._tell()

    def retry(self, error: BaseException) -> None:
        """Count something that is tried again.

        Args:
            error: What it failed with.
        """
        self.retries += 1
        self._tell(f"trying again: {_reason(error)}")

    @contextmanager
    def attempt(self) -> Generator[Callable[[int], None]]:
        """Count the bytes of one try; if it fails they are taken back, since they must move again.

        Yields:
            What to call with each number of bytes that have moved.
        """
        counted = 0

        def count(moved: int) -> None:
            nonlocal counted
            counted += moved
            self.advance(moved)

        try:
            yield count
        except BaseException:
            if counted:
                self.advance(-counted)
            raise

    def _tell(self, message: str = "") -> None:
        if self.listener is None:
            return
        event = ProgressEvent(
            self.direction,
            self.kind,
            self.tag,
            self.phase,
            self.bytes_done,
            self.bytes_total,
            message,
            bytes_resumed=self.bytes_resumed,
            parts_done=self.parts_done,
            parts_total=self.parts_total,
            retries=self.retries,
        )
        try:
            self.listener(event)
        except Exception:
            self.listener = None
            logger.exception("The progress listener raised and is told no more of %s %s", self.kind, self.tag)


class ProgressEvents:
    """A listener whose events are awaited, by an app that has a page or a socket to tell of them.

    Who is slow misses nothing of weight: of events that differ in their numbers alone, the newest is kept. So what is
    held does not grow with the transfer.

        events = ProgressEvents()
        async with AsyncBentoAPI(progress=events) as api:
            push = asyncio.create_task(api.push("iris_classifier:latest"))
            async for event in events.until(push):
                print(event.tag, event.phase, event.bytes_done)
            result = await push
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, ...], ProgressEvent] = {}
        self._news = asyncio.Event()

    def __call__(self, event: ProgressEvent, /) -> None:
        """Keep an event until it is asked for.

        Args:
            event: How far an item has come.
        """
        key = (event.direction, event.kind, event.tag, event.phase, event.message)
        self._waiting.pop(key, None)  # the newest goes to the end
        self._waiting[key] = event
        self._news.set()

    async def until(self, task: asyncio.Future[Any]) -> AsyncGenerator[ProgressEvent]:
        """Walk the events, as they come, until a task is done. What it raises is left to who awaits it.

        Args:
            task: The task, on the running event loop.

        Yields:
            One event after the other.
        """

        def ended(_: object) -> None:
            self._news.set()

        task.add_done_callback(ended)
        try:
            while True:
                while self._waiting:
                    yield self._waiting.pop(next(iter(self._waiting)))
                if task.done():
                    return
                self._news.clear()
                await self._news.wait()
        finally:
            task.remove_done_callback(ended)


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"  # what it says of itself is for who wrote the loop
    return str(error).partition("\n")[0] or type(error).__name__


def is_watched(stream: TextIO | None = None) -> bool:
    """Whether someone looks: the stream is a terminal, or this is a notebook's kernel.

    Args:
        stream: Where bars would be drawn; standard error by default.

    Returns:
        True where a bar is worth drawing.
    """
    where = stream or sys.stderr  # None under pythonw
    return is_notebook() or (where is not None and where.isatty())


def is_notebook() -> bool:
    """Whether this is a notebook's kernel. A program that has ipykernel imported, to run notebooks, is none.

    Returns:
        True in a kernel of Jupyter's.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")

"""Progress events, and the listeners that receive them.

A listener is any callable that takes a `ProgressEvent`, so a plain function will do. It runs on the event loop and must
return at once. A listener that raises is dropped; the transfer continues.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Hashable
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__package__)


Phase = Literal["planning", "transferring", "extracting", "finishing", "done", "skipped", "failed", "interrupted"]
"""The phase of an item. `extracting`: all bytes of a pull have arrived, but are not yet extracted. `finishing`: all
bytes of a push have arrived, and the registry completes the upload. The last four are final; `interrupted`: the
transfer was cancelled."""

Direction = Literal["push", "pull", "copy", "verify", "diff"]
"""What is done with an item. `verify` and `diff` read it, and transfer nothing to a disk."""

ENDED: frozenset[Phase] = frozenset({"done", "skipped", "failed", "interrupted"})

MAX_WAITING = 10_000
"""Events that `ProgressEvents` keeps: a service that stops iterating must not fill its memory."""

_ids = itertools.count(1)


@dataclass(frozen=True)
class ProgressEvent:
    """The progress of one bento or model.

    Attributes:
        direction: `push`, `pull`, `copy`, `verify` or `diff`.
        kind: `bento` or `model`.
        tag: The tag of the bento or model. A pull of `NAME` has the tag `NAME:VERSION` once the version is known.
        phase: The phase of the transfer.
        bytes_done: Bytes of the tar transferred so far, or read by a verification. The number shrinks when a part is
            retried.
        bytes_total: Bytes of the tar, or None while the size is unknown.
        message: A note for the user, like `already pushed`; empty for most events.
        bytes_resumed: Bytes of `bytes_done` that an interrupted transfer had transferred.
        parts_done: Parts uploaded so far, including those of an interrupted push.
        parts_total: Parts of a multipart push; None for other transfers.
        retries: Retried requests so far.
        id: Identifies the transfer in this process, from its first event to its last; 0 in an event that no transfer
            sent.
    """

    direction: Direction
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
    id: int = 0


class ProgressListener(Protocol):
    """Any callable that takes a `ProgressEvent`."""

    def __call__(self, event: ProgressEvent, /) -> None:
        """Handle an event; must not block.

        Args:
            event: The progress of one bento or model.
        """
        ...


@dataclass
class Progress:
    """The progress of one item: updated by the transfer, sent to the listener; see `ProgressEvent` for the fields.

    `note` is the message of the last event, unless the transfer fails.
    """

    direction: Direction
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
    id: int = field(default_factory=lambda: next(_ids), init=False)

    def __enter__(self) -> Self:
        self._notify()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.phase in ENDED:
            return
        if error is None:
            self.enter("done", self.note)
        elif isinstance(error, Exception):
            self.enter("failed", _reason(error))
        else:  # cancelled; the message of a CancelledError is for the author of the task
            self.enter("interrupted")

    def enter(self, phase: Phase, message: str = "", *, bytes_total: int | None = None) -> None:
        """Enter a phase, with a message for the user."""
        self.phase = phase
        if bytes_total is not None:
            self.bytes_total = bytes_total
        self._notify(message)

    def advance(self, count: int) -> None:
        """Add transferred bytes; a negative number takes back bytes that must be transferred again."""
        self.bytes_done += count
        self._notify()

    def resume(self, count: int, total: int) -> None:
        """Start with `count` of `total` bytes that an interrupted transfer had transferred."""
        self.bytes_done += count
        self.bytes_resumed = count
        self.enter("transferring", f"resuming at {100 * count // total} %", bytes_total=total)

    def restart(self, reason: str) -> None:
        """Start again from the first byte; `reason` is appended to the message, so it begins with punctuation."""
        self.bytes_done = self.bytes_resumed = self.parts_done = 0
        self.parts_total = None
        self.enter("transferring", f"restarting{reason}")

    def part_arrived(self) -> None:
        """Count a completed part."""
        self.parts_done += 1
        self._notify()

    def retry(self, error: BaseException) -> None:
        """Count a retry after an error."""
        self.retries += 1
        self._notify(f"retrying: {_reason(error)}")

    @contextmanager
    def attempt(self) -> Generator[Callable[[int], None]]:
        """Yield a counter for the bytes of one attempt; a failed attempt takes its bytes back."""
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

    def _notify(self, message: str = "") -> None:
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
            id=self.id,
        )
        try:
            self.listener(event)
        except Exception:
            self.listener = None
            logger.exception(
                "the progress listener raised an error and receives no more events of %s %s", self.kind, self.tag
            )


class ProgressEvents:
    """A listener whose events are iterated, for an application that forwards them to a page or a socket.

    Slow consumers are safe: events that differ only in counters are coalesced, and of more than 10,000 waiting events
    the oldest are dropped.

        events = ProgressEvents()
        async with AsyncBentoAPI(progress=events) as api:
            push = asyncio.create_task(api.push("iris_classifier:latest"))
            async for event in events.until(push):
                print(event.tag, event.phase, event.bytes_done)
            result = await push
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[Hashable, ...], ProgressEvent] = {}
        self._arrived = asyncio.Event()

    def __call__(self, event: ProgressEvent, /) -> None:
        """Keep an event until it is iterated.

        Args:
            event: The progress of one bento or model.
        """
        key = (key_of(event), event.phase, event.message)
        self._waiting.pop(key, None)  # the newest goes to the end
        self._waiting[key] = event
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        self._arrived.set()

    async def until(self, task: asyncio.Future[Any]) -> AsyncGenerator[ProgressEvent]:
        """Iterate over events until a task is done. An error of the task is not raised here: await the task.

        Args:
            task: The task, on the running event loop.

        Yields:
            Each event, in the order of arrival.
        """

        def ended(_: object) -> None:
            self._arrived.set()

        task.add_done_callback(ended)
        try:
            while True:
                while self._waiting:
                    yield self._waiting.pop(next(iter(self._waiting)))
                if task.done():
                    return
                # No await since the last look at the events, so none is missed.
                self._arrived.clear()
                await self._arrived.wait()
        finally:
            task.remove_done_callback(ended)


def key_of(event: ProgressEvent) -> Hashable:
    """Identify the transfer of an event."""
    return event.id or (event.direction, event.kind, event.tag)


def _reason(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def is_watched(stream: TextIO | None = None) -> bool:
    """Whether progress bars have a viewer: the stream, by default stderr, is a terminal, or this is a notebook."""
    where = stream or sys.stderr  # None under pythonw
    return is_notebook() or (where is not None and where.isatty())


def is_notebook() -> bool:
    """Whether this process is a running Jupyter kernel; a program that merely imports ipykernel is not."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")

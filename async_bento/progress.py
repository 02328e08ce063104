"""What a transfer tells its listener, and the listener that draws bars.

A listener is anything that can be called with a `ProgressEvent`, so a plain function will do. It is called on the
event loop, so it must return at once. One that raises is told no more; the transfer goes on.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TextIO

from async_bento.config import KiB
from async_bento.units import human_size

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from tqdm import tqdm
    from typing_extensions import Self

logger = logging.getLogger(__name__)

Phase = Literal["planning", "transferring", "finishing", "done", "skipped", "failed"]
"""Where an item is: being looked at, on its way, being closed, or ended in one of three ways."""

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
    """

    direction: Literal["push", "pull"]
    kind: Literal["bento", "model"]
    tag: str
    phase: Phase
    bytes_done: int = 0
    bytes_total: int | None = None
    message: str = ""


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
    """

    direction: Literal["push", "pull"]
    kind: Literal["bento", "model"]
    tag: str
    listener: ProgressListener | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    phase: Phase = field(default="planning", init=False)
    note: str = ""

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
            self.direction, self.kind, self.tag, self.phase, self.bytes_done, self.bytes_total, message
        )
        try:
            self.listener(event)
        except Exception:
            self.listener = None
            logger.exception("The progress listener raised and is told no more of %s %s", self.kind, self.tag)


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


_VERBS = {"push": ("pushing", "pushed"), "pull": ("pulling", "pulled")}


class TqdmListener:
    """Draws a tqdm bar per bento or model in flight, and leaves a line for each that has ended.

    Args:
        stream: Where to draw; standard error by default, and the page in a notebook.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bars: dict[tuple[str, str, str], tqdm[NoReturn]] = {}

    def __call__(self, event: ProgressEvent, /) -> None:
        """Draw an event.

        Args:
            event: How far an item has come.
        """
        key = (event.direction, event.kind, event.tag)
        bar = self._bars.get(key)
        if event.phase in ENDED:
            line = _last_line(event)
            if bar is not None:
                self._bars.pop(key).close()
                line = f"\r{line}"  # a bar below others leaves the cursor where it ended
            self._write(line)
        elif event.phase == "transferring":
            if bar is None:
                bar = self._bars[key] = self._open(event)
            bar.total = event.bytes_total
            bar.update(event.bytes_done - bar.n)
            if event.message:
                self._write(f"\r{_VERBS[event.direction][0]} {event.kind} {event.tag}: {event.message}")
        elif bar is not None:
            bar.set_postfix_str(event.phase)

    def _open(self, event: ProgressEvent) -> tqdm[NoReturn]:
        return _bar_class(self._stream)(
            desc=f"{_VERBS[event.direction][0]} {event.kind} {event.tag}",
            total=event.bytes_total,
            unit="iB",
            unit_scale=True,
            unit_divisor=KiB,
            file=self._stream,
            leave=False,
            dynamic_ncols=True,
        )

    def _write(self, line: str) -> None:
        from tqdm import tqdm

        tqdm.write(line, file=self._stream or (sys.stdout if is_notebook() else sys.stderr))


def _bar_class(stream: TextIO | None) -> type[tqdm[Any]]:
    if stream is None and is_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget

        return widget
    from tqdm import tqdm  # not tqdm.auto, which warns where there are no widgets

    return tqdm


def _last_line(event: ProgressEvent) -> str:
    item = f"{event.kind} {event.tag}"
    if event.phase == "done":
        said = f" ({event.message})" if event.message else ""
        return f"{_VERBS[event.direction][1]} {item}, {human_size(event.bytes_done)}{said}"
    if event.phase == "skipped":
        return f"skipped {item}: {event.message}"
    return f"{_VERBS[event.direction][0]} {item} failed: {event.message}"

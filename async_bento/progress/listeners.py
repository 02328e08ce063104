"""Listeners for people: tqdm bars on a terminal and in a notebook, lines of text everywhere else."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import json
import os
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from async_bento._core.text import shorten
from async_bento.progress.events import ENDED, ProgressListener, is_notebook, is_watched, key_of
from async_bento.progress.summary import DistinctEndings, Endings, TransferSummary, facts_of, fit, fit_name, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

    from tqdm import tqdm

    from async_bento.progress.events import ProgressEvent
    from async_bento.progress.summary import Item

REDRAW_INTERVAL = 0.1
"""Seconds between two redraws of the bars."""

MAX_BARS, BUSIEST = 8, 5
"""Of more than `MAX_BARS` active items only some are drawn, so that they fit a terminal of 24 lines and can be read."""

KEEP_BONUS = 1.5
"""How much faster an item must be to replace one that is drawn: items of about the same rate keep their lines."""

NAME_COLUMNS, FACTS_COLUMNS = 40, 24
"""Columns that a name may take at most, and those it leaves, where it can, for the bytes and the rate."""

DEFAULT_COLUMNS, BAR_COLUMNS = 80, 10
"""Columns where the terminal states none, and columns of a bar."""

ECHO_COLUMNS = 2
"""Columns at the right that stay free for the `^C` that the terminal echoes: a wrapped line would shift the bars."""


def choose_listener(progress: bool | ProgressListener | None) -> ProgressListener | None:
    """Return the listener for a `progress` argument: a listener itself, or True, False or None for the default.

    True draws bars on a terminal and in a notebook with ipywidgets, and writes lines elsewhere. None does so only for a
    viewer (see `is_watched`).
    """
    if progress is None:
        progress = is_watched()
    if not isinstance(progress, bool):
        return progress
    if not progress:
        return None
    return TqdmListener() if _can_draw() else LineListener()


def _can_draw() -> bool:
    if is_notebook():
        # tqdm.notebook raises ImportError without it.
        return find_spec("ipywidgets") is not None
    return sys.stderr is not None and sys.stderr.isatty()


class _Timer:
    """Calls a function regularly on the running event loop, if there is one, until it is stopped."""

    def __init__(self, interval: float, function: Callable[[], None]) -> None:
        self._interval = interval
        self._function = function
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        # A listener may outlive its event loop, as with one `asyncio.run` per push.
        if self._loop is None or self._loop.is_closed():
            with suppress(RuntimeError):  # no loop: the listener draws at events alone
                self._loop = asyncio.get_running_loop()
                self._handle = self._loop.call_later(self._interval, self._call)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._loop = self._handle = None

    def _call(self) -> None:
        self._loop = self._handle = None
        self._function()
        self.start()


class _Row(NamedTuple):
    """One line of the display; without a total it has no bar."""

    name: str
    done: int = 0
    total: int | None = None
    facts: Collection[str] = ()


class TqdmListener:
    """Draw a tqdm bar per active bento or model and one for all of them; leave a line for each finished one.

    Of more than eight active items, five are drawn. Skipped items are counted in one line. A failure leaves no line:
    the call raises it.

    Args:
        stream: The stream to draw on; by default stderr, and the page in a notebook.
        clock: Returns the time in seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._bar_class = _bar_class(stream)
        cast("Any", self._bar_class).get_lock()  # reads files: not on the event loop, where the first event arrives
        self._summary = TransferSummary()
        self._endings = Endings()
        self._timer = _Timer(REDRAW_INTERVAL, self._draw)
        self._bars: list[tqdm[Any]] = []
        self._shown: set[Hashable] = set()
        self._drawn_at: float

    def __call__(self, event: ProgressEvent, /) -> None:
        """Draw an event.

        Args:
            event: The progress of one bento or model.
        """
        now = self._clock()
        retries = self._summary.record(event, now)
        lines: list[str] = []
        if event.phase in ENDED:
            lines = self._endings.add(event)
        elif event.message and event.retries == retries:  # the bar counts retries
            lines = [f"{name_of(event)}: {event.message}"]
        margin = "\r" if self._bars else ""  # a bar below another one leaves the cursor at the end of its line
        if not self._summary.active:
            self._timer.stop()
            self._resize(0)
            lines += self._flush()
        elif not self._bars or now - self._drawn_at >= REDRAW_INTERVAL:
            self._draw()
        for line in lines:
            _write(f"{margin}{line}", self._stream)
        if self._summary.active:
            self._timer.start()

    def _flush(self) -> list[str]:
        """The lines of skipped and interrupted items, once no item is active."""
        return self._endings.flush()

    def _draw(self) -> None:
        """Draw all rows; a timer does so too, since without events nothing else would show that time passes."""
        self._drawn_at = self._clock()
        columns = _columns(self._stream)
        free = columns - len("  100 %|| ") - BAR_COLUMNS
        rows = self._rows(max(min(free - FACTS_COLUMNS, NAME_COLUMNS), columns // 3))
        width = max(len(row.name) for row in rows)
        space = free - width
        facts = [fit([*row.facts], space) for row in rows]
        pad = max([len(text) for row, text in zip(rows, facts, strict=True) if row.total], default=0)
        self._resize(len(rows))
        for bar, row, text in zip(self._bars, rows, facts, strict=True):
            if not hasattr(bar, "container"):  # a widget has no columns
                bar.ncols = columns - ECHO_COLUMNS
            _draw_row(bar, row, width, text.ljust(pad))

    def _rows(self, width: int) -> list[_Row]:
        """The rows from top to bottom, with names of at most `width` characters."""
        now, items = self._drawn_at, self._summary.active
        if self._summary.count == 1:
            (item,) = items
            verb = name_of(item.event).partition(" ")[0]
            return [_row_of(item, f"{verb} {fit_name(item.event, width - len(verb) - 1)}", now)]
        shown = self._choose(items, now)
        rows = [_row_of(item, fit_name(item.event, width), now) for item in shown]
        if len(items) > len(shown):
            rows.append(_Row(f"+ {len(items) - len(shown)} more"))
        name = shorten(self._summary.headline(), width)
        return [*rows, _Row(name, self._summary.done, self._summary.total, self._summary.facts(now))]

    def _choose(self, items: Collection[Item], now: float) -> list[Item]:
        """The items to draw: all, or the busiest."""
        if len(items) <= MAX_BARS:
            return [*items]

        def rank(item: Item) -> tuple[bool, float]:
            bonus = KEEP_BONUS if key_of(item.event) in self._shown else 1.0
            return item.event.phase == "transferring", bonus * (item.rate.per_second(now) or 0.0)

        self._shown = {key_of(item.event) for item in heapq.nlargest(BUSIEST, items, key=rank)}
        return [item for item in items if key_of(item.event) in self._shown]

    def _resize(self, count: int) -> None:
        """Open bars at the bottom, or close them from the bottom, so that no line between them stays empty."""
        while len(self._bars) < count:
            self._bars.append(self._bar_class(total=None, file=self._stream, leave=False, bar_format="{desc}"))
        while len(self._bars) > count:
            bar = self._bars.pop()
            bar.total = None  # a widget below its total would stay on the page
            bar.close()
            if not self._bars and not hasattr(bar, "container") and bar.fp.isatty():
                bar.fp.write("\r\x1b[K")  # what the terminal echoed to the right of the bar


class CommandBars(TqdmListener):
    """The bars of a command that transfers many items in turn: it counts the skipped ones at its end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._endings = DistinctEndings()

    def _flush(self) -> list[str]:
        return []

    def close(self) -> None:
        """Write the lines of all skipped and interrupted items."""
        with suppress(OSError):  # after SIGHUP, the terminal is gone
            for line in self._endings.flush():
                _write(line, self._stream)


class LineListener:
    """Write a line of progress every few seconds, and one for each finished item; for logs.

    Skipped items are counted in one line. A failure has no line: the call raises it.

    Args:
        stream: The stream to write to; by default stderr, and the page in a notebook.
        interval: Seconds between two lines of progress.
        clock: Returns the time in seconds.
        results: Whether finished items have a line.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        results: bool = True,
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._results = results
        self._summary = TransferSummary()
        self._endings = Endings()
        self._timer = _Timer(min(1.0, interval), self._report)
        self._reported_at: float | None = None

    def __call__(self, event: ProgressEvent, /) -> None:
        """Record an event, and write a line when one is due.

        Args:
            event: The progress of one bento or model.
        """
        now = self._clock()
        retries = self._summary.record(event, now)
        if self._reported_at is None:
            self._reported_at = now
        lines: list[str] = []
        if event.phase in ENDED:
            lines = self._endings.add(event)
        elif event.message and event.retries == retries:
            _write(f"{name_of(event)}: {event.message}", self._stream)
        if self._summary.active:
            self._report()
            self._timer.start()
        else:
            lines += self._endings.flush()
            self._reported_at = None
            self._timer.stop()
        if self._results:
            for line in lines:
                _write(line, self._stream)

    def _report(self) -> None:
        """Write a line of progress if one is due."""
        now = self._clock()
        if self._reported_at is not None and now - self._reported_at >= self._interval:
            self._reported_at = now
            _write(self._summary.status(now), self._stream)


class JsonListener:
    """Write events as JSON lines; of those that differ in counters alone, one per `interval` seconds."""

    def __init__(
        self, stream: TextIO | None = None, *, interval: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._written: dict[Hashable, tuple[str, float]] = {}

    def __call__(self, event: ProgressEvent, /) -> None:
        """Write an event, or drop it if only counters have changed."""
        key, now = key_of(event), self._clock()
        phase, written_at = self._written.get(key, ("", 0.0))
        # A change of phase and a message are never dropped: readers wait for them.
        if event.phase == phase and not event.message and now - written_at < self._interval:
            return
        self._written[key] = (event.phase, now)
        if event.phase in ENDED:
            del self._written[key]
        print(json.dumps(dataclasses.asdict(event)), file=self._stream or sys.stderr, flush=True)


def _row_of(item: Item, name: str, now: float) -> _Row:
    return _Row(name, item.event.bytes_done, item.event.bytes_total, facts_of(item, now))


def _draw_row(bar: tqdm[Any], row: _Row, width: int, facts: str) -> None:
    # tqdm formats `bar_format`: a brace in a name would be a field.
    head = row.name.ljust(width).replace("{", "{{").replace("}", "}}")
    text = facts.replace("{", "{{").replace("}", "}}")
    bar.bar_format = f"{head}  {{percentage:3.0f}} %|{{bar}}| {text}" if row.total else f"{head}  {text}"
    if bar.total != row.total and hasattr(bar, "container"):  # a widget reads its total only here
        bar.reset(row.total)
    bar.total = row.total
    bar.n = row.done
    bar.refresh()


def _columns(stream: TextIO | None) -> int:
    where = stream or sys.stderr
    with suppress(OSError, ValueError, AttributeError):  # no terminal
        # A pseudo-terminal without a window reports 0 columns.
        return os.get_terminal_size(where.fileno()).columns or DEFAULT_COLUMNS
    return DEFAULT_COLUMNS


def _bar_class(stream: TextIO | None) -> type[tqdm[Any]]:
    if stream is None and is_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget

        return widget
    from tqdm import tqdm  # not tqdm.auto, which warns without widgets

    return tqdm


def _write(line: str, stream: TextIO | None) -> None:
    file = stream or (sys.stdout if is_notebook() else sys.stderr)
    if "tqdm" in sys.modules:  # the program may draw bars of its own
        from tqdm import tqdm

        tqdm.write(line, file=file)
    else:
        print(line, file=file, flush=True)

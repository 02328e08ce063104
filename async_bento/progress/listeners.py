"""Listeners for people: tqdm bars on a terminal and in a notebook, lines of text everywhere else."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from async_bento._core.text import shorten
from async_bento.progress.events import ENDED, ProgressListener, is_notebook, is_watched
from async_bento.progress.summary import TransferSummary, fit, key_of, last_line, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tqdm import tqdm

    from async_bento.progress.events import ProgressEvent

REDRAW_INTERVAL = 0.1
"""Seconds between two redraws of a bar."""

DEFAULT_COLUMNS, BAR_COLUMNS = 80, 10


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
        return find_spec("ipywidgets") is not None
    return sys.stderr is not None and sys.stderr.isatty()


class TqdmListener:
    """Draw a tqdm bar per active bento or model and one for all of them; leave a line for each finished one.

    Args:
        stream: The stream to draw on; by default stderr, and the page in a notebook.
        clock: Returns the time in seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._summary = TransferSummary()
        self._bars: dict[tuple[str, str, str], tqdm[Any]] = {}
        self._total: tqdm[Any] | None = None
        self._drawn: dict[tuple[str, str, str], tuple[float, str, int]] = {}

    def __call__(self, event: ProgressEvent, /) -> None:
        """Draw an event.

        Args:
            event: The progress of one bento or model.
        """
        key, now = key_of(event), self._clock()
        self._summary.record(event, now)
        if event.phase in ENDED:
            line = last_line(event)
            bar = self._bars.pop(key, None)
            if bar is not None:
                bar.close()
                self._drawn.pop(key, None)
                line = f"\r{line}"  # closing a bar below others leaves the cursor at the end of its line
            self._draw_total()
            self._write(line)
            return
        before = self._drawn.get(key, (0.0, "", 0))
        changed = bool(event.message) or key not in self._bars or (event.phase, event.retries) != before[1:]
        if not changed and now - before[0] < REDRAW_INTERVAL:
            return
        self._drawn[key] = (now, event.phase, event.retries)
        if key not in self._bars:
            self._open(key)
        self._draw(self._bars[key], name_of(event), event.bytes_done, event.bytes_total, self._summary.facts_of(event))
        self._draw_total()
        if event.message and event.retries == before[2]:  # the bar shows the number of retries
            self._write(f"\r{name_of(event)}: {event.message}")

    def _open(self, key: tuple[str, str, str]) -> None:
        if self._total is not None:  # reopened below, since the total stays the last bar
            self._total.close()
            self._total = None
        self._bars[key] = self._bar()

    def _bar(self) -> tqdm[Any]:
        return _bar_class(self._stream)(
            total=None, file=self._stream, leave=False, dynamic_ncols=True, bar_format="{desc}"
        )

    def _draw_total(self) -> None:
        # One item needs no total, and skipped items have no bytes.
        if len(self._summary.items) < 2 or not self._bars or not self._summary.total:  # noqa: PLR2004
            if self._total is not None:
                self._total.close()
                self._total = None
            return
        if self._total is None:
            self._total = self._bar()
        count = len(self._summary.items)
        name = f"all {count}, {count - len(self._summary.active)} done"
        self._draw(self._total, name, self._summary.done, self._summary.total, self._summary.facts())

    def _draw(self, bar: tqdm[Any], name: str, done: int, total: int | None, facts: Sequence[str]) -> None:
        columns = _columns(self._stream)
        name = shorten(name, columns // 3)
        width = columns - len(name) - len("  100 %|| ") - BAR_COLUMNS
        text = fit(facts, width).replace("{", "{{").replace("}", "}}")
        head = name.replace("{", "{{").replace("}", "}}")
        bar.bar_format = f"{head}  {{percentage:3.0f}} %|{{bar}}| {text}" if total else f"{head}  {text}"
        if bar.total != total and hasattr(bar, "container"):  # a widget reads its total only here
            bar.reset(total)
        bar.total = total
        bar.n = done
        bar.refresh()

    def _write(self, line: str) -> None:
        _write(line, self._stream)


class LineListener:
    """Write a line of progress every few seconds, and one for each finished item; for logs.

    Args:
        stream: The stream to write to; by default stderr, and the page in a notebook.
        interval: Seconds between two lines of progress.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, *, interval: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._summary = TransferSummary()
        self._reported_at: float | None = None

    def __call__(self, event: ProgressEvent, /) -> None:
        """Record an event, and write a line when one is due.

        Args:
            event: The progress of one bento or model.
        """
        now = self._clock()
        known = self._summary.items.get(key_of(event))
        self._summary.record(event, now)
        if self._reported_at is None:
            self._reported_at = now
        if event.phase in ENDED:
            self._write(last_line(event))
        elif event.message and (known is None or event.retries == known.retries):
            self._write(f"{name_of(event)}: {event.message}")
        elif now - self._reported_at >= self._interval:
            self._reported_at = now
            self._write(self._summary.status(event))

    def _write(self, line: str) -> None:
        _write(line, self._stream)


def _columns(stream: TextIO | None) -> int:
    where = stream or sys.stderr
    with suppress(OSError, ValueError, AttributeError):  # no terminal
        return os.get_terminal_size(where.fileno()).columns or DEFAULT_COLUMNS
    return DEFAULT_COLUMNS


def _bar_class(stream: TextIO | None) -> type[tqdm[Any]]:
    if stream is None and is_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget

        return widget
    from tqdm import tqdm  # not tqdm.auto, which warns without widgets

    return tqdm


def _write(line: str, stream: TextIO | None) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=stream or (sys.stdout if is_notebook() else sys.stderr))

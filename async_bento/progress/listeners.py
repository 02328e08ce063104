"""What a person sees of transfers: bars on a terminal and in a notebook, and lines of text everywhere else."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from async_bento._core.text import shorten
from async_bento.progress.events import ENDED, ProgressListener, is_notebook, is_watched
from async_bento.progress.summary import Job, fit, key_of, last_line, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tqdm import tqdm

    from async_bento.progress.events import ProgressEvent

REDRAWN = 0.1
"""Seconds between two drawings of a bar."""

NARROW, BAR = 80, 10  # columns


def choose_listener(progress: bool | ProgressListener | None) -> ProgressListener | None:
    """Find who is told of progress.

    Args:
        progress: True for bars, or for lines where there is neither a terminal nor a notebook with ipywidgets; False
            for nobody; None for bars or lines where someone looks; or who is told.

    Returns:
        Who is told; None for nobody.
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
    """Draws a tqdm bar per bento or model under way, and one for all of them; leaves a line for each that has ended.

    Args:
        stream: Where to draw; standard error by default, and the page in a notebook.
        clock: What tells the time, in seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._job = Job()
        self._bars: dict[tuple[str, str, str], tqdm[Any]] = {}
        self._total: tqdm[Any] | None = None
        self._drawn: dict[tuple[str, str, str], tuple[float, str, int]] = {}

    def __call__(self, event: ProgressEvent, /) -> None:
        """Draw an event.

        Args:
            event: How far an item has come.
        """
        key, now = key_of(event), self._clock()
        self._job.note(event, now)
        if event.phase in ENDED:
            line = last_line(event)
            bar = self._bars.pop(key, None)
            if bar is not None:
                bar.close()
                self._drawn.pop(key, None)
                line = f"\r{line}"  # a bar below others leaves the cursor where it ended
            self._draw_total()
            self._write(line)
            return
        before = self._drawn.get(key, (0.0, "", 0))
        changed = bool(event.message) or key not in self._bars or (event.phase, event.retries) != before[1:]
        if not changed and now - before[0] < REDRAWN:
            return
        self._drawn[key] = (now, event.phase, event.retries)
        if key not in self._bars:
            self._open(key)
        self._draw(self._bars[key], name_of(event), event.bytes_done, event.bytes_total, self._job.facts_of(event))
        self._draw_total()
        if event.message and event.retries == before[2]:  # the bar counts what is tried again
            self._write(f"\r{name_of(event)}: {event.message}")

    def _open(self, key: tuple[str, str, str]) -> None:
        if self._total is not None:  # it stays the last one
            self._total.close()
            self._total = None
        self._bars[key] = self._bar()

    def _bar(self) -> tqdm[Any]:
        return _bar_class(self._stream)(
            total=None, file=self._stream, leave=False, dynamic_ncols=True, bar_format="{desc}"
        )

    def _draw_total(self) -> None:
        # The total of one is its own bar, and there is none of what was skipped.
        if len(self._job.items) < 2 or not self._bars or not self._job.total:  # noqa: PLR2004
            if self._total is not None:
                self._total.close()
                self._total = None
            return
        if self._total is None:
            self._total = self._bar()
        count = len(self._job.items)
        name = f"all {count}, {count - len(self._job.under_way)} done"
        self._draw(self._total, name, self._job.done, self._job.total, self._job.facts())

    def _draw(self, bar: tqdm[Any], name: str, done: int, total: int | None, said: Sequence[str]) -> None:
        columns = _columns(self._stream)
        name = shorten(name, columns // 3)
        room = columns - len(name) - len("  100 %|| ") - BAR
        text = fit(said, room).replace("{", "{{").replace("}", "}}")
        head = name.replace("{", "{{").replace("}", "}}")
        bar.bar_format = f"{head}  {{percentage:3.0f}} %|{{bar}}| {text}" if total else f"{head}  {text}"
        if bar.total != total and hasattr(bar, "container"):  # a widget, which learns it in no other way
            bar.reset(total)
        bar.total = total
        bar.n = done
        bar.refresh()

    def _write(self, line: str) -> None:
        _write(line, self._stream)


class LineListener:
    """Writes a line every few seconds, for logs: how far the items are, and how each has ended.

    Args:
        stream: Where to write; standard error by default, and the page in a notebook.
        interval: Seconds between two lines that tell how far it is.
        clock: What tells the time, in seconds.
    """

    def __init__(
        self, stream: TextIO | None = None, *, interval: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._job = Job()
        self._told_at: float | None = None

    def __call__(self, event: ProgressEvent, /) -> None:
        """Take note of an event, and write a line where it is time for one.

        Args:
            event: How far an item has come.
        """
        now = self._clock()
        known = self._job.items.get(key_of(event))
        self._job.note(event, now)
        if self._told_at is None:
            self._told_at = now
        if event.phase in ENDED:
            self._write(last_line(event))
        elif event.message and (known is None or event.retries == known.retries):
            self._write(f"{name_of(event)}: {event.message}")
        elif now - self._told_at >= self._interval:
            self._told_at = now
            self._write(self._job.status(event))

    def _write(self, line: str) -> None:
        _write(line, self._stream)


def _columns(stream: TextIO | None) -> int:
    where = stream or sys.stderr
    with suppress(OSError, ValueError, AttributeError):  # no terminal
        return os.get_terminal_size(where.fileno()).columns or NARROW
    return NARROW


def _bar_class(stream: TextIO | None) -> type[tqdm[Any]]:
    if stream is None and is_notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm as widget

        return widget
    from tqdm import tqdm  # not tqdm.auto, which warns where there are no widgets

    return tqdm


def _write(line: str, stream: TextIO | None) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=stream or (sys.stdout if is_notebook() else sys.stderr))

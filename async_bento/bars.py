"""What a person sees of transfers: bars on a terminal and in a notebook, and lines of text everywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TextIO

from async_bento.progress import ENDED, ProgressListener, is_notebook, is_watched
from async_bento.units import human_size, human_time, shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tqdm import tqdm

    from async_bento.progress import ProgressEvent

WINDOW = 10.0
"""Seconds over which a rate is taken: the bursts of parts that end together are longer than one second."""

SETTLED = 1.0
"""Seconds before a rate is told: the first bytes fill buffers, and say nothing."""

STEP = 0.25
"""Seconds between two samples of a rate."""

REDRAWN = 0.1
"""Seconds between two drawings of a bar."""

TOGETHER = 1.0
"""Seconds after which what begins belongs to another job: a bento begins where the last of its models has ended."""

NARROW, BAR = 80, 10  # columns

_VERBS = {"push": ("pushing", "pushed"), "pull": ("pulling", "pulled")}


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


@dataclass
class Rate:
    """Bytes a second, over the last `WINDOW` seconds."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]], init=False)

    def note(self, moved: int, now: float) -> None:
        """Take note of how far it is.

        Args:
            moved: Bytes that have moved in all.
            now: When, in seconds.
        """
        samples = self._samples
        if samples and now - samples[-1][0] < STEP:
            return
        samples.append((now, moved))
        while now - samples[0][0] > WINDOW and len(samples) > 2:  # noqa: PLR2004 - a rate is between two
            samples.popleft()

    @property
    def per_second(self) -> float | None:
        """Bytes a second; None while nothing can be said."""
        if not self._samples:
            return None
        (began, before), (now, after) = self._samples[0], self._samples[-1]
        return max(0.0, (after - before) / (now - began)) if now - began >= SETTLED else None


@dataclass
class Job:
    """The items that are moved together, and how far all of them are.

    Attributes:
        items: The last event of each, those that have ended included.
    """

    items: dict[tuple[str, str, str], ProgressEvent] = field(
        default_factory=dict[tuple[str, str, str], "ProgressEvent"], init=False
    )
    _rates: dict[tuple[str, str, str], Rate] = field(default_factory=dict[tuple[str, str, str], Rate], init=False)
    _rate: Rate = field(default_factory=Rate, init=False)
    _ended_at: float | None = field(default=None, init=False)

    def note(self, event: ProgressEvent, now: float) -> None:
        """Take note of an event.

        Args:
            event: How far an item has come.
            now: When, in seconds.
        """
        if self._ended_at is not None and now - self._ended_at > TOGETHER:
            self.items.clear()
            self._rates.clear()
            self._rate = Rate()
        key = key_of(event)
        if key in self.items and self.items[key].phase in ENDED:  # it is moved once more
            del self._rates[key]
        self.items[key] = event
        rate = self._rates.setdefault(key, Rate())
        if event.phase == "transferring":  # the time of all else says nothing of the line
            rate.note(event.bytes_done - event.bytes_resumed, now)
            self._rate.note(sum(one.bytes_done - one.bytes_resumed for one in self.items.values()), now)
        self._ended_at = None if self.under_way else now

    @property
    def under_way(self) -> Sequence[ProgressEvent]:
        """Of each item that has not ended, its last event."""
        return [event for event in self.items.values() if event.phase not in ENDED]

    @property
    def done(self) -> int:
        """Bytes of all items that have moved."""
        return sum(event.bytes_done for event in self.items.values())

    @property
    def total(self) -> int:
        """Bytes of all items, as far as they are known."""
        return sum(event.bytes_total or event.bytes_done for event in self.items.values())

    def facts(self) -> list[str]:
        """Say how far all items are.

        Returns:
            What there is to say, the most important first.
        """
        return _how_far(self.done, self.total, self._rate)

    def facts_of(self, event: ProgressEvent) -> list[str]:
        """Say how far an item is.

        Args:
            event: Its last event.

        Returns:
            What there is to say, the most important first.
        """
        said: list[str] = [] if event.phase == "transferring" else [event.phase]
        if event.phase in {"transferring", "extracting"}:
            said += _how_far(event.bytes_done, event.bytes_total, self._rates[key_of(event)])
        if event.parts_total is not None:
            said.append(f"{event.parts_done}/{event.parts_total} parts")
        if event.retries:
            said.append(_retries(event))
        return said


def key_of(event: ProgressEvent) -> tuple[str, str, str]:
    """Tell one item from the others.

    Args:
        event: An event of it.

    Returns:
        What only its events have.
    """
    return event.direction, event.kind, event.tag


def _retries(event: ProgressEvent) -> str:
    return "1 retry" if event.retries == 1 else f"{event.retries} retries"


def _how_far(done: int, total: int | None, rate: Rate) -> list[str]:
    speed = rate.per_second
    said = [human_size(done) if total is None else _of(done, total)]
    if speed is not None and done != total:
        said.append(f"{human_size(speed)}/s")
        if total is not None and speed > 0:
            said.append(f"{human_time(max(0, total - done) / speed)} left")
    return said


def _of(done: int, total: int) -> str:
    moved, whole = human_size(done), human_size(total)
    number, unit = moved.split()
    return f"{number}/{whole}" if whole.endswith(f" {unit}") else f"{moved}/{whole}"


def fit(said: Sequence[str], room: int) -> str:
    """Join what fits into a line.

    Args:
        said: The most important first.
        room: Characters there are.

    Returns:
        As many as fit, at least the first.
    """
    kept = [*said]
    while len(kept) > 1 and len(", ".join(kept)) > room:
        kept.pop()
    return ", ".join(kept)


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
        self._draw(self._bars[key], _name(event), event.bytes_done, event.bytes_total, self._job.facts_of(event))
        self._draw_total()
        if event.message and event.retries == before[2]:  # the bar counts what is tried again
            self._write(f"\r{_name(event)}: {event.message}")

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
            self._write(f"{_name(event)}: {event.message}")
        elif now - self._told_at >= self._interval:
            self._told_at = now
            self._write(self._status(event))

    def _status(self, event: ProgressEvent) -> str:
        under_way, count = self._job.under_way, len(self._job.items)
        if count == 1:
            line = f"{_name(event)}: {_percentage(event.bytes_done, event.bytes_total)}"
            return line + ", ".join(self._job.facts_of(event))
        job = self._job
        facts = [*job.facts()]
        if retries := sum(one.retries for one in job.items.values()):
            facts.append("1 retry" if retries == 1 else f"{retries} retries")
        head = f"{_VERBS[event.direction][0]} {count} items, {count - len(under_way)} done"
        return f"{head}: {_percentage(job.done, job.total)}{', '.join(facts)}"

    def _write(self, line: str) -> None:
        _write(line, self._stream)


def last_line(event: ProgressEvent) -> str:
    """Say how an item has ended.

    Args:
        event: Its last event.

    Returns:
        A line.
    """
    item = f"{event.kind} {event.tag}"
    if event.phase == "skipped":
        return f"skipped {item}: {event.message}"
    if event.phase == "failed":
        return f"{_name(event)} failed: {event.message}"
    said = [f"{_VERBS[event.direction][1]} {item}", human_size(event.bytes_done)]
    if event.bytes_resumed and event.bytes_total:
        said.append(f"resumed at {100 * event.bytes_resumed // event.bytes_total} %")
    if event.retries:
        said.append(_retries(event))
    return ", ".join(said) + (f" ({event.message})" if event.message else "")


def _name(event: ProgressEvent) -> str:
    return f"{_VERBS[event.direction][0]} {event.kind} {event.tag}"


def _percentage(done: int, total: int | None) -> str:
    return f"{100 * done // total} %, " if total else ""


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

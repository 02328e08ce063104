"""What is to be said of items that are moved together: how far they are, how fast, and how each has ended."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from async_bento._core.text import human_size, human_time
from async_bento.progress.events import ENDED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento.progress.events import ProgressEvent

WINDOW = 10.0
"""Seconds over which a rate is taken: the bursts of parts that end together are longer than one second."""

SETTLED = 1.0
"""Seconds before a rate is told: the first bytes fill buffers, and say nothing."""

STEP = 0.25
"""Seconds between two samples of a rate."""

TOGETHER = 1.0
"""Seconds after which what begins belongs to another job: a bento begins where the last of its models has ended."""

_VERBS = {"push": ("pushing", "pushed"), "pull": ("pulling", "pulled")}


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
            said.append(_retries(event.retries))
        return said

    def status(self, event: ProgressEvent) -> str:
        """Say how far it is, in a line.

        Args:
            event: The last event of any item.

        Returns:
            The line.
        """
        count = len(self.items)
        if count == 1:
            far = _percentage(event.bytes_done, event.bytes_total)
            return f"{name_of(event)}: {far}{', '.join(self.facts_of(event))}"
        facts = self.facts()
        if retries := sum(one.retries for one in self.items.values()):
            facts.append(_retries(retries))
        head = f"{_VERBS[event.direction][0]} {count} items, {count - len(self.under_way)} done"
        return f"{head}: {_percentage(self.done, self.total)}{', '.join(facts)}"


def key_of(event: ProgressEvent) -> tuple[str, str, str]:
    """Tell one item from the others.

    Args:
        event: An event of it.

    Returns:
        What only its events have.
    """
    return event.direction, event.kind, event.tag


def _retries(count: int) -> str:
    return "1 retry" if count == 1 else f"{count} retries"


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
        return f"{name_of(event)} failed: {event.message}"
    said = [f"{_VERBS[event.direction][1]} {item}", human_size(event.bytes_done)]
    if event.bytes_resumed and event.bytes_total:
        said.append(f"resumed at {100 * event.bytes_resumed // event.bytes_total} %")
    if event.retries:
        said.append(_retries(event.retries))
    return ", ".join(said) + (f" ({event.message})" if event.message else "")


def name_of(event: ProgressEvent) -> str:
    """Say what is done with which item.

    Args:
        event: An event of it.

    Returns:
        Like `pushing bento iris:v1`.
    """
    return f"{_VERBS[event.direction][0]} {event.kind} {event.tag}"


def _percentage(done: int, total: int | None) -> str:
    return f"{100 * done // total} %, " if total else ""

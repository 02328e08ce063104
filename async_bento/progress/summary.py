"""Totals, rate and ETA of concurrent transfers, and their lines of text."""

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
"""Seconds over which a rate is measured: bursts of parts that complete together last longer than one second."""

MIN_SPAN = 1.0
"""Seconds before a rate is shown: the first bytes only fill buffers."""

SAMPLE_INTERVAL = 0.25
"""Seconds between two samples of a rate."""

IDLE_RESET = 1.0
"""A new batch starts after this many idle seconds; less separates a bento from the last of its models."""

_VERBS = {"push": ("pushing", "pushed"), "pull": ("pulling", "pulled")}


@dataclass
class Rate:
    """A rate in bytes per second, over the last `WINDOW` seconds."""

    _samples: deque[tuple[float, int]] = field(default_factory=deque[tuple[float, int]], init=False)

    def record(self, moved: int, now: float) -> None:
        """Record the total of transferred bytes at a time in seconds."""
        samples = self._samples
        if samples and now - samples[-1][0] < SAMPLE_INTERVAL:
            return
        samples.append((now, moved))
        while now - samples[0][0] > WINDOW and len(samples) > 2:  # noqa: PLR2004 - a rate needs two samples
            samples.popleft()

    @property
    def per_second(self) -> float | None:
        """Bytes per second, or None before `MIN_SPAN` seconds."""
        if not self._samples:
            return None
        (began, before), (now, after) = self._samples[0], self._samples[-1]
        return max(0.0, (after - before) / (now - began)) if now - began >= MIN_SPAN else None


@dataclass
class TransferSummary:
    """Summary of concurrent transfers; `items` holds the last event of each, including the finished ones."""

    items: dict[tuple[str, str, str], ProgressEvent] = field(
        default_factory=dict[tuple[str, str, str], "ProgressEvent"], init=False
    )
    _rates: dict[tuple[str, str, str], Rate] = field(default_factory=dict[tuple[str, str, str], Rate], init=False)
    _rate: Rate = field(default_factory=Rate, init=False)
    _ended_at: float | None = field(default=None, init=False)

    def record(self, event: ProgressEvent, now: float) -> None:
        """Record an event at a time in seconds."""
        if self._ended_at is not None and now - self._ended_at > IDLE_RESET:
            self.items.clear()
            self._rates.clear()
            self._rate = Rate()
        key = key_of(event)
        if key in self.items and self.items[key].phase in ENDED:  # transferred once more
            del self._rates[key]
        self.items[key] = event
        rate = self._rates.setdefault(key, Rate())
        if event.phase == "transferring":  # other phases say nothing about the network
            rate.record(event.bytes_done - event.bytes_resumed, now)
            self._rate.record(sum(one.bytes_done - one.bytes_resumed for one in self.items.values()), now)
        self._ended_at = None if self.active else now

    @property
    def active(self) -> Sequence[ProgressEvent]:
        """The last event of each unfinished item."""
        return [event for event in self.items.values() if event.phase not in ENDED]

    @property
    def done(self) -> int:
        """Transferred bytes of all items."""
        return sum(event.bytes_done for event in self.items.values())

    @property
    def total(self) -> int:
        """Bytes of all items, as far as their sizes are known."""
        return sum(event.bytes_total or event.bytes_done for event in self.items.values())

    def facts(self) -> list[str]:
        """Return the facts about all items, the most important first."""
        return _how_far(self.done, self.total, self._rate)

    def facts_of(self, event: ProgressEvent) -> list[str]:
        """Return the facts about the item of an event, the most important first."""
        facts: list[str] = [] if event.phase == "transferring" else [event.phase]
        if event.phase in {"transferring", "extracting"}:
            facts += _how_far(event.bytes_done, event.bytes_total, self._rates[key_of(event)])
        if event.parts_total is not None:
            facts.append(f"{event.parts_done}/{event.parts_total} parts")
        if event.retries:
            facts.append(_retries(event.retries))
        return facts

    def status(self, event: ProgressEvent) -> str:
        """Return a line of progress for all items, given the last event of any."""
        count = len(self.items)
        if count == 1:
            far = _percentage(event.bytes_done, event.bytes_total)
            return f"{name_of(event)}: {far}{', '.join(self.facts_of(event))}"
        facts = self.facts()
        if retries := sum(one.retries for one in self.items.values()):
            facts.append(_retries(retries))
        head = f"{_VERBS[event.direction][0]} {count} items, {count - len(self.active)} done"
        return f"{head}: {_percentage(self.done, self.total)}{', '.join(facts)}"


def key_of(event: ProgressEvent) -> tuple[str, str, str]:
    """Identify the item of an event."""
    return event.direction, event.kind, event.tag


def _retries(count: int) -> str:
    return "1 retry" if count == 1 else f"{count} retries"


def _how_far(done: int, total: int | None, rate: Rate) -> list[str]:
    speed = rate.per_second
    facts = [human_size(done) if total is None else _of(done, total)]
    if speed is not None and done != total:
        facts.append(f"{human_size(speed)}/s")
        if total is not None and speed > 0:
            facts.append(f"{human_time(max(0, total - done) / speed)} left")
    return facts


def _of(done: int, total: int) -> str:
    moved, whole = human_size(done), human_size(total)
    number, unit = moved.split()
    return f"{number}/{whole}" if whole.endswith(f" {unit}") else f"{moved}/{whole}"


def fit(facts: Sequence[str], width: int) -> str:
    """Join the first facts that fit into a line of `width` characters, at least one."""
    kept = [*facts]
    while len(kept) > 1 and len(", ".join(kept)) > width:
        kept.pop()
    return ", ".join(kept)


def last_line(event: ProgressEvent) -> str:
    """Return the line for a finished item."""
    item = f"{event.kind} {event.tag}"
    if event.phase == "skipped":
        return f"skipped {item}: {event.message}"
    if event.phase == "failed":
        return f"{name_of(event)} failed: {event.message}"
    facts = [f"{_VERBS[event.direction][1]} {item}", human_size(event.bytes_done)]
    if event.bytes_resumed and event.bytes_total:
        facts.append(f"resumed at {100 * event.bytes_resumed // event.bytes_total} %")
    if event.retries:
        facts.append(_retries(event.retries))
    return ", ".join(facts) + (f" ({event.message})" if event.message else "")


def name_of(event: ProgressEvent) -> str:
    """Name the transfer of an event, like `pushing bento iris:v1`."""
    return f"{_VERBS[event.direction][0]} {event.kind} {event.tag}"


def _percentage(done: int, total: int | None) -> str:
    return f"{100 * done // total} %, " if total else ""

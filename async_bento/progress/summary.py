"""Totals, rate and ETA of concurrent transfers, and their lines of text, for the listeners."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from async_bento._core.text import human_size, human_time, shorten
from async_bento.progress.events import ENDED, key_of

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Sequence

    from async_bento.progress.events import ProgressEvent

WINDOW = 10.0
"""Seconds over which a rate is measured: bursts of parts that complete together last longer than one second."""

MIN_SPAN = 1.0
"""Seconds before a rate is shown: the first bytes only fill buffers."""

SAMPLE_INTERVAL = 0.25
"""Seconds between two samples of a rate."""

STALL_AFTER = 5.0
"""Seconds without a byte after which a transfer is shown as stalled: a slow part or a retry takes less."""

IDLE_RESET = 1.0
"""A new batch starts after this many idle seconds; less separates a bento from the last of its models."""

_VERBS = {
    "push": ("pushing", "pushed"),
    "pull": ("pulling", "pulled"),
    "copy": ("copying", "copied"),
    "verify": ("checking", "checked"),
    "diff": ("comparing", "compared"),
}
_COMPARISONS = {"verify", "diff"}


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

    def per_second(self, now: float) -> float | None:
        """Bytes per second, or None before `MIN_SPAN` seconds; without samples it declines."""
        if not self._samples:
            return None
        (began, before), (sampled, after) = self._samples[0], self._samples[-1]
        span = max(sampled, now - MIN_SPAN) - began
        return max(0.0, (after - before) / span) if span >= MIN_SPAN else None


@dataclass
class Item:
    """An unfinished transfer: its last event, its rate, and when its bytes or its phase last changed, in seconds."""

    event: ProgressEvent
    changed_at: float
    rate: Rate = field(default_factory=Rate, init=False)


@dataclass
class TransferSummary:
    """Summary of concurrent transfers. Of finished ones only sums are kept, so an event costs the same work always."""

    count: int = field(default=0, init=False)
    done: int = field(default=0, init=False)
    total: int = field(default=0, init=False)
    retries: int = field(default=0, init=False)
    changed_at: float = field(default=0.0, init=False)
    _items: dict[Hashable, Item] = field(default_factory=dict["Hashable", Item], init=False)
    _resumed: int = field(default=0, init=False)
    _rate: Rate = field(default_factory=Rate, init=False)
    _ended_at: float | None = field(default=None, init=False)

    def record(self, event: ProgressEvent, now: float) -> int:
        """Record an event at a time in seconds, and return the retries of its item before it."""
        if self._ended_at is not None and now - self._ended_at > IDLE_RESET:
            self.count = self.done = self.total = self.retries = self._resumed = 0
            self._rate = Rate()
        key = key_of(event)
        item = self._items.get(key)
        before = item.event if item else None
        self._add(event, before)
        if item is None:
            self.count += 1
            self.changed_at = now
            item = self._items[key] = Item(event, now)
        elif (item.event.bytes_done, item.event.phase) != (event.bytes_done, event.phase):
            item.changed_at = self.changed_at = now
        item.event = event
        if event.phase == "transferring":  # the other phases do not depend on the network
            item.rate.record(event.bytes_done - event.bytes_resumed, now)
            self._rate.record(self.done - self._resumed, now)
        if event.phase in ENDED:
            del self._items[key]
        self._ended_at = None if self._items else now
        return before.retries if before else 0

    def _add(self, event: ProgressEvent, before: ProgressEvent | None) -> None:
        """Add what an event adds to the sums; the missing bytes of an ended transfer do not count any more."""
        self.done += event.bytes_done - (before.bytes_done if before else 0)
        self.total += _size(event) - (_size(before) if before else 0)
        # Resumed bytes count as done, but not into the rate.
        self._resumed += event.bytes_resumed - (before.bytes_resumed if before else 0)
        self.retries += event.retries - (before.retries if before else 0)

    @property
    def active(self) -> Collection[Item]:
        """The unfinished transfers, in the order of their starts."""
        return self._items.values()

    def facts(self, now: float) -> list[str]:
        """Return the facts about all items at a time in seconds, the most important first."""
        facts = _how_far(self.done, self.total, self._rate, now, self.changed_at) if self.total else []
        return [*facts, _retries(self.retries)] if self.retries else facts

    def status(self, now: float) -> str:
        """Return a line of progress for all items."""
        if self.count == 1:
            (item,) = self._items.values()
            event = item.event
            far = _percentage(event.bytes_done, event.bytes_total)
            return f"{name_of(event)}: {far}{', '.join(facts_of(item, now))}"
        far = f"{_percentage(self.done, self.total)}{', '.join(self.facts(now))}"
        return f"{self.headline()}: {far}" if far else self.headline()

    def headline(self) -> str:
        """Return the verb and the numbers of all and of ended items."""
        directions = {item.event.direction for item in self._items.values()}
        verb = _VERBS[directions.pop()][0] if len(directions) == 1 else "transferring"
        return f"{verb} {self.count} items, {self.count - len(self._items)} done"


def facts_of(item: Item, now: float) -> list[str]:
    """Return the facts about an unfinished transfer at a time in seconds, the most important first."""
    event, idle = item.event, now - item.changed_at
    facts: list[str] = []
    if event.phase != "transferring":
        facts.append(event.phase if idle < STALL_AFTER else f"{event.phase} for {human_time(idle)}")
    if event.phase in {"transferring", "extracting"}:
        facts += _how_far(event.bytes_done, event.bytes_total, item.rate, now, item.changed_at)
    if event.phase == "transferring" and event.bytes_done == event.bytes_total and idle >= STALL_AFTER:
        facts.append(f"no answer for {human_time(idle)}")
    if event.parts_total is not None:
        facts.append(f"{event.parts_done}/{event.parts_total} parts")
    if event.retries:
        facts.append(_retries(event.retries))
    return facts


def _size(event: ProgressEvent) -> int:
    return event.bytes_done if event.phase in ENDED else event.bytes_total or event.bytes_done


def _retries(count: int) -> str:
    return "1 retry" if count == 1 else f"{count} retries"


def _how_far(done: int, total: int | None, rate: Rate, now: float, changed_at: float) -> list[str]:
    speed = rate.per_second(now)
    facts = [human_size(done) if total is None else _of(done, total)]
    if now - changed_at >= STALL_AFTER and done != total:
        facts.append(f"stalled {human_time(now - changed_at)}")
    elif speed is not None and done != total:
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


def fit_name(event: ProgressEvent, width: int) -> str:
    """Name the item of an event in `width` characters: without its kind and the start of its version where it must."""
    full = f"{event.kind} {event.tag}"
    if len(full) <= width:
        return full
    name, _, version = event.tag.partition(":")
    tail = width - len(name) - len(":…")
    if len(event.tag) <= width or tail < 1:
        return shorten(event.tag, width)
    return f"{name}:…{version[-tail:]}"


def done_line(event: ProgressEvent) -> str:
    """Return the line for an item that was transferred."""
    facts = [f"{_VERBS[event.direction][1]} {event.kind} {event.tag}", human_size(event.bytes_done)]
    if event.bytes_resumed and event.bytes_total:
        facts.append(f"resumed at {100 * event.bytes_resumed // event.bytes_total} %")
    if event.retries:
        facts.append(_retries(event.retries))
    return ", ".join(facts) + (f" ({event.message})" if event.message else "")


class Endings:
    """Lines for items that ended; of skipped and interrupted items one line, once no item is active.

    A failure has no line: it is raised, and the caller reports it.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str, str], tuple[int, ProgressEvent]] = {}

    def add(self, event: ProgressEvent) -> list[str]:
        """Add the last event of an item, and return the lines to write now."""
        if event.phase == "done":
            return [] if event.direction in _COMPARISONS else [done_line(event)]  # the caller reports a result
        if event.phase != "failed":
            key = (event.phase, event.kind, event.message)
            count, _ = self._waiting.get(key, (0, event))
            self._waiting[key] = (count + 1, event)
        return []

    def flush(self) -> list[str]:
        """Return the lines of skipped and interrupted items."""
        waiting, self._waiting = self._waiting, {}
        return [_summary_line(event, count) for count, event in waiting.values()]


class DistinctEndings(Endings):
    """The endings of one command: a model that several of its bentos need has one line or counts once."""

    def __init__(self) -> None:
        super().__init__()
        self._ended: set[tuple[str, str]] = set()

    def add(self, event: ProgressEvent) -> list[str]:
        """Add the last event of an item, unless an earlier one has transferred or skipped the item."""
        key = (event.kind, event.tag)
        if event.phase == "skipped" and key in self._ended:
            return []
        if event.phase in {"done", "skipped"}:
            self._ended.add(key)
        return super().add(event)


def _summary_line(event: ProgressEvent, count: int) -> str:
    items = f"{event.kind} {event.tag}" if count == 1 else f"{count} {event.kind}s"
    if event.phase == "skipped":
        return f"skipped {items}: {event.message}"
    line = f"{_VERBS[event.direction][0]} {items} was interrupted" if count == 1 else f"{items} were interrupted"
    if count > 1 or not event.bytes_total:
        return line
    parts = "" if event.parts_total is None else f", {event.parts_done} of {event.parts_total} parts"
    return f"{line} at {100 * event.bytes_done // event.bytes_total} %{parts}"


def name_of(event: ProgressEvent) -> str:
    """Name the transfer of an event, like `pushing bento iris:v1`."""
    return f"{_VERBS[event.direction][0]} {event.kind} {event.tag}"


def _percentage(done: int, total: int | None) -> str:
    return f"{100 * done // total} %, " if total else ""

"""The events of transfers, and their display by the listener that draws bars."""

from __future__ import annotations

import asyncio
import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from async_bento import ProgressEvent, ProgressEvents
from async_bento.progress.events import MAX_WAITING, Progress, is_watched


class Heard(list[ProgressEvent]):
    """A listener that records its events."""

    def __call__(self, event: ProgressEvent, /) -> None:
        self.append(event)

    @property
    def steps(self) -> list[tuple[str, int, int | None, str]]:
        return [(event.phase, event.bytes_done, event.bytes_total, event.message) for event in self]


@pytest.fixture
def heard() -> Heard:
    return Heard()


# Events


def test_transfer_sends_each_step(heard: Heard) -> None:
    with Progress("push", "bento", "iris:v1", heard) as progress:
        progress.enter("transferring", bytes_total=100)
        progress.advance(60)
        progress.advance(40)
        progress.enter("finishing")
    assert heard.steps == [
        ("planning", 0, None, ""),
        ("transferring", 0, 100, ""),
        ("transferring", 60, 100, ""),
        ("transferring", 100, 100, ""),
        ("finishing", 100, 100, ""),
        ("done", 100, 100, ""),
    ]
    assert {(event.direction, event.kind, event.tag) for event in heard} == {("push", "bento", "iris:v1")}


def test_note_is_sent_at_end(heard: Heard) -> None:
    with Progress("pull", "model", "m:1", heard) as progress:
        progress.note = "resumed"
    assert heard.steps[-1] == ("done", 0, None, "resumed")


def test_skipped_item_is_not_done(heard: Heard) -> None:
    with Progress("push", "model", "m:1", heard) as progress:
        progress.enter("skipped", "already pushed")
    assert heard.steps == [("planning", 0, None, ""), ("skipped", 0, None, "already pushed")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no space\nleft on device"), "no space"),
        (ValueError(), "ValueError"),
    ],
)
def test_failure_is_one_line(error: BaseException, message: str, heard: Heard) -> None:
    progress = Progress("push", "model", "m:1", heard, note="resumed")
    with pytest.raises(type(error)), progress:
        raise error
    assert heard.steps[-1] == ("failed", 0, None, message)


def test_cancelled_item_interrupted(heard: Heard) -> None:
    with pytest.raises(asyncio.CancelledError), Progress("push", "model", "m:1", heard):
        raise asyncio.CancelledError("via a scope of <Task …>")
    assert heard.steps[-1] == ("interrupted", 0, None, "")


def test_changed_tag_keeps_id(heard: Heard) -> None:
    with Progress("pull", "model", "m", heard) as progress:
        progress.tag = "m:v1"
    with Progress("pull", "model", "m", heard):
        pass
    first, second, third, fourth = (event.id for event in heard)
    assert 0 < first == second < third == fourth


def fail_after(progress: Progress, error: BaseException, *moved: int) -> None:
    with progress.attempt() as count:
        for number in moved:
            count(number)
        raise error


def test_failed_attempt_rolls_back(heard: Heard) -> None:
    progress = Progress("push", "bento", "iris:v1", heard)
    progress.advance(10)
    with pytest.raises(OSError, match="reset"):
        fail_after(progress, OSError("reset"), 3, 4)
    with progress.attempt() as count:
        count(7)
    assert [event.bytes_done for event in heard] == [10, 13, 17, 10, 17]


def test_cancelled_attempt_rolls_back() -> None:
    progress = Progress("push", "bento", "iris:v1")
    with pytest.raises(asyncio.CancelledError):
        fail_after(progress, asyncio.CancelledError(), 3)
    assert progress.bytes_done == 0


def test_attempts_count_separately() -> None:
    progress = Progress("push", "bento", "iris:v1")
    with progress.attempt() as lasting:
        lasting(5)
        with pytest.raises(OSError, match="reset"):
            fail_after(progress, OSError("reset"), 2)
        lasting(5)
    assert progress.bytes_done == 10


def test_empty_attempt_sends_nothing(heard: Heard) -> None:
    with pytest.raises(OSError, match="reset"):
        fail_after(Progress("push", "bento", "iris:v1", heard), OSError("reset"))
    assert heard == []


def test_raising_listener_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    events: list[ProgressEvent] = []

    def broken(event: ProgressEvent, /) -> None:
        events.append(event)
        raise RuntimeError("a bug of the listener")

    with Progress("push", "bento", "iris:v1", broken) as progress:
        progress.enter("transferring", bytes_total=100)
        progress.advance(100)
    assert (progress.phase, progress.bytes_done) == ("done", 100)
    assert len(events) == 1
    (record,) = caplog.records
    assert record.getMessage() == "the progress listener raised an error and receives no more events of bento iris:v1"
    assert record.exc_info is not None


def test_no_listener_works() -> None:
    with Progress("push", "bento", "iris:v1") as progress:
        progress.advance(1)
    assert progress.phase == "done"


def test_resume_counts_resumed_bytes(heard: Heard) -> None:
    with Progress("push", "model", "m:1", heard) as progress:
        progress.resume(62, 100)
        progress.advance(38)
    assert heard.steps[1:] == [
        ("transferring", 62, 100, "resuming at 62 %"),
        ("transferring", 100, 100, ""),
        ("done", 100, 100, ""),
    ]
    assert {event.bytes_resumed for event in heard[1:]} == {62}


def test_restart_resets_counters(heard: Heard) -> None:
    progress = Progress("push", "model", "m:1", heard)
    progress.parts_done, progress.parts_total = 3, 5
    progress.resume(62, 100)
    progress.restart(": it has changed")
    last = heard[-1]
    assert last.message == "restarting: it has changed"
    assert (last.bytes_done, last.bytes_resumed, last.parts_done, last.parts_total) == (0, 0, 0, None)


def test_counts_parts_and_retries(heard: Heard) -> None:
    progress = Progress("push", "model", "m:1", heard)
    progress.parts_total = 2
    progress.part_arrived()
    assert heard[-1].parts_done == 1
    progress.retry(OSError("reset\nby peer"))
    last = heard[-1]
    assert (last.parts_done, last.parts_total, last.retries, last.message) == (1, 2, 1, "retrying: reset")


# Events that are awaited


async def test_events_end_with_task() -> None:
    events = ProgressEvents()

    async def push() -> str:
        with Progress("push", "bento", "iris:v1", events) as progress:
            await asyncio.sleep(0)
            progress.enter("transferring", bytes_total=10)
            await asyncio.sleep(0.01)
            progress.advance(10)
        return "pushed"

    task = asyncio.create_task(push())
    heard = [(event.phase, event.bytes_done) async for event in events.until(task)]
    assert heard == [("planning", 0), ("transferring", 0), ("transferring", 10), ("done", 10)]
    assert await task == "pushed"


async def test_events_coalesce_when_slow() -> None:
    events = ProgressEvents()

    async def push() -> None:
        with Progress("push", "bento", "iris:v1", events) as progress:
            progress.enter("transferring", bytes_total=1000)
            for _ in range(1000):
                progress.advance(1)
            progress.retry(OSError("reset"))

    task = asyncio.create_task(push())
    await task
    heard = [(event.phase, event.bytes_done, event.message) async for event in events.until(task)]
    assert heard == [
        ("planning", 0, ""),
        ("transferring", 1000, ""),
        ("transferring", 1000, "retrying: reset"),
        ("done", 1000, ""),
    ]


async def test_coalesced_event_goes_last() -> None:
    events = ProgressEvents()
    for tag in ("iris:v1", "iris:v2", "iris:v1"):
        events(ProgressEvent("push", "bento", tag, "transferring"))
    task = asyncio.create_task(asyncio.sleep(0))
    assert [event.tag async for event in events.until(task)] == ["iris:v2", "iris:v1"]


async def test_unread_events_are_bounded() -> None:
    events = ProgressEvents()
    for number in range(MAX_WAITING + 10):
        with Progress("push", "bento", f"iris:{number}", events):
            pass
    task = asyncio.create_task(asyncio.sleep(0))
    heard = [event async for event in events.until(task)]
    assert len(heard) == MAX_WAITING
    assert (heard[-1].tag, heard[-1].phase) == (f"iris:{MAX_WAITING + 9}", "done")


async def test_task_error_is_not_raised() -> None:
    events = ProgressEvents()

    async def push() -> None:
        with Progress("push", "bento", "iris:v1", events):
            raise OSError("reset")

    task = asyncio.create_task(push())
    assert [event.phase async for event in events.until(task)] == ["planning", "failed"]
    with pytest.raises(OSError, match="reset"):
        await task


# The listener


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_is_watched_terminal_is_true() -> None:
    assert is_watched(Terminal())


def test_is_watched_file_is_false() -> None:
    assert not is_watched(io.StringIO())


def test_is_watched_uses_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_watched()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_watched()


def test_is_watched_no_stderr_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_watched()


def in_ipython(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def test_is_watched_notebook_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    in_ipython(monkeypatch, SimpleNamespace(kernel=object()))
    assert is_watched(io.StringIO())


@pytest.mark.parametrize("shell", [None, SimpleNamespace()])
def test_is_watched_needs_kernel(shell: object, monkeypatch: pytest.MonkeyPatch) -> None:
    in_ipython(monkeypatch, shell)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert not is_watched(io.StringIO())


async def test_events_left_early_forget_task() -> None:
    class Watched(asyncio.Future[None]):
        callbacks = 0

        def add_done_callback(self, *arguments: Any, **options: Any) -> None:
            self.callbacks += 1
            super().add_done_callback(*arguments, **options)

        def remove_done_callback(self, *arguments: Any) -> int:
            removed = super().remove_done_callback(*arguments)
            self.callbacks -= removed
            return removed

    task, events = Watched(), ProgressEvents()
    events(ProgressEvent("push", "bento", "iris:v1", "planning", 0, None))
    left = events.until(task)
    await anext(left)
    assert task.callbacks == 1
    await left.aclose()
    assert task.callbacks == 0

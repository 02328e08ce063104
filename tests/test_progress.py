"""What a transfer tells its listener, and what the listener that draws bars makes of it."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import ProgressEvent, TqdmListener
from async_bento.api import _listener
from async_bento.progress import Progress, is_watched

if TYPE_CHECKING:
    from async_bento.progress import Phase


class Heard(list[ProgressEvent]):
    """A listener that keeps what it hears."""

    def __call__(self, event: ProgressEvent, /) -> None:
        self.append(event)

    @property
    def steps(self) -> list[tuple[str, int, int | None, str]]:
        return [(event.phase, event.bytes_done, event.bytes_total, event.message) for event in self]


@pytest.fixture
def heard() -> Heard:
    return Heard()


# Events


def test_a_transfer_is_told_step_by_step(heard: Heard) -> None:
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


def test_a_note_is_told_at_the_end(heard: Heard) -> None:
    with Progress("pull", "model", "m:1", heard) as progress:
        progress.note = "resumed"
    assert heard.steps[-1] == ("done", 0, None, "resumed")


def test_what_was_skipped_is_not_done(heard: Heard) -> None:
    with Progress("push", "model", "m:1", heard) as progress:
        progress.enter("skipped", "already there")
    assert heard.steps == [("planning", 0, None, ""), ("skipped", 0, None, "already there")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no space\nleft on device"), "no space"),
        (ValueError(), "ValueError"),
        (asyncio.CancelledError("via a scope of <Task …>"), "cancelled"),
    ],
)
def test_a_failure_is_told_in_a_line_and_raised(error: BaseException, message: str, heard: Heard) -> None:
    progress = Progress("push", "model", "m:1", heard, note="resumed")
    with pytest.raises(type(error)), progress:
        raise error
    assert heard.steps[-1] == ("failed", 0, None, message)


def fail_after(progress: Progress, error: BaseException, *moved: int) -> None:
    with progress.attempt() as count:
        for number in moved:
            count(number)
        raise error


def test_a_failed_attempt_takes_its_bytes_back(heard: Heard) -> None:
    progress = Progress("push", "bento", "iris:v1", heard)
    progress.advance(10)
    with pytest.raises(OSError, match="reset"):
        fail_after(progress, OSError("reset"), 3, 4)
    with progress.attempt() as count:
        count(7)
    assert [event.bytes_done for event in heard] == [10, 13, 17, 10, 17]


def test_a_cancelled_attempt_takes_its_bytes_back() -> None:
    progress = Progress("push", "bento", "iris:v1")
    with pytest.raises(asyncio.CancelledError):
        fail_after(progress, asyncio.CancelledError(), 3)
    assert progress.bytes_done == 0


def test_attempts_side_by_side_take_back_only_their_own_bytes() -> None:
    progress = Progress("push", "bento", "iris:v1")
    with progress.attempt() as lasting:
        lasting(5)
        with pytest.raises(OSError, match="reset"):
            fail_after(progress, OSError("reset"), 2)
        lasting(5)
    assert progress.bytes_done == 10


def test_an_attempt_that_moved_nothing_tells_nothing(heard: Heard) -> None:
    with pytest.raises(OSError, match="reset"):
        fail_after(Progress("push", "bento", "iris:v1", heard), OSError("reset"))
    assert heard == []


def test_a_listener_that_raises_is_told_no_more_and_the_transfer_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    told: list[ProgressEvent] = []

    def broken(event: ProgressEvent, /) -> None:
        told.append(event)
        raise RuntimeError("a bug of the listener")

    with Progress("push", "bento", "iris:v1", broken) as progress:
        progress.enter("transferring", bytes_total=100)
        progress.advance(100)
    assert (progress.phase, progress.bytes_done) == ("done", 100)
    assert len(told) == 1
    (record,) = caplog.records
    assert record.getMessage() == "The progress listener raised and is told no more of bento iris:v1"
    assert record.exc_info is not None


def test_nobody_needs_to_listen() -> None:
    with Progress("push", "bento", "iris:v1") as progress:
        progress.advance(1)
    assert progress.phase == "done"


# Who looks


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_watched() -> None:
    assert is_watched(Terminal())


def test_a_file_is_not() -> None:
    assert not is_watched(io.StringIO())


def test_standard_error_is_what_counts_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert is_watched()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not is_watched()


def test_without_a_standard_error_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not is_watched()


def in_ipython(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def test_a_notebook_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    in_ipython(monkeypatch, SimpleNamespace(kernel=object()))
    assert is_watched(io.StringIO())


@pytest.mark.parametrize("shell", [None, SimpleNamespace()])
def test_who_has_ipython_or_a_kernel_imported_is_no_notebook_for_that(
    shell: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_ipython(monkeypatch, shell)
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert not is_watched(io.StringIO())


def test_the_api_is_silent_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert _listener(None) is None
    assert isinstance(_listener(True), TqdmListener)


def test_the_api_draws_where_someone_looks(monkeypatch: pytest.MonkeyPatch, heard: Heard) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(_listener(None), TqdmListener)
    assert _listener(False) is None
    assert _listener(heard) is heard


# Bars


@pytest.fixture
def screen() -> Terminal:
    return Terminal()


def event(phase: Phase, done: int = 0, total: int | None = None, message: str = "", **other: Any) -> ProgressEvent:
    return ProgressEvent(
        **{"direction": "push", "kind": "bento", "tag": "iris:v1", **other},
        phase=phase,
        bytes_done=done,
        bytes_total=total,
        message=message,
    )


def lines_left(screen: Terminal) -> list[str]:
    """What stands on a terminal at the end: a carriage return begins its line anew."""
    lines = [""]
    column = 0
    for character in screen.getvalue():
        if character == "\n":
            lines.append("")
            column = 0
        elif character == "\r":
            column = 0
        else:
            lines[-1] = lines[-1][:column] + character + lines[-1][column + 1 :]
            column += 1
    return [line.strip() for line in lines if line.strip()]


def test_a_bar_is_drawn_and_one_line_is_left(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    for told in (
        event("planning"),
        event("transferring", 0, 3 * 2**20),
        event("transferring", 3 * 2**20, 3 * 2**20),
        event("finishing", 3 * 2**20, 3 * 2**20),
        event("done", 3 * 2**20, 3 * 2**20),
    ):
        listener(told)
    assert "pushing bento iris:v1:   0%" in screen.getvalue()
    assert "/3.00M" in screen.getvalue()
    assert re.search(r"\[\d\d:\d\d<(\?|\d\d:\d\d), .*iB/s", screen.getvalue())  # time gone by, time left, rate
    assert lines_left(screen) == ["pushed bento iris:v1, 3.0 MiB"]


def test_nothing_is_drawn_before_bytes_move(screen: Terminal) -> None:
    TqdmListener(screen)(event("planning"))
    assert screen.getvalue() == ""


def test_a_bar_follows_bytes_that_were_taken_back(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    listener(event("transferring", 80, 100))
    (bar,) = listener._bars.values()
    assert (bar.n, bar.total) == (80, 100)
    listener(event("transferring", 50, 100))
    assert bar.n == 50
    listener(event("done", 100, 100))
    assert listener._bars == {}


def test_a_size_that_is_known_later_is_taken_over(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    listener(event("transferring", 10, None, direction="pull"))
    (bar,) = listener._bars.values()
    assert bar.total is None
    listener(event("transferring", 20, 100, direction="pull"))
    assert bar.total == 100
    listener(event("done", 100, 100, direction="pull"))
    assert lines_left(screen) == ["pulled bento iris:v1, 100 B"]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (event("skipped", message="already there"), "skipped bento iris:v1: already there"),
        (event("failed", message="no space"), "pushing bento iris:v1 failed: no space"),
        (event("failed", message="x", direction="pull", kind="model"), "pulling model iris:v1 failed: x"),
        (event("done", 2048, message="resumed"), "pushed bento iris:v1, 2.0 KiB (resumed)"),
        (event("done", direction="pull"), "pulled bento iris:v1, 0 B"),
    ],
)
def test_an_end_without_a_bar_is_one_line(told: ProgressEvent, line: str, screen: Terminal) -> None:
    TqdmListener(screen)(told)
    assert lines_left(screen) == [line]


def test_a_failure_takes_its_bar_away(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    listener(event("transferring", 5, 10))
    listener(event("failed", 5, 10, "reset"))
    assert lines_left(screen) == ["pushing bento iris:v1 failed: reset"]


def test_each_last_line_begins_at_the_left_whichever_bar_ends_first(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    for tag in ("m:1", "m:2", "m:3"):
        listener(event("transferring", 5, 10, tag=tag))
    for tag in ("m:1", "m:3", "m:2"):
        listener(event("done", 10, 10, tag=tag))
    drawn = screen.getvalue()
    assert {drawn[drawn.index(f"pushed bento {tag}") - 1] for tag in ("m:1", "m:2", "m:3")} <= set("\r\n")


def test_several_items_have_a_bar_each(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    several = [
        {"tag": "iris:v1"},
        {"tag": "iris:v1", "kind": "model"},
        {"tag": "iris:v2"},
        {"tag": "iris:v1", "direction": "pull"},
    ]
    for number, item in enumerate(several, start=1):
        listener(event("transferring", number, 10, **item))
    assert [bar.n for bar in listener._bars.values()] == [1, 2, 3, 4]
    for item in several:
        listener(event("done", 10, 10, **item))
    assert listener._bars == {}
    for line in (
        "pushed bento iris:v1, 10 B",
        "pushed model iris:v1, 10 B",
        "pushed bento iris:v2, 10 B",
        "pulled bento iris:v1, 10 B",
    ):
        assert screen.getvalue().count(line) == 1


def test_it_draws_on_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    TqdmListener()(event("skipped", message="already there"))
    assert capsys.readouterr() == ("", "skipped bento iris:v1: already there\n")

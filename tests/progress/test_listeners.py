"""The display of transfers: bars on a terminal, lines in a log."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import threading
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from async_bento import AsyncBentoAPI, BentoAPI, LineListener, ProgressEvent, TqdmListener
from async_bento.progress.listeners import (
    ECHO_COLUMNS,
    REDRAW_INTERVAL,
    CommandBars,
    JsonListener,
    _columns,
    choose_listener,
)
from async_bento.progress.summary import (
    IDLE_RESET,
    SAMPLE_INTERVAL,
    STALL_AFTER,
    Rate,
    TransferSummary,
    facts_of,
    fit,
    fit_name,
)
from tests.builders import KiB, MiB, make_model, random_bytes
from tests.eventually import eventually
from tests.fault_proxy import PUT, Hold
from tests.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from async_bento.progress.events import Phase
    from async_bento.progress.summary import Item
    from tests.fixtures import StartProxy


tqdm.get_lock()  # its first use reads files, which no test may do on its event loop


@dataclass
class Clock:
    """A clock controlled by the test."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def closed_bars() -> Iterator[None]:
    """Close the bars that a test leaves: if one is collected while tqdm iterates over all of them, tqdm fails."""
    yield
    for bar in [*getattr(tqdm, "_instances", [])]:
        bar.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
    """Return the final lines of a terminal, which adds a carriage return to a line feed."""
    display = Screen()
    display.write(screen.getvalue().replace("\n", "\r\n"))
    return [line.strip() for line in display.lines if line.strip()]


def test_bar_leaves_one_line(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    for sent in (
        event("planning"),
        event("transferring", 0, 40 * MiB, parts_total=8),
        event("transferring", 10 * MiB, 40 * MiB, parts_done=2, parts_total=8),
        event("transferring", 20 * MiB, 40 * MiB, parts_done=4, parts_total=8, retries=1),
        event("finishing", 40 * MiB, 40 * MiB, parts_done=8, parts_total=8, retries=1),
        event("done", 40 * MiB, 40 * MiB),
    ):
        listener(sent)
        clock.now += 1
    drawn = screen.getvalue()
    assert "pushing bento iris:v1  planning" in drawn
    assert "0 %|" in drawn
    assert "0 B/40.0 MiB, 0/8 parts" in drawn
    assert "50 %|" in drawn
    assert "20.0/40.0 MiB, 10.0 MiB/s, 2 s left" in drawn
    assert "finishing, 8/8 parts, 1 retry" in drawn
    assert lines_left(screen) == ["pushed bento iris:v1, 40.0 MiB"]


@pytest.mark.parametrize("columns", [80, 120])
def test_bar_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = Terminal()
    monkeypatch.setattr("async_bento.progress.listeners._columns", lambda _: columns)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (columns, 30))
    listener = TqdmListener(screen, clock=clock)
    tag = f"a-model-with-a-very-long-name-{'x' * 60}:v1"
    for done in range(0, 40, 5):
        listener(
            event("transferring", done * MiB, 40 * MiB, tag=tag, kind="model", parts_done=3, parts_total=8, retries=12)
        )
        clock.now += 1
    listener(event("done", tag=tag, kind="model"))
    frames = [frame for frame in screen.getvalue().split("\r") if "%|" in frame]
    assert frames
    assert all(len(frame) <= columns - ECHO_COLUMNS for frame in frames), max(frames, key=len)
    assert "…" in frames[-1]
    assert "MiB/s" in frames[-1]
    assert "##" in frames[-1]
    assert ("12 retries" in frames[-1]) is (columns == 120)


def test_bar_follows_rollback(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    listener(event("transferring", 80, 100))
    (bar,) = listener._bars
    assert (bar.n, bar.total) == (80, 100)
    clock.now += 1
    listener(event("transferring", 50, 100))
    assert bar.n == 50
    listener(event("done", 100, 100))
    assert not listener._bars


def test_bar_adopts_late_size(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    listener(event("transferring", 10, None, direction="pull"))
    (bar,) = listener._bars
    assert bar.total is None
    clock.now += 1
    listener(event("transferring", 20, 100, direction="pull"))
    assert bar.total == 100
    listener(event("done", 100, 100, direction="pull"))
    assert lines_left(screen) == ["pulled bento iris:v1, 100 B"]


def test_bar_redraws_are_throttled(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    for done in range(1000):
        listener(event("transferring", done, 1000))
        clock.now += 0.001
    listener(event("done", 1000, 1000))
    assert screen.getvalue().count("%|") <= 11


def test_bar_messages_become_lines(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    listener(event("planning", message="waiting: another process is pushing this version"))
    listener(event("transferring", 62, 100, "resuming at 62 %", bytes_resumed=62))
    clock.now += 1
    listener(event("transferring", 62, 100, "retrying: reset", bytes_resumed=62, retries=1))
    listener(event("done", 100, 100, bytes_resumed=62, retries=1))
    assert "1 retry" in screen.getvalue()
    assert "retrying" not in screen.getvalue()
    assert lines_left(screen) == [
        "pushing bento iris:v1: waiting: another process is pushing this version",
        "pushing bento iris:v1: resuming at 62 %",
        "pushed bento iris:v1, 100 B, resumed at 62 %, 1 retry",
    ]


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (event("interrupted", 5, 10), "pushing bento iris:v1 was interrupted at 50 %"),
        (
            event("interrupted", 5, 10, parts_done=3, parts_total=6),
            "pushing bento iris:v1 was interrupted at 50 %, 3 of 6 parts",
        ),
        (event("skipped", message="already pushed"), "skipped bento iris:v1: already pushed"),
        (event("done", 2048, message="resumed"), "pushed bento iris:v1, 2.0 KiB (resumed)"),
        (event("done", direction="pull"), "pulled bento iris:v1, 0 B"),
        (event("done", 100, 100, bytes_resumed=62), "pushed bento iris:v1, 100 B, resumed at 62 %"),
        (event("done", 100, 100, retries=1), "pushed bento iris:v1, 100 B, 1 retry"),
        (event("interrupted", 5, 10, direction="verify"), "checking bento iris:v1 was interrupted at 50 %"),
    ],
)
def test_item_without_bar_leaves_line(sent: ProgressEvent, line: str, screen: Terminal) -> None:
    TqdmListener(screen)(sent)
    assert lines_left(screen) == [line]


@pytest.mark.parametrize("direction", ["verify", "diff"])
def test_comparison_leaves_no_line(direction: str, screen: Terminal) -> None:
    """The call returns the result, and its caller reports it."""
    listener = TqdmListener(screen)
    listener(event("transferring", 5, 10, direction=direction))
    listener(event("done", 10, 10, direction=direction))
    assert lines_left(screen) == []


def test_failure_leaves_no_line(screen: Terminal) -> None:
    """The call raises the error, and its caller reports it."""
    listener = TqdmListener(screen)
    listener(event("transferring", 5, 10))
    listener(event("failed", 5, 10, "reset"))
    assert lines_left(screen) == []


def test_bar_counts_skipped_items(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    models = many(30)
    for model in models:
        listener(event("planning", **model))
    for model in models[:28]:
        listener(event("skipped", message="already pushed", **model))
    for model in models[28:]:
        listener(event("interrupted", **model))
    assert lines_left(screen) == ["skipped 28 models: already pushed", "2 models were interrupted"]


def test_command_bar_counts_skipped(screen: Terminal) -> None:
    bars = CommandBars(screen)
    for item in many(12):
        bars(event("planning", **item))
        bars(event("skipped", message="already pushed", **item))
        bars(event("planning", tag="shared:v1", id=100))
        bars(event("skipped" if item["id"] > 1 else "done", tag="shared:v1", id=100, message="already pushed"))
    bars.close()
    assert lines_left(screen) == ["pushed bento shared:v1, 0 B (already pushed)", "skipped 12 models: already pushed"]


def test_bar_lines_start_at_margin(screen: Terminal) -> None:
    listener = TqdmListener(screen)
    for tag in ("m:1", "m:2", "m:3"):
        listener(event("transferring", 5, 10, tag=tag))
    for tag in ("m:1", "m:3", "m:2"):
        listener(event("done", 10, 10, tag=tag))
    drawn = screen.getvalue()
    assert {drawn[drawn.index(f"pushed bento {tag}") - 1] for tag in ("m:1", "m:2", "m:3")} <= set("\r\n")


def test_bar_per_item_and_total(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    several = [
        {"tag": "iris:v1"},
        {"tag": "iris:v1", "kind": "model"},
        {"tag": "iris:v2"},
        {"tag": "iris:v1", "direction": "pull"},
    ]
    for number, item in enumerate(several, start=1):
        clock.now += 1
        listener(event("transferring", number, 10, **item))
    assert [(bar.n, bar.total) for bar in listener._bars] == [(1, 10), (2, 10), (3, 10), (4, 10), (10, 40)]
    assert "transferring 4 items, 0 done   25 %" in screen.getvalue()
    assert lines_left(screen)[0].startswith("bento iris:v1")
    for item in several:
        listener(event("done", 10, 10, **item))
    assert not listener._bars
    assert lines_left(screen) == [
        "pushed bento iris:v1, 10 B",
        "pushed model iris:v1, 10 B",
        "pushed bento iris:v2, 10 B",
        "pulled bento iris:v1, 10 B",
    ]


def many(count: int) -> list[dict[str, Any]]:
    return [{"kind": "model", "tag": f"model_{n:02}:2026.11.25-a{n}", "id": n} for n in range(1, count + 1)]


@pytest.mark.parametrize("count", [2, 8, 9, 30])
def test_bar_block_has_no_gaps(count: int, screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    for item in many(count):
        listener(event("transferring", 2 * MiB, 4 * MiB, **item))
    clock.now += 1
    listener(event("transferring", 3 * MiB, 4 * MiB, **many(count)[0]))
    lines = lines_left(screen)
    assert len(lines) == (count + 1 if count <= 8 else 7)
    assert lines[0].startswith("model model_01:2026.11.25-a1 ")
    assert lines[-1].startswith(f"pushing {count} items, 0 done")
    assert (f"+ {count - 5} more" in lines) is (count > 8)
    assert all("model_" in line and "%|" in line for line in lines[:5] if "items" not in line)
    for item in many(count)[1:]:
        listener(event("done", 4 * MiB, 4 * MiB, **item))
    clock.now += 1
    listener(event("transferring", 3 * MiB, 4 * MiB, **many(count)[0]))
    first, last = lines_left(screen)[-2:]
    assert first.startswith("model model_01")
    assert last.startswith(f"pushing {count} items, {count - 1} done")
    listener(event("done", 4 * MiB, 4 * MiB, **many(count)[0]))
    assert len(lines_left(screen)) == count
    assert all(line.startswith("pushed model model_") for line in lines_left(screen))


def test_busiest_bars_stay(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    for second in range(4):
        for number, item in enumerate(many(30)):
            listener(event("transferring", second * (number + 1) * KiB, MiB, **item))
        clock.now += 1
    assert [line.split()[1] for line in lines_left(screen)[:5]] == [item["tag"] for item in many(30)[25:]]
    listener(event("done", MiB, MiB, **many(30)[25]))
    clock.now += 1
    listener(event("transferring", 3 * KiB, MiB, **many(30)[0]))
    assert [line.split()[1] for line in lines_left(screen)[1:6]] == [
        item["tag"] for item in [many(30)[24], *many(30)[26:]]
    ]


def test_transferring_items_are_drawn(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    for item in many(9):
        listener(event("transferring" if item["id"] > 4 else "planning", 0, MiB, **item))
    clock.now += 1
    listener(event("transferring", 0, MiB, **many(9)[-1]))
    assert [line.split()[1] for line in lines_left(screen)[:5]] == [item["tag"] for item in many(9)[4:]]


@pytest.mark.parametrize(("stream", "erased"), [(Terminal(), 1), (io.StringIO(), 0)])
def test_last_bar_erases_its_line(stream: io.StringIO, erased: int) -> None:
    """A terminal may have echoed `^C` next to it."""
    listener = TqdmListener(stream)
    for phase in ("transferring", "done"):
        for item in many(2):
            listener(event(phase, 10, 10, **item))
    assert stream.getvalue().count("\x1b[K") == erased


class Widget:
    """A bar of a notebook."""

    container = None

    def __init__(self, **_: object) -> None:
        self.total: int | None = None
        self.steps: list[object] = []

    def reset(self, total: int | None) -> None:
        self.steps.append(total)

    def refresh(self) -> None:
        self.steps.append(vars(self).get("ncols", "refresh"))

    def close(self) -> None:
        self.steps += ["close", self.total]


def test_widget_gets_total_and_closes(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr(Widget, "get_lock", lambda: None, raising=False)
    monkeypatch.setattr("async_bento.progress.listeners._bar_class", lambda _: Widget)
    listener = TqdmListener(clock=clock)
    listener(event("planning"))
    (bar,) = listener._bars
    for done in (1, 2):
        clock.now += 1
        listener(event("transferring", done, 10))
    listener(event("failed", 2, 10))
    assert isinstance(bar, Widget)
    assert bar.steps == ["refresh", 10, "refresh", "refresh", "close", None]


@pytest.mark.parametrize(
    ("width", "name"),
    [
        (27, "model weights:2026.11.25-a5"),
        (26, "weights:2026.11.25-a5"),
        (21, "weights:2026.11.25-a5"),
        (15, "weights:….25-a5"),
        (10, "weights:…5"),
        (9, "weig…5-a5"),
        (8, "weig…-a5"),
    ],
)
def test_fit_name_cuts_version_first(width: int, name: str) -> None:
    sent = event("transferring", kind="model", tag="weights:2026.11.25-a5")
    assert fit_name(sent, width) == name


def test_bar_shows_stalled_time(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    for second in range(3):
        listener(event("transferring", second * MiB, 40 * MiB))
        clock.now += 1
    clock.now += 11
    listener(event("transferring", 2 * MiB, 40 * MiB, retries=1))
    assert lines_left(screen)[0].endswith("2.0/40.0 MiB, stalled 12 s, 1 retry")
    listener(event("finishing", 40 * MiB, 40 * MiB))
    clock.now += 7
    listener(event("finishing", 40 * MiB, 40 * MiB))
    assert "finishing for 7 s" in lines_left(screen)[0]


async def test_bar_shows_last_event(screen: Terminal) -> None:
    """Events closer than two redraws must not freeze a bar below its last value."""
    listener = TqdmListener(screen)
    for item in many(3):
        listener(event("transferring", 0, 100, **item))
    for item in many(3):
        listener(event("transferring", 75, 100, **item))
    await eventually(lambda: [line.count(" 75 %") for line in lines_left(screen)] == [1, 1, 1, 1])
    for item in many(3):
        listener(event("done", 100, 100, **item))
    drawn = len(screen.getvalue())
    await asyncio.sleep(3 * REDRAW_INTERVAL)
    assert len(screen.getvalue()) == drawn
    assert listener._timer._handle is None


async def test_bar_ages_without_events(screen: Terminal, clock: Clock) -> None:
    listener = TqdmListener(screen, clock=clock)
    listener(event("transferring", 10, 100))
    clock.now += 12
    await eventually(lambda: "stalled 12 s" in screen.getvalue())
    listener(event("interrupted", 10, 100))


async def test_blocking_call_bar_ages(start_proxy: StartProxy, home: Path, screen: Terminal, clock: Clock) -> None:
    """The thread of the event loop redraws while the thread of the caller waits."""
    make_model(home, files={"weights": random_bytes(MiB)})
    proxy, held = await start_proxy(), Hold()
    proxy.add_fault(PUT, held)

    def push() -> None:
        with BentoAPI(
            endpoint=proxy.endpoint, api_token=proxy.registry.api_token, progress=TqdmListener(screen, clock=clock)
        ) as api:
            api.models.push("mod:m1")

    call = asyncio.create_task(asyncio.to_thread(push))
    await held.arrived.wait()
    await eventually(lambda: "1.0/1.0 MiB" in screen.getvalue())
    for seconds in (7, 8):
        clock.now = 100.0 + seconds
        await eventually(lambda: f"no answer for {seconds} s" in screen.getvalue())  # noqa: B023 - called before the next one
    held.released.set()
    await call
    assert lines_left(screen)[-1].startswith("pushed model mod:m1, ")


def test_bar_timer_ends_with_loop(screen: Terminal) -> None:
    listener = TqdmListener(screen)

    async def start(item: dict[str, Any]) -> None:
        listener(event("transferring", 10, 100, **item))
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(start(many(1)[0]))  # closed during the transfer
    threads = threading.active_count()

    async def end() -> None:
        listener(event("transferring", 20, 100, **many(1)[0]))
        await eventually(lambda: " 20 %" in screen.getvalue())
        listener(event("done", 100, 100, **many(1)[0]))

    asyncio.run(end())
    assert lines_left(screen) == ["pushed model model_01:2026.11.25-a1, 100 B"]
    assert threading.active_count() == threads


def test_bar_makes_lock_before_events(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    monkeypatch.setattr(tqdm, "get_lock", lambda: made.append(True))
    TqdmListener(screen)
    assert made


def test_bar_defaults_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_bento.progress.listeners.find_spec", lambda name: find_spec("io"))
    TqdmListener()(event("skipped", message="already pushed"))
    assert capsys.readouterr() == ("", "skipped bento iris:v1: already pushed\n")
    TqdmListener()(event("transferring", 5, 10))
    output, errors = capsys.readouterr()
    assert output == ""
    assert "pushing bento iris:v1   50 %|" in errors


def test_columns_are_those_of_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as file:
        assert _columns(file) == 80  # not a terminal
        columns = {file.fileno(): 120}
        monkeypatch.setattr("os.get_terminal_size", lambda number: os.terminal_size((columns[number], 24)))
        assert _columns(file) == 120
        columns[file.fileno()] = 0
        assert _columns(file) == 80
    assert _columns(file) == 80  # closed
    monkeypatch.setattr(sys, "stderr", None)
    assert _columns(None) == 80


# Choice of the listener


def looked_at(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, notebook: bool = False) -> None:
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object()) if notebook else None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(sys, "stderr", stream)


def test_unwatched_default_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(monkeypatch, io.StringIO())
    assert choose_listener(None) is None


def test_progress_true_writes_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(monkeypatch, io.StringIO())
    assert isinstance(choose_listener(True), LineListener)


def test_terminal_default_draws_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(monkeypatch, Terminal())
    assert isinstance(choose_listener(None), TqdmListener)
    assert isinstance(choose_listener(True), TqdmListener)
    assert choose_listener(False) is None


def test_notebook_needs_ipywidgets(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at(monkeypatch, io.StringIO(), notebook=True)
    monkeypatch.setattr("async_bento.progress.listeners.find_spec", lambda name: find_spec("io"))
    assert isinstance(choose_listener(None), TqdmListener)
    monkeypatch.setattr("async_bento.progress.listeners.find_spec", lambda name: None)
    assert isinstance(choose_listener(None), LineListener)


async def test_listener_may_be_a_function() -> None:
    events: list[ProgressEvent] = []
    async with AsyncBentoAPI(endpoint="http://127.0.0.1:1", api_token="t", progress=events.append) as api:
        with api._resources.progress("push", "bento", "iris:v1"):  # type: ignore[arg-type]
            pass
    assert [event.phase for event in events] == ["planning", "done"]


# Rates


def test_rate_covers_last_seconds() -> None:
    rate = Rate()
    for second in range(60):
        rate.record(second * (100 if second < 30 else 0) + 30 * (100 if second >= 30 else 0), float(second))
    assert rate.per_second(59.0) == 0
    rate = Rate()
    for second in range(20):
        rate.record(second * 100, float(second))
    assert rate.per_second(19.0) == 100
    assert rate.per_second(30.0) == 50  # ten samples of the last 20 seconds


def test_rate_starts_unknown() -> None:
    rate = Rate()
    assert rate.per_second(0.0) is None
    rate.record(0, 0.0)
    rate.record(10**9, 0.5)
    assert rate.per_second(0.6) is None
    rate.record(10**9, 1.0)
    assert rate.per_second(1.0) == 10**9


def test_rate_samples_each_interval() -> None:
    rate = Rate()
    rate.record(0, 0.0)
    rate.record(100, SAMPLE_INTERVAL)
    rate.record(900, 2 * SAMPLE_INTERVAL - 0.01)
    assert rate.per_second(2.0) == 100


def test_rate_keeps_two_samples() -> None:
    rate = Rate()
    for moved, now in ((0, 0.0), (100, 1.0), (1550, 30.0)):
        rate.record(moved, now)
    assert rate.per_second(30.0) == 50


def test_rate_excludes_planning() -> None:
    summary = TransferSummary()
    summary.record(event("planning"), 0.0)
    summary.record(event("transferring", 0, 1000), 60.0)
    last = event("transferring", 200, 1000)
    summary.record(last, 62.0)
    assert facts_of(active(summary), 62.0)[1] == "100 B/s"


def test_rate_smooths_bursts() -> None:
    rate, speeds = Rate(), []
    for tenth in range(300):  # 100 bytes a second, all in the last tenth of each second
        rate.record(100 * (tenth // 10), tenth / 10)
        if tenth > 100 and (speed := rate.per_second(tenth / 10)) is not None:
            speeds.append(speed)
    assert max(speeds) <= 115
    assert min(speeds) >= 85


def test_rate_excludes_resumed_bytes() -> None:
    summary = TransferSummary()
    summary.record(event("transferring", 620 * MiB, 1000 * MiB, bytes_resumed=620 * MiB), 0.0)
    summary.record(event("transferring", 622 * MiB, 1000 * MiB, bytes_resumed=620 * MiB), 2.0)
    last = event("transferring", 624 * MiB, 1000 * MiB, bytes_resumed=620 * MiB)
    summary.record(last, 4.0)
    assert facts_of(active(summary), 4.0) == ["624.0/1000.0 MiB", "1.0 MiB/s", "6 min 16 s left"]
    assert summary.facts(4.0) == facts_of(active(summary), 4.0)


def test_rate_excludes_late_resume() -> None:
    summary = TransferSummary()
    for now, done in enumerate((0, 620, 720)):
        resumed = {"bytes_resumed": 620, "retries": 1} if now else {}
        summary.record(event("transferring", done, 1000, **resumed), float(now))
    facts = ["720/1000 B", "50 B/s", "6 s left", "1 retry"]
    assert facts_of(active(summary), 2.0) == summary.facts(2.0) == facts


def test_summary_restarts_after_idle() -> None:
    summary = TransferSummary()
    summary.record(event("done", 10, 10, kind="model"), 10.0)
    summary.record(event("transferring", 0, 10), 10.0 + IDLE_RESET)
    assert (summary.count, summary.done, summary.total) == (2, 10, 20)
    summary.record(event("done", 10, 10), 12.0)
    summary.record(event("transferring", 0, 30, tag="iris:v2"), 60.0)
    assert (summary.count, summary.done, summary.total) == (1, 0, 30)
    assert active(summary).event.tag == "iris:v2"
    assert summary.facts(61.0) == ["0/30 B"]


def test_rate_of_later_items_is_exact() -> None:
    summary = TransferSummary()
    for item in many(21):
        summary.record(event("transferring", 0, 1000, **item), float(item["id"] > 1))
    summary.record(event("transferring", 100, 1000, **many(21)[0]), 2.0)
    assert summary.facts(2.0)[1] == "50 B/s"


@pytest.mark.parametrize(
    ("sent", "fact"),
    [
        (event("planning"), "planning for 5 s"),
        (event("transferring", 5, 10), "stalled 5 s"),
        (event("transferring", 10, 10), "no answer for 5 s"),
    ],
)
def test_stall_shows_after_limit(sent: ProgressEvent, fact: str) -> None:
    summary = TransferSummary()
    summary.record(sent, 0.0)
    assert fact in facts_of(active(summary), STALL_AFTER)
    assert not any("5 s" in other for other in facts_of(active(summary), STALL_AFTER - 0.1))


@pytest.mark.parametrize(
    ("sent", "facts"),
    [
        (event("transferring", 0, 100), ["0/100 B", "0 B/s"]),
        (event("transferring", 100, None), ["100 B", "50 B/s"]),
        (event("transferring", 100, 100), ["100/100 B"]),
    ],
)
def test_rate_without_end_is_shown(sent: ProgressEvent, facts: list[str]) -> None:
    summary = TransferSummary()
    summary.record(event("transferring", 0, sent.bytes_total), 0.0)
    summary.record(sent, 2.0)
    assert facts_of(active(summary), 2.0) == facts


def test_summary_forgets_ended_items() -> None:
    """Overlapping transfers never leave the summary idle; its memory and its time must not grow."""
    summary, now = TransferSummary(), 0.0
    for number in range(1, 2001):
        now += 1
        summary.record(event("transferring", 0, 10, id=number), now)
        summary.record(event("transferring", 7, 10, id=number), now)
        if number > 1:
            summary.record(event("done", 10, 10, id=number - 1), now)
    assert [item.event.id for item in summary.active] == [2000]
    assert (summary.count, summary.done, summary.total) == (2000, 19_997, 20_000)
    summary.record(event("failed", 7, 10, id=2000), now)
    assert (summary.done, summary.total) == (19_997, 19_997)


def test_event_cost_is_constant() -> None:
    """Counts the lines run per event instead of the time."""
    steps: dict[int, int] = {}
    for count in (10, 1000):
        listener = TqdmListener(Terminal(), clock=Clock())
        for item in many(count):
            listener(event("transferring", 0, MiB, **item))
        steps[count] = steps_of(partial(listener, event("transferring", KiB, MiB, **many(count)[-1])))
    assert steps[1000] == steps[10]


def steps_of(function: Callable[[], None]) -> int:
    """Count the lines that a function runs."""
    steps = 0

    def trace(_frame: object, _what: str, _argument: object) -> Any:
        nonlocal steps
        steps += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return steps


def active(summary: TransferSummary) -> Item:
    (item,) = summary.active
    return item


def test_fit_drops_last_facts() -> None:
    assert fit(["1.0/2.0 MiB", "1.0 MiB/s", "1 s left"], 24) == "1.0/2.0 MiB, 1.0 MiB/s"
    assert fit(["1.0/2.0 MiB"], 3) == "1.0/2.0 MiB"


# Lines


def test_lines_written_at_interval(clock: Clock) -> None:
    log = io.StringIO()
    listener = LineListener(log, clock=clock)
    listener(event("planning"))
    for second in range(11):
        clock.now = 100.0 + second
        listener(event("transferring", second * MiB, 40 * MiB, parts_done=second // 5, parts_total=8))
    listener(event("transferring", 10 * MiB, 40 * MiB, "resuming at 25 %"))
    listener(event("done", 40 * MiB, 40 * MiB))
    clock.now += 60
    listener(event("planning", tag="iris:v2"))
    assert log.getvalue().splitlines() == [
        "pushing bento iris:v1: 12 %, 5.0/40.0 MiB, 1.0 MiB/s, 35 s left, 1/8 parts",
        "pushing bento iris:v1: 25 %, 10.0/40.0 MiB, 1.0 MiB/s, 30 s left, 2/8 parts",
        "pushing bento iris:v1: resuming at 25 %",
        "pushed bento iris:v1, 40.0 MiB",
    ]


def test_lines_summarise_all_items(clock: Clock) -> None:
    log = io.StringIO()
    listener = LineListener(log, interval=2, clock=clock)
    for tag in ("m:1", "m:2", "m:3"):
        listener(event("transferring", 0, 10 * MiB, kind="model", tag=tag))
    listener(event("done", 10 * MiB, 10 * MiB, kind="model", tag="m:1"))
    clock.now += 2
    listener(event("transferring", 5 * MiB, 10 * MiB, kind="model", tag="m:2", retries=2))
    assert log.getvalue().splitlines() == [
        "pushed model m:1, 10.0 MiB",
        "pushing 3 items, 1 done: 50 %, 15.0/30.0 MiB, 7.5 MiB/s, 2 s left, 2 retries",
    ]
    assert "\r" not in log.getvalue()


def test_lines_count_unsized_items(clock: Clock) -> None:
    log = io.StringIO()
    listener = LineListener(log, interval=2, clock=clock)
    for item in many(3):
        listener(event("planning", **item))
    clock.now += 2
    listener(event("planning", **many(3)[0]))
    assert log.getvalue() == "pushing 3 items, 0 done\n"


def test_lines_may_omit_results(clock: Clock) -> None:
    log = io.StringIO()
    listener = LineListener(log, clock=clock, results=False)
    listener(event("transferring", 0, 10))
    clock.now += 5
    listener(event("transferring", 5, 10))
    listener(event("done", 10, 10))
    assert log.getvalue().splitlines() == ["pushing bento iris:v1: 50 %, 5/10 B, 1 B/s, 5 s left"]


async def test_lines_continue_when_stalled(clock: Clock) -> None:
    """A CI system ends a job without output."""
    log = io.StringIO()
    listener = LineListener(log, interval=0.05, clock=clock)
    listener(event("transferring", 5, 10))
    clock.now += 60
    await eventually(lambda: log.getvalue() == "pushing bento iris:v1: 50 %, 5/10 B, stalled 1 min 00 s\n")
    listener(event("failed", 5, 10, "reset"))
    assert log.getvalue().count("\n") == 1
    assert listener._timer._handle is None


@pytest.mark.parametrize("make", [LineListener, JsonListener])
def test_lines_are_flushed(
    make: Callable[[io.StringIO], Callable[[ProgressEvent], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Log(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    log = Log()
    monkeypatch.delitem(sys.modules, "tqdm")
    make(log)(event("done", 10))
    assert log.flushed == log.getvalue() != ""


# JSON


def test_json_samples_events(clock: Clock) -> None:
    log = io.StringIO()
    listener = JsonListener(log, clock=clock)
    listener(event("planning", id=7))
    listener(event("transferring", 0, 10, id=7))
    for done in range(1, 11):
        clock.now += 0.25
        listener(event("transferring", done, 10, id=7))
    listener(event("transferring", 10, 10, "retrying: reset", id=7, retries=1))
    listener(event("done", 10, 10, id=7, retries=1))
    written = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(one["phase"], one["bytes_done"]) for one in written] == [
        ("planning", 0),
        ("transferring", 0),
        ("transferring", 4),
        ("transferring", 8),
        ("transferring", 10),
        ("done", 10),
    ]
    assert {one["id"] for one in written} == {7}
    assert written[-2]["message"] == "retrying: reset"
    assert listener._written == {}

"""The progress of the command on a terminal, in a pipe, and as JSON."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import signal
import struct
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from async_bento import BentoAPI, LineListener
from async_bento.cli import main
from async_bento.cli.progress import progress_mode
from tests.builders import MiB, make_bento, make_model, random_bytes
from tests.cli_runner import make_runner
from tests.eventually import eventually
from tests.fault_proxy import GET, PART, PUT, FaultProxy, Hold, refuse, stop_sending
from tests.screen import Screen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry
    from tests.fixtures import StartProxy

SECONDS = 60


class Terminal:
    """A command on its own terminal."""

    def __init__(self, process: asyncio.subprocess.Process, master: int, screen: Screen) -> None:
        self.process = process
        self._screen = screen
        self._master = master
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._closed = asyncio.Event()
        os.set_blocking(master, False)
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the command has ended
            data = b""
        self._screen.write(self._decoder.decode(data))
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
            self._closed.set()

    @property
    def lines(self) -> list[str]:
        return self._screen.lines

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    async def end(self) -> int:
        """Wait for the end of the command, and return its exit code."""
        code = await asyncio.wait_for(self.process.wait(), SECONDS)
        await asyncio.wait_for(self._closed.wait(), SECONDS)
        return code


COMMAND = (sys.executable, "-m", "async_bento")


@asynccontextmanager
async def on_terminal(
    *arguments: str, columns: int = 80, program: Sequence[str] = COMMAND, **environment: str
) -> AsyncIterator[Terminal]:
    """Run the command or another program on a terminal of 24 lines."""
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    try:
        process = await asyncio.create_subprocess_exec(
            *program,
            *arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, **environment},
        )
    finally:
        os.close(slave)
    try:
        yield Terminal(process, master, Screen(columns))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


@pytest.fixture
async def proxy(start_proxy: StartProxy, home: Path, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    proxy = await start_proxy()
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", proxy.endpoint)
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", proxy.registry.api_token)
    monkeypatch.setenv("ASYNC_BENTO_RETRY_ATTEMPTS", "1")
    return proxy


def make_models(home: Path, count: int) -> list[str]:
    tags = [f"model_{number:02}:2026.11.25-a{number}" for number in range(1, count + 1)]
    for tag in tags:
        make_model(home, tag, {"weights": random_bytes(100_000)})
    make_bento(home, models=tags)
    return tags


@pytest.mark.processes
@pytest.mark.parametrize(("count", "columns"), [(1, 80), (8, 120), (30, 80), (30, 120)])
async def test_terminal_bars_become_lines(count: int, columns: int, proxy: FaultProxy, home: Path) -> None:
    tags, held = make_models(home, count), Hold(count)
    proxy.add_fault(PUT, held, times=None)
    async with on_terminal("push", "svc:v1", columns=columns) as terminal:
        await held.arrived.wait()
        drawn = count if count == 1 else (count + 1 if count <= 8 else 7)
        await eventually(lambda: len(terminal.lines) == drawn and str(count) in terminal.lines[-1])
        if count == 1:
            assert terminal.lines[0].startswith("pushing model model_01:2026.11.25-a1 ")
        else:
            assert all("model_" in line for line in terminal.lines[: min(count, 5)])
            await eventually(lambda: terminal.lines[-1].startswith(f"pushing {count} items, 0 done"))
        assert (f"+ {count - 5} more" in terminal.lines) is (count > 8)
        held.released.set()
        assert await terminal.end() == 0
    *models, bento = terminal.lines
    assert sorted(line.partition(",")[0] for line in models) == [f"pushed model {tag}" for tag in tags]
    assert bento.startswith("pushed bento svc:v1, ")


@pytest.mark.processes
async def test_terminal_pull_has_two_lines(proxy: FaultProxy, home: Path, elsewhere: Path) -> None:
    make_bento(home)
    async with on_terminal("push", "svc:v1") as terminal:
        assert await terminal.end() == 0
    for line in ("pulled bento svc:v1, ", "skipped bento svc:v1: already pulled"):
        async with on_terminal("pull", "svc", *(["--force"] if line.startswith("pulled") else [])) as terminal:
            assert await terminal.end() == 0
        shown = "".join(terminal.lines)  # a long path wraps
        assert shown.startswith(line)
        assert shown.endswith(f"svc:v1 is in {home / 'bentos/svc/v1'}")


@pytest.mark.processes
async def test_ctrl_c_shows_interruption(proxy: FaultProxy, home: Path) -> None:
    make_model(home, files={"weights": random_bytes(40 * MiB)})
    held = Hold()
    proxy.add_fault(PART, held, times=None, skip=1)
    async with on_terminal("models", "push", "mod:m1", columns=120) as terminal:
        await held.arrived.wait()
        await eventually(lambda: "1/9 parts" in terminal.lines[0])
        terminal.type("\x03")  # echoed; only a foreground process gets the signal, too
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.end() == 130
    held.released.set()
    assert terminal.lines == [
        "pushing model mod:m1 was interrupted at 12 %, 1 of 9 parts",
        "Interrupted. Run the same command again to resume.",
    ]


@pytest.mark.processes
async def test_ctrl_c_counts_many_items(proxy: FaultProxy, home: Path) -> None:
    make_models(home, 12)
    held = Hold(12)
    proxy.add_fault(PUT, held, times=None)
    async with on_terminal("push", "svc:v1") as terminal:
        await held.arrived.wait()
        await eventually(lambda: "pushing 12 items" in terminal.lines[-1])
        terminal.type("\x03")  # echoed; only a foreground process gets the signal, too
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.end() == 130
    held.released.set()
    assert terminal.lines == ["12 models were interrupted", "Interrupted. Run the same command again to resume."]


@pytest.mark.processes
async def test_failure_shows_one_error(proxy: FaultProxy, home: Path) -> None:
    make_model(home)
    proxy.add_fault(PUT, refuse(403, code="AccessDenied"), times=None)
    async with on_terminal("models", "push", "mod:m1", columns=200) as terminal:
        assert await terminal.end() == 1
    (line,) = terminal.lines
    assert line.startswith("Error: ")
    assert "403 AccessDenied" in line


@pytest.mark.processes
async def test_terminal_shows_stalled_time(proxy: FaultProxy, home: Path) -> None:
    make_model(home, files={"weights": random_bytes(MiB)})
    async with on_terminal("models", "push", "mod:m1", "-q") as terminal:
        assert await terminal.end() == 0
    stalled, released = Hold(), asyncio.Event()
    proxy.add_fault("GET /api/v1/model_repositories/.*/models/m1$", stalled)
    proxy.add_fault(GET, stop_sending(MiB // 4, released))
    async with on_terminal("models", "pull", "mod:m1", "--force") as terminal:
        await eventually(lambda: "pulling model mod:m1  planning for 5 s" in terminal.lines[0])
        stalled.released.set()
        await eventually(lambda: "KiB/1.0 MiB, stalled 5 s" in terminal.lines[0])
        await eventually(lambda: "stalled 6 s" in terminal.lines[0])
        assert len(terminal.lines) == 1
        released.set()
        await terminal.end()


@pytest.mark.processes
async def test_terminal_push_shows_resume(proxy: FaultProxy, home: Path) -> None:
    make_model(home, files={"weights": random_bytes(40 * MiB)})
    for number in range(2):
        held = Hold()
        proxy.add_fault(PART, held, times=9, skip=3 * (1 - number))
        async with on_terminal("models", "push", "mod:m1", columns=120) as terminal:
            await held.arrived.wait()
            await eventually(lambda: "3/9 parts" in terminal.lines[-1])
            if number:
                break
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.end() == 130
        held.released.set()
    assert terminal.lines[0] == "pushing model mod:m1: resuming at 37 %"


@pytest.mark.processes
async def test_terminal_counts_skipped(proxy: FaultProxy, home: Path) -> None:
    for number in range(12):
        make_bento(home, f"svc_{number}:v1", models=["mod:m1"])
    make_model(home)
    async with on_terminal("push", "--all", "-q") as terminal:
        assert await terminal.end() == 0
    for command, shared in (("push", ["skipped model mod:m1: already pushed"]), ("pull", [])):
        async with on_terminal(command, "--all") as terminal:
            assert await terminal.end() == 0
        assert terminal.lines == [*shared, f"skipped 12 bentos: already {command}ed"]


@pytest.mark.processes
async def test_ctrl_c_in_extract_cleans_up(proxy: FaultProxy, home: Path, tmp_path: Path) -> None:
    make_bento(home, files={"src/weights": random_bytes(MiB)})
    async with on_terminal("push", "svc:v1", "-q") as terminal:
        assert await terminal.end() == 0
    place, held = tmp_path / "place", Hold()
    place.mkdir()
    proxy.add_fault(GET, held, skip=2, times=None)  # the first two ranges have the headers
    async with on_terminal("pull", "svc:v1", "-o", f"{place}/new/out", "--include", "src/*") as terminal:
        await held.arrived.wait()
        assert [*place.iterdir()] != []
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.end() == 130
    held.released.set()
    assert [*place.iterdir()] == []
    assert any(line.startswith("Interrupted.") for line in terminal.lines)


# Options


def test_pipe_is_silent_when_short(served: LocalRegistry, home: Path) -> None:
    make_model(home)
    result = make_runner().invoke(main, ["models", "push", "mod:m1"])
    assert result.stdout.startswith("Pushed model mod:m1: ")
    assert result.stderr == ""


def test_pipe_writes_lines(served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(home)
    monkeypatch.setattr("async_bento.progress.listeners.LineListener", partial(LineListener, interval=0))
    result = make_runner().invoke(main, ["models", "push", "mod:m1"])
    assert result.stdout.startswith("Pushed model mod:m1: ")
    assert "pushing model mod:m1: 100 %, " in result.stderr
    assert "pushed" not in result.stderr


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_json_ends_each_item(place: str, served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(home, 3)
    option, command = ["--progress", "json"], ["push", "svc:v1"]
    if place == "environment":
        monkeypatch.setenv("ASYNC_BENTO_PROGRESS", "json")
        option = []
    result = make_runner().invoke(main, [*option, *command] if place == "before" else [*command, *option])
    assert result.exit_code == 0
    events = [json.loads(line) for line in result.stderr.splitlines()]
    ended = [event["id"] for event in events if event["phase"] == "done"]
    assert len(ended) == 4
    assert sorted(ended) == sorted({event["id"] for event in events})
    assert {event["tag"] for event in events if event["phase"] == "planning"} == {event["tag"] for event in events}


def test_option_overrides_variable(served: LocalRegistry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(home)
    monkeypatch.setenv("ASYNC_BENTO_PROGRESS", "json")
    assert make_runner().invoke(main, ["--progress", "none", "models", "push", "mod:m1"]).stderr == ""
    monkeypatch.delenv("ASYNC_BENTO_PROGRESS")
    twice = ["--progress", "json", "models", "push", "mod:m1", "--progress", "none"]
    assert make_runner().invoke(main, twice).stderr == ""
    monkeypatch.setenv("ASYNC_BENTO_PROGRESS", "jsonl")
    result = make_runner().invoke(main, ["list"])
    assert result.exit_code == 2
    assert "ASYNC_BENTO_PROGRESS" in result.stderr


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("list", "lines"),
        ("list --json", "none"),
        ("-q list", "none"),
        ("-q --progress bars list", "none"),
        ("--progress bars list --json", "bars"),
    ],
)
def test_options_select_progress(line: str, mode: str) -> None:
    with main.make_context("async-bento", line.split()):
        assert progress_mode() == mode


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_prints_errors_only(option: str, served: LocalRegistry, home: Path) -> None:
    make_bento(home)
    for command in (["push", "svc:v1"], ["push", "svc:v1"], ["pull", "svc"], ["pull", "svc", "--force"]):
        for arguments in ([option, *command], [*command, option]):
            result = make_runner().invoke(main, arguments)
            assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    result = make_runner().invoke(main, ["pull", "nope", option])
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: no bento nope in ")


def test_pipe_counts_skipped(served: LocalRegistry, home: Path) -> None:
    for number in range(12):
        make_bento(home, f"svc_{number}:v1")
    make_runner().invoke(main, ["push", "svc_*", "-q"])
    for number in (3, 4):
        make_bento(home, f"rose:v{number}")
    for command, others in (("pull", []), ("push", ["rose:v3:", "rose:v4:"])):
        again = make_runner().invoke(main, [command, "--all"])
        *lines, last = again.stdout.splitlines()
        assert last == f"Skipped 12 bentos: already {command}ed. Use --force to {command} them again."
        assert [line.split()[2] for line in lines] == others
        failed = make_runner().invoke(main, [command, "svc_1:v1", "svc_2:v1", "gone:v1"])
        assert failed.stdout == f"Skipped 2 bentos: already {command}ed. Use --force to {command} them again.\n"
        as_json = make_runner().invoke(main, [command, "svc_1:v1", "svc_2:v1", "--json"])
        assert [item["tag"] for item in json.loads(as_json.stdout)] == ["svc_1:v1", "svc_2:v1"]


def test_quiet_keeps_results(served: LocalRegistry, home: Path) -> None:
    make_bento(home)
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    assert "svc:v1" in make_runner().invoke(main, ["list", "-q"]).stdout
    assert json.loads(make_runner().invoke(main, ["pull", "svc", "-q", "--json"]).stdout)["tag"] == "svc:v1"

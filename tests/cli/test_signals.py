"""Signals that end the command during a push or a pull, and signals that are ignored at its start."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click import Context

from async_bento import BentoAPI, BentoStore
from async_bento.cli import main
from async_bento.cli.signals import raise_on_signals
from tests.builders import contents, make_bento, random_bytes
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.registry.server import LocalRegistry

pytestmark = [pytest.mark.processes, pytest.mark.posix("signals between processes")]

SECONDS = 60
SIGHUP = getattr(signal, "SIGHUP", signal.SIGTERM)  # missing on Windows, where these tests are skipped

COMMAND = """
import asyncio, fcntl, os, pathlib, signal, sys, termios
if ignored := os.environ.get("IGNORED"):
    signal.signal(int(ignored), signal.SIG_IGN)
if os.isatty(0):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from async_bento.transfer import download
from async_bento.transfer.body import TarBody

under_way, go_on = map(pathlib.Path, sys.argv[1:3])
write, feed = TarBody.write_with_length, download._Download._request_rest

async def wait():
    under_way.touch()
    while not go_on.exists():
        await asyncio.sleep(0.02)

async def write_with_length(self, writer, content_length):
    await wait()
    await write(self, writer, content_length)

async def request_rest(self, start, pending):
    await wait()
    await feed(self, start, pending)

TarBody.write_with_length = write_with_length
download._Download._request_rest = request_rest
from async_bento.cli import main
main(sys.argv[3:])
"""
"""Run the command, which waits in the middle of its transfer until a file exists."""


@contextmanager
def transferring(
    tmp_path: Path, *arguments: str, ignored: int | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a command with an ignored signal, and wait until its transfer runs."""
    under_way = tmp_path / "under-way"
    command = [sys.executable, "-c", COMMAND, str(under_way), str(tmp_path / "go-on"), *arguments]
    if ignored is not None:
        options["env"] = os.environ | {"IGNORED": str(int(ignored))}
    outputs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process: subprocess.Popen[str] = subprocess.Popen(command, **outputs | options)
    try:
        until = time.monotonic() + SECONDS
        while not under_way.exists() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def status() -> str:
    with BentoAPI(progress=False) as api:
        return api.get("svc", "v1").upload_status


@pytest.fixture
def bento(served: LocalRegistry, home: Path) -> Path:
    return make_bento(home, "svc:v1", {"weights": random_bytes(300_000)})


@pytest.mark.parametrize(
    ("number", "code", "times"), [(signal.SIGTERM, 143, 1), (signal.SIGTERM, 143, 2), (SIGHUP, 129, 1)]
)
def test_signal_in_push_is_reported(bento: Path, tmp_path: Path, number: signal.Signals, code: int, times: int) -> None:
    with transferring(tmp_path, "push", "svc:v1") as process:
        for _ in range(times):
            process.send_signal(number)
        _, errors = process.communicate(timeout=SECONDS)

    assert process.returncode == code
    assert errors.splitlines()[-1] == "Interrupted. Run the same command again to resume."
    assert status() == "failed"


def test_signal_in_pull_cleans_up(bento: Path, tmp_path: Path) -> None:
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
    elsewhere = tmp_path / "elsewhere"
    environment = os.environ | {"BENTOML_HOME": str(elsewhere), "ASYNC_BENTO_TRANSFER_RANGE_SIZE": "65536"}
    with transferring(tmp_path, "pull", "svc:v1", env=environment) as process:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS)

    assert (process.returncode, errors.splitlines()[-1:]) == (
        143,
        ["Interrupted. Run the same command again to resume."],
    )
    with BentoAPI(progress=False, bento_store=BentoStore(elsewhere / "bentos")) as api:
        assert contents(api.pull("svc:v1").path) == contents(bento)


@pytest.mark.parametrize("number", [SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_ignored_signal_stays_ignored(bento: Path, tmp_path: Path, number: signal.Signals) -> None:
    with transferring(tmp_path, "push", "svc:v1", ignored=number) as process:
        process.send_signal(number)
        time.sleep(0.5)
        (tmp_path / "go-on").touch()
        process.communicate(timeout=SECONDS)

    assert process.returncode == 0
    assert status() == "success"


def test_sigterm_ends_with_sigint_ignored(bento: Path, tmp_path: Path) -> None:
    """A script ends its background jobs in this way."""
    with transferring(tmp_path, "push", "svc:v1", ignored=signal.SIGINT) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=SECONDS)

    assert (process.returncode, status()) == (143, "failed")


def test_closed_terminal_is_reported(bento: Path, tmp_path: Path) -> None:
    ours, terminal = os.openpty()
    with transferring(
        tmp_path,
        "push",
        "svc:v1",
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        os.close(ours)
        process.wait(SECONDS)

    assert (process.returncode, status()) == (129, "failed")


def wait_until_idle(pid: int) -> None:
    """Wait until the main thread of a process waits for something."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():  # not Linux
        time.sleep(1)
        return
    while stat.read_text().rpartition(") ")[2][0] != "S":
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("delete svc:v1", signal.SIGINT),
        ("registry prune --keep 1 --root {}", signal.SIGINT),
        ("registry prune --keep 1 --root {}", signal.SIGTERM),
        ("store delete svc:v1", signal.SIGINT),
    ],
)
def test_signal_at_prompt_ends_command(
    served: LocalRegistry, home: Path, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """The prompt blocks the event loop, whose handler would only cancel the task."""
    make_bento(home, "svc:v1")
    make_bento(home, "svc:v2")
    with BentoAPI(progress=False) as api:
        api.push("svc:v1")
        api.push("svc:v2")
    arguments = command.format(tmp_path / "registry").split()
    ours, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "async_bento", *arguments], stdin=terminal, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    try:
        shown = b""
        while b"[y/N]: " not in shown:
            shown += os.read(ours, 10_000)
        wait_until_idle(process.pid)  # Python loses a signal between the display of a prompt and the read
        process.send_signal(number)
        assert process.wait(SECONDS) == 128 + number
        shown += os.read(ours, 10_000)
        assert shown.endswith(b"Interrupted.\r\n")
        with BentoAPI(progress=False) as api:
            assert api.get("svc:v1")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_prompt_restores_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Context(main), raise_on_signals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_keeps_signal_ignored(tmp_path: Path, number: signal.Signals) -> None:
    program = f"""
import signal
signal.signal({int(number)}, signal.SIG_IGN)
from async_bento.cli import main
main(["registry", "serve", "--root", {str(tmp_path / "root")!r}, "--port", "0"])
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"export ")
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()


@pytest.fixture
def sigterm_interrupts() -> Iterator[None]:
    """Let an unhandled SIGTERM fail the test instead of ending pytest."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_interrupts")
@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("token list", "loading.load_backend"),
        ("usage", "loading.load_backend"),
        ("restore backup", "backup.restore"),
    ],
)
def test_sigterm_cancels_maintenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, step: str) -> None:
    cleaned_up: list[bool] = []

    async def wait(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cleaned_up.append(True)
            raise

    monkeypatch.setattr(f"async_bento.registry.{step}", wait)
    result = make_runner().invoke(main, ["registry", *command.split(), "--root", str(tmp_path)])
    assert (result.exit_code, cleaned_up) == (128 + signal.SIGTERM, [True])

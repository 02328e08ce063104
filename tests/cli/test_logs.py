"""The log of a command without options, with -v and with -vv."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import signal
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tqdm import tqdm

from async_bento import ConfigError
from async_bento.cli import logs, main
from tests.builders import make_bento, make_model
from tests.cli.test_process import run
from tests.cli_runner import make_runner
from tests.fault_proxy import GET, PUT, Hold, answer_json, refuse

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fault_proxy import FaultProxy
    from tests.fixtures import StartProxy

pytestmark = pytest.mark.processes


@pytest.fixture
async def proxy(start_proxy: StartProxy, home: Path, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    proxy = await start_proxy()
    monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", proxy.endpoint)
    monkeypatch.setenv("BENTO_CLOUD_API_KEY", proxy.registry.api_token)
    monkeypatch.setenv("ASYNC_BENTO_RETRY_WAIT_INITIAL", "0.01")
    return proxy


async def test_vv_request_has_no_secrets(proxy: FaultProxy) -> None:
    ended = await asyncio.to_thread(run, "-vv", "list")

    (line,) = ended.stderr.splitlines()[:1]
    assert re.fullmatch(
        rf"DEBUG: GET {proxy.endpoint}/api/v1/bentos: 200 after \d+ ms, \d+ bytes, request id \w+", line
    )
    assert proxy.registry.api_token not in ended.stderr
    assert "asyncio" not in ended.stderr
    assert ended.returncode == 0


@pytest.mark.parametrize(
    "line", ["-vv list", "list -vv", "-v list -v", "models -v list --verbose", "store list -vv", "doctor -vv"]
)
async def test_verbose_works_anywhere(line: str, proxy: FaultProxy) -> None:
    ended = await asyncio.to_thread(run, *line.split())
    assert ended.returncode == 0
    assert ("DEBUG: GET " in ended.stderr) is ("store" not in line)


def test_root_help_shows_verbose() -> None:
    assert "--verbose" in make_runner().invoke(main, ["--help"]).stdout
    for command in (["list", "--help"], ["models", "--help"], ["models", "push", "-h"], ["store", "list", "--help"]):
        shown = make_runner().invoke(main, command)
        assert (shown.exit_code, "--verbose" in shown.stdout) == (0, False)


async def test_request_attempts_numbered(proxy: FaultProxy, home: Path) -> None:
    make_model(home)
    proxy.add_fault("GET /api/v1/models", answer_json(503, {"error": "later"}), times=2)
    proxy.add_fault(PUT, refuse(503))
    proxy.add_fault(GET, refuse(500))
    lines = (await asyncio.to_thread(run, "models", "list", "-vv")).stderr.splitlines()
    requests = [line.rpartition(", ")[2] for line in lines if line.startswith("DEBUG: GET ")]
    assert requests[1:] == ["attempt 2", "attempt 3"]
    assert "attempt" not in requests[0]
    for command, method in (("push", "PUT"), ("pull", "GET")):
        ended = await asyncio.to_thread(run, "models", command, "mod:m1", "-vv", *["--force"][: command == "pull"])
        assert ended.returncode == 0
        lines = [line for line in ended.stderr.splitlines() if f"DEBUG: {method} " in line and "/blobs/" in line]
        assert [re.findall("attempt .", line) for line in lines] == [[], ["attempt 2"]]


async def test_creation_attempts_numbered(proxy: FaultProxy, home: Path) -> None:
    make_model(home)
    proxy.add_fault("POST /api/v1/model_repositories$", answer_json(503, {"error": "later"}))
    proxy.add_fault("POST /api/v1/model_repositories/mod/models$", answer_json(503, {"error": "later"}), times=2)
    ended = await asyncio.to_thread(run, "models", "push", "mod:m1", "-vv")
    assert ended.returncode == 0
    lines = [line for line in ended.stderr.splitlines() if line.startswith("DEBUG: POST ")]
    assert [re.findall("attempt .", line) for line in lines] == [[], ["attempt 2"], [], ["attempt 2"], ["attempt 3"]]


async def test_retries_are_logged(proxy: FaultProxy) -> None:
    proxy.add_fault("GET", answer_json(503, {"error": "later"}), times=2)
    ended = await asyncio.to_thread(run, "list")

    assert ended.returncode == 0
    assert [line.partition(" in ")[0] for line in ended.stderr.splitlines()[:2]] == [
        "INFO: retrying (2 of 8)",
        "INFO: retrying (3 of 8)",
    ]


@pytest.mark.parametrize("command", ["list", "push svc:v1", "pull svc"])
async def test_json_error_has_no_log_lines(command: str, proxy: FaultProxy, home: Path) -> None:
    make_bento(home)
    proxy.add_fault("", answer_json(503, {"error": "down"}), times=None)
    ended = await asyncio.to_thread(run, *command.split(), "--json", ASYNC_BENTO_RETRY_ATTEMPTS="3")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert json.loads(ended.stderr)["error"]["message"]
    ended = await asyncio.to_thread(run, *command.split(), "--json", BENTO_CLOUD_API_ENDPOINT="http://127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (5, "")
    assert json.loads(ended.stderr)["error"]["type"] == "APIConnectionError"


async def test_json_retry_logs_if_verbose(proxy: FaultProxy, home: Path) -> None:
    make_model(home)
    proxy.add_fault("GET", answer_json(503, {"error": "later"}), times=2)
    ended = await asyncio.to_thread(run, "models", "push", "mod:m1", "--json")
    assert json.loads(ended.stdout)["tag"] == "mod:m1"
    assert ended.stderr == ""
    proxy.add_fault("GET", answer_json(503, {"error": "later"}))
    ended = await asyncio.to_thread(run, "models", "push", "mod:m1", "--json", "-v")
    assert "INFO: retrying (2 of 8)" in ended.stderr
    ended = await asyncio.to_thread(run, "models", "push", "mod:m1", "--json", "--progress", "json")
    assert json.loads(ended.stderr.splitlines()[-1])["phase"] == "skipped"


async def test_json_interrupt_is_one_object(proxy: FaultProxy, home: Path) -> None:
    make_model(home)
    held = Hold()
    proxy.add_fault(PUT, held)
    command = ["-m", "async_bento", "models", "push", "mod:m1", "--json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    await held.arrived.wait()
    process.send_signal(signal.SIGINT)
    output, error = await process.communicate()
    held.released.set()
    assert (process.returncode, output) == (130, b"")
    assert json.loads(error)["error"] == {
        "message": "Interrupted",
        "type": "KeyboardInterrupt",
        "hint": "Run the same command again to resume.",
    }


@pytest.mark.parametrize("line", ["--quiet store list", "store list --json"])
def test_command_end_enables_logs(line: str) -> None:
    assert make_runner().invoke(main, line.split()).exit_code == 0
    assert logging.getLogger("library").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("options", ["-v -q", "-q -v"])
def test_quiet_and_verbose_hide_warnings(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []

    def open_records(*_: object) -> None:
        shown.append(logging.getLogger("async_bento").isEnabledFor(logging.WARNING))
        raise ConfigError("refused")

    monkeypatch.setattr("async_bento.cli.list_get.open_records", open_records)
    make_runner().invoke(main, ["list", *options.split()])
    assert shown == [False]


def test_tracebacks_need_vv(caplog: pytest.LogCaptureFixture) -> None:
    error = PermissionError(13, "Permission denied", "item")
    record = logging.LogRecord("x", logging.WARNING, "", 0, "cannot remove item.", (), (type(error), error, None))
    caplog.set_level("WARNING", logger="async_bento")
    assert logs._Handler().format(record) == "cannot remove item. ([Errno 13] Permission denied: 'item')"
    caplog.set_level("DEBUG", logger="async_bento")
    assert logs._Handler().format(record).startswith("cannot remove item.\nPermissionError: [Errno 13]")


def test_same_fault_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    written = logs._RepetitionFilter()

    def is_written(attempt: int, error: str) -> bool:
        message = "retrying (%d of %d) in %.1f s: %s"
        return written.filter(logging.LogRecord("x", logging.INFO, "", 0, message, (attempt, 8, 0.5, error), None))

    assert [is_written(2, "refused") for _ in range(3)] == [True, False, False]
    assert [is_written(3, "refused"), is_written(2, "reset")] == [True, True]
    now += 5
    assert is_written(2, "refused")


@pytest.mark.parametrize("bars", [tqdm, None])
def test_command_drops_same_fault(bars: type[tqdm[Any]] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    output, handlers = io.StringIO(), list[logging.StreamHandler[Any]]()
    monkeypatch.setattr("logging.basicConfig", lambda **options: handlers.extend(options["handlers"]))
    make_runner().invoke(main, ["store", "list"])
    (handler,) = handlers
    handler.setStream(output)
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace(tqdm=bars))
    for _ in range(2):
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "retrying %d %d %d %s", (2, 8, 0, "refused"), None))
    assert output.getvalue() == "retrying 2 8 0 refused\n"


@pytest.mark.parametrize(
    ("message", "arguments"), [("retrying %s", ("soon",)), (ValueError("retrying"), ()), ("retrying %(n)d", {"n": 2})]
)
def test_log_of_other_libraries(message: object, arguments: tuple[object, ...]) -> None:
    record = logging.LogRecord("library", logging.WARNING, "", 0, "", (), None)
    record.msg, record.args = message, arguments
    written = logs._RepetitionFilter()
    assert [written.filter(record) for _ in range(2)] == [True, True]

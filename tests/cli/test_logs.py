"""The log of a command: what it writes without options, with -v and with -vv."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING

import pytest

from async_bento.cli import logs
from tests.cli.test_process import run
from tests.fault_proxy import answer_json

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


async def test_log_with_vv_shows_requests_without_secrets(proxy: FaultProxy) -> None:
    ended = await asyncio.to_thread(run, "-vv", "list")

    (line,) = ended.stderr.splitlines()[:1]
    assert re.fullmatch(rf"DEBUG: GET {proxy.endpoint}/api/v1/bentos: 200 after \d+ ms, \d+ bytes", line)
    assert proxy.registry.api_token not in ended.stderr
    assert "asyncio" not in ended.stderr
    assert ended.returncode == 0


async def test_log_tells_that_the_registry_is_waited_for(proxy: FaultProxy) -> None:
    proxy.add_fault("GET", answer_json(503, {"error": "later"}), times=2)
    ended = await asyncio.to_thread(run, "list")

    assert ended.returncode == 0
    assert [line.partition(" in ")[0] for line in ended.stderr.splitlines()[:2]] == [
        "INFO: retrying (2 of 8)",
        "INFO: retrying (3 of 8)",
    ]


def test_log_has_one_line_for_the_same_fault_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    written = logs._RepetitionFilter()

    def is_written(attempt: int, error: str) -> bool:
        message = "retrying (%d of %d) in %.1f s: %s"
        return written.filter(logging.LogRecord("x", logging.INFO, "", 0, message, (attempt, 8, 0.5, error), None))

    assert [is_written(2, "refused") for _ in range(3)] == [True, False, False]
    assert [is_written(3, "refused"), is_written(2, "reset")] == [True, True]
    now += 6
    assert is_written(2, "refused")

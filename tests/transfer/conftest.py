"""Fixtures of the tests of transfers: clients in separate processes, small parts, recorded journals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.transfer import copy, resumable_extract, source, upload
from async_bento.transfer.journal import Journal
from async_bento.transfer.watchdog import Watchdog
from tests.transfer.cancellation import PART, Books
from tests.transfer.processes import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.transfer.processes import Run


@pytest.fixture
async def run() -> AsyncIterator[Run]:
    """Start clients, which are killed at the end of the test."""
    started: list[Client] = []

    async def start(*args: Any, **environment: str) -> Client:
        started.append(await Client.start(*args, **environment))
        return started[-1]

    yield start
    for client in started:
        if client.process.returncode is None:
            client.process.kill()
            await client.ended()


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Books:
    """Record the parts in the journals of a test."""
    books = Books()
    begin, note = Journal.create, Journal.add

    def create_recorded(self: Journal, recorded: Any) -> None:
        begin(self, recorded)
        books.noted[self.path] = set(recorded.etags)

    def record_part(self: Journal, part_number: int, etag: str) -> None:
        note(self, part_number, etag)
        books.noted[self.path].add(part_number)

    monkeypatch.setattr(Journal, "create", create_recorded)
    monkeypatch.setattr(Journal, "add", record_part)
    return books


@pytest.fixture
def small_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 64 KiB, so that small items have several."""
    for module in (source, copy):
        monkeypatch.setattr(module, "choose_part_size", lambda size, wanted, threads: PART)
    for module in (upload, copy):
        monkeypatch.setattr(module, "MIN_PART_SIZE", PART)
    monkeypatch.setattr(resumable_extract, "CHECKPOINT_INTERVAL", PART)


@pytest.fixture
def watchdogs(monkeypatch: pytest.MonkeyPatch) -> list[Watchdog]:
    """The watchdogs of the requests, whose checks the test makes."""
    made: list[Watchdog] = []

    def schedule(self: Watchdog) -> Any:
        made.append(self)
        return SimpleNamespace(cancel=lambda: made.remove(self))

    monkeypatch.setattr(Watchdog, "_schedule", schedule)
    return made

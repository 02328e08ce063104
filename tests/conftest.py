"""Two guards for every test: one against calls that block the event loop, one against connections to other hosts."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal
from blockbuster import BlockBuster
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.util import LRUCache

import async_bento
from async_bento._core import retry
from async_bento.registry.records import database
from async_bento.registry.server import LocalRegistry
from tests.loopback import sitecustomize as loopback
from tests.store.crashes import Crasher, crashing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from sqlalchemy.ext.asyncio import AsyncEngine

    from async_bento import RetryPolicy

pytest_plugins = ["tests.leaks", "tests.fixtures", "tests.platforms"]

COVERAGE = "COVERAGE_PROCESS_CONFIG"
"""The variable that lets coverage measure child processes."""

MEASURED = re.compile(r"(api|cli|core|integrations|store)/|interop/test_accelerate|registry/test_operation")
"""Tests whose processes are also measured; those of other tests run the same lines, and would double the time."""

_coverage = os.environ.pop(COVERAGE, None) if "PYTEST_XDIST_WORKER" in os.environ else None

# Background jobs ignore SIGINT, and nohup ignores SIGHUP; the processes of tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

PACKAGE = f"{Path(async_bento.__file__).parent}{os.sep}"

LONGEST = {"test_leaks.py", "test_chaos.py", "test_crashes.py", "test_kills.py"}


def pytest_xdist_auto_num_workers() -> int | None:
    """Run one worker more than cores, since tests also wait."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else (os.cpu_count() or 1) + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that no worker runs a long test alone at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@dataclass
class Refused:
    """The refused connections of this process and of its Python children."""

    log: Path

    def take(self) -> list[str]:
        """Return the refused connections, and forget them."""
        lines, loopback.refused[:] = [*loopback.refused], []
        if self.log.exists():
            lines += self.log.read_text().splitlines()
            self.log.unlink()
        return lines


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Restore the levels that the command sets: other tests expect all log records."""
    loggers = [logging.getLogger(name) for name in ("async_bento", "async_bento.rest", "async_bento.registry")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def measured_processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let coverage measure the processes of a test."""
    if _coverage is not None and MEASURED.match(request.node.nodeid.removeprefix("tests/")):
        monkeypatch.setenv(COVERAGE, _coverage)


@pytest.fixture(scope="session", autouse=True)
def refused_anywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refused]:
    """Guard each Python child process against connections to other hosts."""
    refused = Refused(tmp_path_factory.mktemp("loopback") / "refused")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOPBACK_LOG", str(refused.log))
        patch.setenv("PYTHONPATH", str(Path(loopback.__file__).parent), prepend=os.pathsep)
        yield refused
    assert refused.take() == []


@pytest.fixture(autouse=True)
def refused(refused_anywhere: Refused) -> Iterator[Refused]:
    """Fail a test that tried to reach another host, even if the code caught the refusal."""
    yield refused_anywhere
    assert refused_anywhere.take() == [], "a test must not leave this machine"


@functools.cache
def is_in_package(filename: str) -> bool:
    return filename.startswith(PACKAGE)


def called_by_package() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_in_package(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


@functools.cache
def blocking_detector() -> BlockBuster:
    """The guard that raises BlockingError; creating one takes longer than many tests."""
    detector = BlockBuster("async_bento")
    for function in detector.functions.values():  # coverage takes a lock at the first run of code
        function.can_block_in("coverage/collector.py", "lock_data")
        function.can_block_in("coverage/control.py", "_should_trace")
        function.can_block_in("registry/records/database.py", "_upgrade")  # on its own loop, in a thread
        function.can_block_in("asyncpg/connect_utils.py", "_parse_connect_dsn_and_args")  # looks for `~/.pgpass`
        # Most calls come from tests. The detector finds that out, too, but that takes an eighth of the tests' CPU time.
        may_block = function.can_block_predicate
        function.can_block_predicate = lambda *args, may_block=may_block, **options: (
            may_block(*args, **options) or not called_by_package()
        )
    return detector


@pytest.fixture(autouse=True)
def no_blocking_call_on_the_event_loop() -> Iterator[None]:
    """Raise BlockingError in calls that block the loop."""
    detector = blocking_detector()
    detector.activate()
    yield
    detector.deactivate()


@pytest.fixture(scope="session", autouse=True)
def statements_compiled_once() -> Iterator[None]:
    """Share compiled statements between the registries of a process; compiling takes a fourth of a test."""
    compiled: LRUCache[Any, Any] = LRUCache(1000)
    create_async_engine = database.create_async_engine

    def create(*arguments: Any, **options: Any) -> AsyncEngine:
        engine = create_async_engine(*arguments, **options)
        engine.sync_engine._compiled_cache = compiled
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "create_async_engine", create)
        for dialect in (SQLiteDialect_aiosqlite, PGDialect_asyncpg):  # the statements are kept by dialect, too
            patch.setattr(dialect, "__hash__", lambda self: hash(type(self)))
            patch.setattr(dialect, "__eq__", lambda self, other: type(self) is type(other))
        yield


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds before each retry."""
    waits: list[float] = []
    decide = retry.wait_before_retry

    def record(policy: RetryPolicy, error: Exception, *, failures: int, expired: int) -> float | None:
        wait = decide(policy, error, failures=failures, expired=expired)
        if wait is not None:
            waits.append(wait)
        return wait

    monkeypatch.setattr(retry, "wait_before_retry", record)
    return waits


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty `$BENTOML_HOME`, without the credentials of the user."""
    home = tmp_path / "bentoml"
    monkeypatch.setenv("BENTOML_HOME", str(home))
    for name in (
        "BENTO_CLOUD_API_KEY",
        "BENTO_CLOUD_API_ENDPOINT",
        "BENTOML_CLOUD_CONTEXT",
        "ASYNC_BENTO_API_TOKEN",
        "ASYNC_BENTO_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[LocalRegistry]:
    """A registry on its own event loop, for blocking tests, and the variables that name it."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(LocalRegistry(tmp_path / "registry")) as registry,
    ):
        monkeypatch.setenv("BENTO_CLOUD_API_ENDPOINT", registry.endpoint)
        monkeypatch.setenv("BENTO_CLOUD_API_KEY", registry.api_token)
        yield registry


@pytest.fixture
def crasher(tmp_path: Path, served: LocalRegistry) -> Iterator[Crasher]:
    """A process that a test can kill at any step of a push to or a pull from `served`."""
    with crashing(tmp_path) as crasher:
        yield crasher

"""The start of the command: imports and garbage collection."""

from __future__ import annotations

import gc
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from async_bento.cli import main
from tests.builders import make_bento
from tests.cli_runner import make_runner

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry

UNUSED = {
    "aiofiles",
    "aiohttp.web",
    "async_bento.api.async_api",
    "async_bento.integrations",
    "async_bento.progress.listeners",
    "async_bento.registry",
    "async_bento.store.store",
    "async_bento.transfer",
    "filelock",
    "huggingface_hub",
    "sqlite3",
    "tqdm",
    "yaml",
}
"""Modules with a slow import that neither a list nor a record needs."""
if sys.version_info >= (3, 11):
    UNUSED.add("anyio")

WATCH = """
import gc, sys
from async_bento.__main__ import main
from async_bento.rest.session import RestSession
send = RestSession.send

def watched(self, *args, **kwargs):
    print("collected" if gc.isenabled() else "deferred", file=sys.stderr)
    return send(self, *args, **kwargs)

RestSession.send = watched
main()
"""
"""A command that prints at each request whether the garbage collector is enabled."""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def pushed(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1")
    make_runner().invoke(main, ["push", "svc:v1"], catch_exceptions=False)


@pytest.mark.parametrize("command", ["list", "models list --limit 3", "get svc:v1", "get svc"])
def test_imports_nothing_unused(pushed: None, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # coverage imports more
    done = run_python("-X", "importtime", "-m", "async_bento", *command.split())
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "aiohttp" in imported
    assert UNUSED & imported == set()


@pytest.mark.parametrize("command", ["list", "get svc:v1", "push svc:v1 --force", "pull svc:v1 --force"])
def test_gc_waits_for_requests(pushed: None, command: str) -> None:
    done = run_python("-c", WATCH, *command.split())
    assert {*done.stderr.splitlines()} & {"collected", "deferred"} == {"collected"}


def test_gc_restored_after_errors() -> None:
    code = "import gc; from async_bento.__main__ import main\ntry: main()\nexcept SystemExit: print(gc.isenabled())"
    assert run_python("-c", code, "--no-such-option").stdout == "True\n"


def test_programs_gc_is_unchanged(pushed: None) -> None:
    frozen = gc.get_freeze_count()
    make_runner().invoke(main, ["list"], catch_exceptions=False)
    assert gc.isenabled()
    assert gc.get_freeze_count() <= frozen

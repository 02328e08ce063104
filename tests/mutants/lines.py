"""A plugin of pytest that records how long each test takes, and which lines of the package it runs in this process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import CodeType

PACKAGE = Path(__file__).parents[2] / "async_bento"
DIRECTORY = "MUTANTS_LINES"
"""The variable that names where each process of pytest leaves its record."""

# `sys.monitoring` has no cost after the first run of a line, and sees threads and greenlets; coverage cannot yet
# keep a context per test with it, and would take twice the time without it.
events = sys.monitoring.events
TOOL = 4
record: dict[str, tuple[float, dict[str, list[int]]]] = {}
"""The seconds of each test, and its lines by the path of their file."""

_lines: set[tuple[str, int]] = set()


def _enter(code: CodeType, offset: int) -> object:
    if code.co_filename.startswith(f"{PACKAGE}{os.sep}"):
        sys.monitoring.set_local_events(TOOL, code, events.LINE)
    return sys.monitoring.DISABLE


def _record(code: CodeType, line: int) -> object:
    _lines.add((code.co_filename, line))
    return sys.monitoring.DISABLE


def pytest_configure() -> None:
    sys.monitoring.use_tool_id(TOOL, "mutants")
    sys.monitoring.register_callback(TOOL, events.PY_START, _enter)
    sys.monitoring.register_callback(TOOL, events.PY_RESUME, _enter)
    sys.monitoring.register_callback(TOOL, events.LINE, _record)
    sys.monitoring.set_events(TOOL, events.PY_START | events.PY_RESUME)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    failed, began = item.session.testsfailed, time.perf_counter()
    _lines.clear()
    sys.monitoring.restart_events()
    result = yield
    if item.session.testsfailed == failed:
        lines = defaultdict[str, list[int]](list)
        for path, line in sorted(_lines):
            lines[Path(path).relative_to(PACKAGE.parent).as_posix()].append(line)
        record[item.nodeid] = time.perf_counter() - began, lines
    return result


def pytest_sessionfinish() -> None:
    Path(os.environ[DIRECTORY], f"{os.getpid()}.json").write_text(json.dumps(record), encoding="utf-8")

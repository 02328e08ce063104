"""A plugin of pytest that records how long each test takes, and which lines of the package its functions run."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.loopback import executed

if TYPE_CHECKING:
    from collections.abc import Generator

record: dict[str, tuple[float, dict[str, list[int]]]] = {}
"""The seconds of each test, and its lines by the path of their file."""

_lines: set[tuple[str, int]] = set()
_process = os.getpid()


def _report(path: str, line: int) -> None:
    if os.getpid() == _process:
        _lines.add((path, line))
    else:
        executed.append(path, line)


def pytest_configure() -> None:
    executed.report_to(_report)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    failed, began = item.session.testsfailed, time.perf_counter()
    _lines.clear()
    executed.restart()
    result = yield
    if item.session.testsfailed == failed:
        lines = defaultdict[str, list[int]](list)
        for path, line in sorted(_lines):
            lines[Path(path).relative_to(executed.PACKAGE.parent).as_posix()].append(line)
        record[item.nodeid] = time.perf_counter() - began, lines
    return result


def pytest_sessionfinish() -> None:
    Path(os.environ[executed.DIRECTORY], f"{_process}.json").write_text(json.dumps(record), encoding="utf-8")


def read(directory: Path) -> dict[str, tuple[float, dict[str, list[int]]]]:
    """Return the records of all processes of one run."""
    records = {}
    for file in directory.glob("*.json"):
        records |= json.loads(file.read_text(encoding="utf-8"))
    texts = {text for file in directory.glob("*.lines") for text in file.read_text(encoding="utf-8").splitlines()}
    for test, path, line in (text.split("\t") for text in texts):  # of processes that the tests start
        if test in records and int(line) not in (lines := records[test][1].setdefault(path, [])):
            lines.append(int(line))
    return records

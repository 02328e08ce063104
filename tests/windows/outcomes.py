"""A pytest plugin: append the outcome of each test to a file, which stays when the process is killed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    Collected = Generator[None, pytest.CollectReport, pytest.CollectReport]

FILE = "TEST_OUTCOMES"
RUNNING = "running"
_OF_OTHER_SESSIONS = re.compile(r"No module named '(aiobotocore|axe_playwright_python|bentoml|botocore|playwright)'")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tests that an earlier process has completed."""
    ended: dict[str, bool] = {}
    if Path(os.environ[FILE]).exists():
        for line in Path(os.environ[FILE]).read_text(encoding="utf-8").splitlines():
            test, outcome, _ = json.loads(line)
            ended[test] = outcome != RUNNING
    left_out = [item for item in items if ended.get(item.nodeid)]
    items[:] = [item for item in items if not ended.get(item.nodeid)]
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_logstart(nodeid: str) -> None:
    _append(nodeid, RUNNING, "")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        _append(report.nodeid, report.outcome, _reason(report))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Collected:
    """Skip a file that needs packages of other sessions: `collect_ignore` does not cover the arguments of pytest."""
    report = yield
    if report.failed and (found := _OF_OTHER_SESSIONS.search(report.longreprtext)):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: needs {found[1]}, which this session does not install")
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _append(report.nodeid, report.outcome, _reason(report))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else report.longreprtext


def _append(test: str, outcome: str, reason: str) -> None:
    with open(os.environ[FILE], "a", encoding="utf-8") as file:  # noqa: PTH123 - tests replace methods of Path
        file.write(json.dumps([test, outcome, reason]) + "\n")

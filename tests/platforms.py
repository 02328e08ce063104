"""Skips tests on systems that lack a feature; the reason names the feature.

A mark names a need that the code of the test does not show: `@pytest.mark.posix("file modes")`. A test needs no mark if
the test itself calls a function that Python lacks on Windows, or makes a link without the privilege.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

TESTS = Path(__file__).parent
IS_WINDOWS = sys.platform == "win32"
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
KILLED = 1 if IS_WINDOWS else -9
"""The return code of a process that was killed."""

NO_PRIVILEGE = 1314  # ERROR_PRIVILEGE_NOT_HELD
REFUSED = "Connection refused"
"""The error text of the system for a connection to a closed port."""

if sys.platform == "win32":
    REFUSED = ctypes.FormatError(1225).strip().rstrip(".")  # ERROR_CONNECTION_REFUSED

_MISSING = re.compile(
    r"(?:module )?'(asyncio|os|signal|socket|time)'(?: object)? has no attribute '(\w+)'"
    r"|No module named '(fcntl|pty|pwd|resource|termios)'"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `posix` on Windows."""
    if IS_WINDOWS:
        for item in items:
            for mark in item.iter_markers("posix"):
                item.add_marker(pytest.mark.skip(reason=f"Windows has no {mark.args[0]}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a test as skipped if the test itself, not the package, needs a feature that Windows lacks."""
    report = yield
    if IS_WINDOWS and report.failed and call.excinfo is not None and (reason := missing(call.excinfo)):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {reason}")
    return report


def link_if_possible(link: Path, target: str) -> None:
    """Make a symlink if Windows allows this user to; for tests of other subjects."""
    try:
        link.symlink_to(target)
    except OSError as error:
        if getattr(error, "winerror", None) != NO_PRIVILEGE:
            raise


def missing(raised: pytest.ExceptionInfo[BaseException]) -> str | None:
    """Return the missing feature; None for another error, or an error raised by the package."""
    ours = [
        entry.path
        for entry in raised.traceback
        if "site-packages" not in str(entry.path) and _is_of_project(entry.path)
    ]
    if not ours or not Path(ours[-1]).is_relative_to(TESTS):
        return None
    if getattr(raised.value, "winerror", None) == NO_PRIVILEGE:
        return "links need a privilege"
    if isinstance(raised.value, ValueError) and "Unsupported signal" in str(raised.value):
        return "Windows sends no signals to processes"
    if isinstance(raised.value, (AttributeError, ImportError)) and (found := _MISSING.search(str(raised.value))):
        return f"Windows has no {'.'.join(name for name in found.groups() if name)}"
    return None


def _is_of_project(path: os.PathLike[str] | str) -> bool:
    return Path(path).is_relative_to(TESTS.parent)

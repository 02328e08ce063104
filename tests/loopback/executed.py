"""Reports each line of the package that a function runs, once per `restart`.

`sys.monitoring` sees threads and greenlets, and costs nothing after the first run of a line; coverage cannot yet keep a
context per test with it. Lines that an import runs are not reported: a process runs them once, for all its tests.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType

DIRECTORY = "MUTANTS_LINES"
"""The variable that names where processes leave what they ran."""

PACKAGE = Path(__file__).parents[2] / "async_bento"
TOOL = 4


def report_to(report: Callable[[str, int], None]) -> None:
    """Call `report` with the path and the number of each line; both are also reported in forks of this process."""
    monitoring, events, package = sys.monitoring, sys.monitoring.events, f"{PACKAGE}{os.sep}"

    def enter(code: CodeType, _: int) -> object:
        if code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(package):
            monitoring.set_local_events(TOOL, code, events.LINE)
        return monitoring.DISABLE

    def run(code: CodeType, line: int) -> object:
        if _is_import():
            return None  # a test that uses the imported module does not run the line again
        report(code.co_filename, line)
        return monitoring.DISABLE

    monitoring.use_tool_id(TOOL, "mutants")
    monitoring.register_callback(TOOL, events.PY_START, enter)
    monitoring.register_callback(TOOL, events.PY_RESUME, enter)
    monitoring.register_callback(TOOL, events.LINE, run)
    monitoring.set_events(TOOL, events.PY_START | events.PY_RESUME)


def _is_import() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def restart() -> None:
    """Report all lines again."""
    sys.monitoring.restart_events()


def append(path: str, line: int) -> None:
    """Write a line for the running test at once, since tests kill their processes."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    with Path(os.environ[DIRECTORY], f"{os.getpid()}.{_began}.lines").open("a", encoding="utf-8") as file:
        file.write(f"{test}\t{Path(path).relative_to(PACKAGE.parent).as_posix()}\t{line}\n")


_began = time.time_ns()

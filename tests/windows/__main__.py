"""Run the suite on a Windows Python under Wine: `python -m tests.windows DIRECTORY [--package NAME]... [-- PYTEST...]`.

Each test file runs in a process of its own, since Wine sometimes loses the completion of an operation, and a hanging
test must not end the others. A test that hangs is run again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from tests.windows.outcomes import FILE, RUNNING
from tests.windows.wine import WindowsPython, make_python, refuse_links, windows_path

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
LONGEST = 1200.0  # seconds for a file
ATTEMPTS = 3
SELECTION = "not long and not proxies and not pages and not interop and not notebook and not s3 and not postgres"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="where the Windows Python is made")
    parser.add_argument("--package", action="append", default=[], help="a package that the tests need")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="test files at a time")
    parser.add_argument("--reasons", action="store_true", help="print why tests were skipped")
    parser.add_argument("tests", nargs="*", help="files, directories and options of pytest")
    options = parser.parse_intermixed_args()
    python = make_python(options.directory.absolute(), options.package)
    refuse_links(python)
    paths = [argument for argument in options.tests if Path(argument.partition("::")[0]).exists()]
    more = [argument for argument in options.tests if argument not in paths]
    with python.started(), ThreadPoolExecutor(options.processes) as threads:
        jobs = [threads.submit(run, python, path, more) for path in test_files(paths or ["tests"])]
        outcomes: list[tuple[str, str, str]] = []
        for job in as_completed(jobs):
            path, found = job.result()
            counts = Counter(outcome for _, outcome, _ in found)
            print(
                f"{path:55}", ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())), flush=True
            )
            outcomes += found
    return report(outcomes, options.reasons)


def test_files(paths: Sequence[str]) -> list[str]:
    """The test files below paths, the largest first; a path with a test stays as it is."""
    found: list[str] = []
    for path in paths:
        found += [str(file) for file in Path(path).rglob("test_*.py")] if Path(path).is_dir() else [path]
    left_out = (Path("tests/docs"), Path("tests/corpus"), Path("tests/windows"))
    found = [path for path in found if not any(Path(path).is_relative_to(each) for each in left_out)]
    return sorted(found, key=lambda path: -Path(path.partition("::")[0]).stat().st_size)


def run(python: WindowsPython, path: str, arguments: Sequence[str]) -> tuple[str, list[tuple[str, str, str]]]:
    """Run one file, and again from a test that hangs; return its path, and name, outcome and reason of each test."""
    results = python.directory / "outcomes" / f"{path.replace('/', '+').replace('::', '+')}.jsonl"
    results.parent.mkdir(exist_ok=True)
    for file in (results, results.with_suffix(".log")):
        file.unlink(missing_ok=True)
    for _ in range(ATTEMPTS):
        code, log = attempt(python, path, arguments, results)
        found = read_outcomes(results)
        if not any(outcome == "hung" for _, outcome, _ in found):
            break
    if code not in {0, 1, 5} and not any(outcome in {"failed", "hung"} for _, outcome, _ in found):
        found.append((path, "failed", f"pytest ended with {code}:\n{log[-2000:]}"))
    return path, found


def attempt(python: WindowsPython, path: str, arguments: Sequence[str], results: Path) -> tuple[int, str]:
    """Run one file, without the tests that have an outcome; return the exit code and the output."""
    plugins = ["-p", "tests.windows.outcomes", "-p", "no:cacheprovider"]
    environment = {
        FILE: windows_path(results),
        "PYTHONPATH": windows_path(ROOT),
        "PYTHONPYCACHEPREFIX": windows_path(python.directory / "bytecode"),
    }
    command = ["-m", "pytest", "-q", "-m", SELECTION, *plugins, *arguments, path]
    options = {"stderr": subprocess.STDOUT, "errors": "replace", "cwd": ROOT, "timeout": LONGEST}
    try:
        done = python.run(*command, env=environment, check=False, **options)
        log, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        log, code = (error.stdout or b"").decode(errors="replace"), -1
    with results.with_suffix(".log").open("a", encoding="utf-8") as file:
        file.write(log)
    return code, log


def read_outcomes(results: Path) -> list[tuple[str, str, str]]:
    outcomes: dict[str, tuple[str, str]] = {}
    if results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            test, outcome, reason = json.loads(line)
            if outcomes.get(test, ("",))[0] != "failed":  # a test that failed may have an error of its teardown, too
                outcomes[test] = "hung" if outcome == RUNNING else outcome, reason
    return [(test, *outcome) for test, outcome in outcomes.items()]


def report(outcomes: Sequence[tuple[str, str, str]], reasons: bool) -> int:
    counts = Counter(outcome for _, outcome, _ in outcomes)
    if reasons:
        skipped = Counter(reason for _, outcome, reason in outcomes if outcome == "skipped")
        for reason, count in skipped.most_common():
            print(f"{count:5} skipped: {reason.removeprefix('Skipped: ')}")
    for test, outcome, reason in outcomes:
        if outcome in {"failed", "hung"}:
            last = next((line for line in reversed(reason.splitlines()) if line.startswith("E ")), reason[-200:])
            print(f"{outcome.upper()} {test}: {last.strip()[:200]}")
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    return 1 if counts["failed"] or counts["hung"] or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.mutants --count 200 --seed 1`: small changes of the package that its tests must detect.

Each change is drawn from the lines that tests run, also in the processes that they start, and made in a copy of the
tree. The tests that run the line run on it, until one fails. `--only 17` shows change 17 of the same seed and runs its
tests.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import cache_from_source
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from tests.loopback.executed import DIRECTORY
from tests.mutants.changes import Change, changes, is_valid
from tests.mutants.lines import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Runs: TypeAlias = "dict[str, tuple[float, dict[str, list[int]]]]"
"""The seconds and the lines of each test."""

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
GOAL = 0.97
MOST_TESTS = 200
MOST_SECONDS = 90.0
"""Seconds of the tests of one run, without the change."""

MOST_RUNS = 4
"""The highest number of runs per change."""

SECONDS_OF_PROCESSES = 60.0
PROCESSES = dict.fromkeys(["tests/api", "tests/cli", "tests/integrations"], SECONDS_OF_PROCESSES)
"""Directories with tests that start Pythons. Their lines are recorded in part, so all of them run at the end."""

SELECTION = "not (long or proxies or pages or windows or notebook or interop or stores)"
UNCOPIED = shutil.ignore_patterns(".git", ".nox", ".venv", ".*_cache", ".hypothesis", ".coverage*", "__pycache__")


@dataclass(frozen=True)
class Mutant:
    """A change of a module and the tests that run its line, with their seconds, the most promising run first."""

    path: str
    change: Change
    runs: Sequence[dict[str, float]]

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines of the module before and after the change, as pairs."""
        source = (ROOT / self.path).read_bytes()
        texts = (source.decode().splitlines(), self.change.apply(source).decode().splitlines())
        return [*zip(*texts, strict=False)]

    def __str__(self) -> str:
        """The entry in the file of equivalent changes, which stays valid if earlier lines are added."""
        before, after = self.lines()[self.change.line - 1]
        return f"{self.path}: {before.strip()} => {after.strip()}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first change that is tried")
    parser.add_argument("--only", type=int, help="show and try this change alone")
    parser.add_argument("--lanes", type=int, default=os.cpu_count(), help="changes that are tried at a time")
    parser.add_argument("--lines", type=Path, default=ROOT / ".nox" / "lines.json", help="what tests run: is kept")
    arguments = parser.parse_args()
    mutants = draw(measured(arguments.lines, arguments.lanes), arguments.count, arguments.seed)
    equivalent = set(EQUIVALENT.read_text(encoding="utf-8").splitlines())
    numbers = range(arguments.first, len(mutants)) if arguments.only is None else [arguments.only]
    if arguments.only is not None:
        before, after = zip(*mutants[arguments.only].lines(), strict=True)
        print(*difflib.unified_diff(before, after, lineterm=""), sep="\n")
        print(*(test for tests in mutants[arguments.only].runs for test in tests), sep="\n")
    counts = {"seen": 0, "NOT SEEN": 0, "equivalent": 0}
    with copies(arguments.lanes) as free, ThreadPoolExecutor(arguments.lanes) as executor:
        passing: set[str] = set()

        def outcome_of(number: int) -> tuple[str, str]:
            mutant = mutants[number]
            if str(mutant) in equivalent:
                return "equivalent", ""
            tree = free.get()
            try:
                return attempt(mutant, tree, passing)
            finally:
                free.put(tree)

        for number, (outcome, why) in zip(numbers, executor.map(outcome_of, numbers), strict=True):
            counts[outcome] += 1
            mutant = mutants[number]
            print(f"{number} {mutant.path}:{mutant.change.line}: {mutant.change.name}: {outcome} {why}", flush=True)
            if outcome == "NOT SEEN":
                print(f"    {mutant}", flush=True)
    tried = counts["seen"] + counts["NOT SEEN"]
    print(f"seed {arguments.seed}: {counts}, {counts['seen'] / max(tried, 1):.1%} seen")
    return 1 if counts["seen"] < GOAL * tried else 0


def measured(path: Path, lanes: int) -> Runs:
    """Return the record of each test; test files are measured again if they or the package have changed."""
    package = b"".join(file.read_bytes() for file in sorted((ROOT / "async_bento").rglob("*.py")))
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if file.parent.name != "docs"]
    keys = {file.relative_to(ROOT).as_posix(): sha256(package + file.read_bytes()).hexdigest() for file in files}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = {name: entry for name, entry in known.items() if entry["key"] == keys.get(name)}
    if missing := [name for name in keys if name not in known]:
        with tempfile.TemporaryDirectory() as directory:
            options = ["-q", f"-n{lanes}", "-p", "tests.mutants.lines", "-m", SELECTION]
            command = [sys.executable, "-m", "pytest", *options, *missing]
            subprocess.run(command, cwd=ROOT, env=os.environ | {DIRECTORY: directory}, check=False)
            known |= {name: {"key": keys[name], "tests": {}} for name in missing}
            for test, entry in read(Path(directory)).items():
                known[test.partition("::")[0]]["tests"][test] = entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known), encoding="utf-8")
    return {test: tuple(entry) for entries in known.values() for test, entry in entries["tests"].items()}


def draw(runs: Runs, count: int, seed: int) -> list[Mutant]:
    """Draw changes of lines that tests run."""
    tests_of = defaultdict[tuple[str, int], set[str]](set)
    for test, (_, files) in runs.items():
        for name, lines in files.items():
            for line in lines:
                tests_of[name, line].add(test)
    sources = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in (ROOT / "async_bento").rglob("*.py")}
    candidates = [(name, change) for name in sorted(sources) for change in changes(sources[name])]
    random.Random(seed).shuffle(candidates)
    mutants = []
    for name, change in candidates:
        if len(mutants) == count:
            break
        tests = set[str]().union(*(tests_of[name, line] for line in range(change.line, change.last + 1)))
        if tests and is_valid(change.apply(sources[name])):
            mutants.append(Mutant(name, change, select(tests, name, runs)))
    return mutants


def select(tests: set[str], name: str, runs: Runs) -> list[dict[str, float]]:
    """Sort tests by rare lines per second, since the fastest tests often have another subject."""
    counts = Counter(line for test in tests for line in runs[test][1][name])

    def order(test: str) -> tuple[float, str]:
        seconds, files = runs[test]
        return -sum(1 / counts[line] for line in files[name]) / seconds, test

    selected = [dict[str, float]()]
    for test in sorted(tests, key=order):
        if len(selected[-1]) == MOST_TESTS or sum(selected[-1].values()) > MOST_SECONDS:
            selected.append({})
        selected[-1][test] = runs[test][0]
    return selected[:MOST_RUNS]


@contextmanager
def copies(count: int) -> Iterator[SimpleQueue[Path]]:
    """Copies of the tree for changes."""
    free = SimpleQueue[Path]()
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        Path(directory).chmod(0o755)  # tests that act as another user read the tree, too
        for number in range(count):
            tree = Path(directory, str(number))
            shutil.copytree(ROOT, tree, symlinks=True, ignore=UNCOPIED)
            free.put(tree)
        yield free


def attempt(mutant: Mutant, tree: Path, passing: set[str]) -> tuple[str, str]:
    """Run the tests of a change; return whether one of them fails, and its name.

    A test that also fails without the change does not count; `passing` has the tests that pass without it.
    """
    for run in mutant.runs:
        tests = dict(run)
        while tests:
            with changed(mutant, tree):
                code, failed = run_tests(tests, tree)
            if not code:
                break
            if failed not in tests:
                return "seen", f"by none alone: exit code {code}"
            if failed in passing or not run_tests({failed: tests[failed]}, tree)[0]:
                passing.add(failed)
                return "seen", f"by {failed}"
            del tests[failed]
    with changed(mutant, tree):
        code, failed = run_tests(PROCESSES, tree, "-m", "processes")
    if code and not (failed and run_tests({failed: SECONDS_OF_PROCESSES}, tree)[0]):
        return "seen", f"by {failed or 'none alone'}"
    return "NOT SEEN", f"by {sum(map(len, mutant.runs))} tests"


@contextmanager
def changed(mutant: Mutant, tree: Path) -> Iterator[None]:
    """Change a module in a copy of the tree."""
    module = tree / mutant.path
    source = module.read_bytes()
    compiled = Path(cache_from_source(str(module)))  # its time stamp is in seconds
    compiled.unlink(missing_ok=True)
    module.write_bytes(mutant.change.apply(source))
    try:
        yield
    finally:
        module.write_bytes(source)
        compiled.unlink(missing_ok=True)


def run_tests(tests: dict[str, float], tree: Path, *selection: str) -> tuple[int, str]:
    """Run tests until one fails; returns the exit code of pytest and the test, or -1 if they hang."""
    options = [
        *selection,
        "-q",
        "-x",
        "--no-header",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        f"--basetemp={tree / '.tmp'}",
    ]
    options.append(f"--timeout={20 + 5 * max(tests.values())}")
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=60 + 3 * sum(tests.values()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return -1, ""
    failed = re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", output, re.MULTILINE)
    return process.returncode, failed[0] if failed else ""


if __name__ == "__main__":
    sys.exit(main())

"""Profile pushes and pulls with py-spy, which samples every busy thread 200 times a second.

    python -m benchmarks.where

The cases are one file of 1 GiB and 20,000 files of 20 kB, over the loopback, on SeaweedFS. The innermost known frame of
a sample gives its activity.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cases import OURS, Case, GiB
from benchmarks.items import Items
from benchmarks.measure import take
from benchmarks.measured import RESULTS, WHERE
from benchmarks.peers import Errand, command, environment
from benchmarks.run import directory_for, given, keep, machine
from benchmarks.servers import BIN, site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases import Direction

RATE = 200
IDLE = ""
CASES = (
    Case("", "One file of 1 GiB", GiB),
    Case("", "20,000 files of 20 kB", 20_000, files=20_000),
)

WORDS = (
    (IDLE, ("_work (async_bento/_core/thread_pool", "select (selectors.py", "wait (threading.py", "accept (")),
    ("MD5", ("_hash (async_bento/transfer/tar/reader", "_hash_ahead")),
    (
        "sending",
        ("send (async_bento/transfer/tar/reader", "write (asyncio/selector", "_write_send", "_write_ready"),
    ),
    ("reading", ("tar/reader.py",)),
    ("headers", ("tarfile.py", "tar/plan.py", "tar/headers.py")),
    ("scanning the directory", ("tar/scan.py", "tar/safety.py", "store/")),
    ("writing files", ("write (async_bento/transfer/tar/writer.py", "_start_write_back")),
    ("creating, closing and renaming files", ("tar/writer.py",)),
    ("sync", ("_sync_filesystem", "sync_tree")),
    ("extraction", ("tar/extract.py", "resumable_extract.py")),
    ("receiving", ("_read_ready", "data_received")),
    ("HTTP", ("aiohttp/", "multidict", "yarl", "transfer/", "rest/")),
    ("event loop", ("asyncio/", "selectors.py", "anyio/", "concurrency.py")),
)
"""The activity of a frame, by the substrings of the frame; the innermost known frame counts."""

START = "start and imports"
OTHER = "interpreter start and exit, unclassified"


def of(stack: str) -> str:
    """Return the activity of a stack, whose frames are separated by `;`, innermost last."""
    frames = stack.split(";")
    if any("importlib" in frame for frame in frames):
        return START
    for frame in reversed(frames):
        for what, words in WORDS:
            if any(word in frame for word in words):
                return what
    return OTHER


def seconds(folded: str) -> dict[str, float]:
    """Return the seconds of all threads by activity, from py-spy's folded stacks, largest first."""
    found: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        found[of(stack)] += int(count)
    found.pop(IDLE, None)
    return {what: count / RATE for what, count in found.most_common()}


@contextmanager
def _errand(items: Items, scratch: Path) -> Iterator[Errand]:
    (scratch / "weed").mkdir()
    with site(scratch / "weed", None, "presigned_url") as here, tempfile.TemporaryDirectory(dir=scratch) as home:
        items.lay_out(Path(home, "bentoml"), "v1")
        yield Errand("push", items.kind, f"{items.name}:v1", "", Path(), Path(home), here)


def _look(errand: Errand, log: Path) -> tuple[float, dict[str, float]]:
    seen = errand.home / "seen"
    spy = [str(BIN / "py-spy"), "record", "--rate", str(RATE), "--format", "raw", "--output", str(seen)]
    taken = take([*spy, "--", sys.executable, *command(OURS, errand)], environment(OURS, errand), [errand.home], log)
    return taken.wall, seconds(seen.read_text())


def main() -> None:
    """Profile all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    taken: list[dict[str, Any]] = []
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for case in CASES:
        with tempfile.TemporaryDirectory(dir=options.scratch) as name, directory_for(case, Path(name)) as scratch:
            items = Items(case, scratch)
            with _errand(items, scratch) as errand:
                homes: dict[Direction, Path] = {"push": errand.home, "pull": Path(tempfile.mkdtemp(dir=scratch))}
                for direction, home in homes.items():
                    wall, at = _look(replace(errand, direction=direction, home=home), scratch / "log")
                    taken.append({"title": case.title, "direction": direction, "wall": wall, "at": at})
                    print(case.title, direction, at, flush=True)
    keep(
        options.results,
        WHERE,
        {"command": given("benchmarks.where"), "began": began, "machine": machine(), "taken": taken},
    )


if __name__ == "__main__":
    main()

"""One of several processes that use `svc:v1` at the same time: `python crowd.py ROLE SECONDS STOP`.

The item has two sides, `a` and `b`. Every file names its side, so that a mixture of both shows. The process prints as
JSON how often each outcome occurred; an outcome that must not occur begins with `broken`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.builders import make_bento

TAG = "svc:v1"
FILES = [f"src/{number}" for number in range(6)]
SIZES = {"a": 70_000, "b": 30_000}
ENOUGH = 10  # reads of each side
LONGEST = 60.0  # seconds
LATER = 20.0  # seconds that a process without a success may continue after the others
OLDEST, NEWEST = "2024-01-01 00:00:00", "2024-01-02 00:00:00"


class Until:
    """The end of a crowd: after some seconds, once its reader has seen each side often enough."""

    def __init__(self, seconds: float, stop: Path) -> None:
        self._stop = stop
        self._earliest = time.time() + seconds
        self._latest = time.time() + seconds + LONGEST

    def is_over(self, seen: Counter[str] | None = None) -> bool:
        """Return whether to end; the reader passes its counts, and ends the crowd."""
        if seen is not None and time.time() > self._earliest and min(seen["a"], seen["b"]) > ENOUGH:
            self._stop.touch()
        return self._stop.exists() or time.time() > self._latest

    def is_late(self) -> bool:
        """Return whether to end without a success: on a busy machine, other processes may have used all the time."""
        return time.time() > self._earliest + LATER


def make_side(home: Path, side: str) -> Path:
    """Make one side of the item."""
    files = {name: side.encode() * SIZES[side] for name in FILES}
    return make_bento(home, TAG, files, built=NEWEST, labels={"side": side})


def side_of(path: Path) -> str | None:
    """Return the side of an item, or None if the item was replaced during the read; fail on a part or a mixture."""
    found = {}
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        # Relative to the directory's descriptor: by path, two files may belong to two complete items.
        for name in ["bento.yaml", *FILES]:
            with suppress(FileNotFoundError), os.fdopen(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
                found[name] = file.read()
        try:
            if not os.path.samestat(path.stat(), os.fstat(directory)):
                return None
        except FileNotFoundError:
            return None
    finally:
        os.close(directory)
    for side, size in SIZES.items():
        expected = dict.fromkeys(FILES, side.encode() * size)
        if f"side: {side}".encode() in found.get("bento.yaml", b"") and found == expected | {
            "bento.yaml": found["bento.yaml"]
        }:
            return side
    raise AssertionError({name: (data[:40], len(data)) for name, data in found.items()})


async def act(role: str, until: Until) -> Counter[str]:
    """Push, pull or delete in a loop."""
    from async_bento import (
        ArchiveError,
        AsyncBentoAPI,
        BentoStore,
        Config,
        NotFoundError,
        SourceChangedError,
        TransferError,
    )

    happened: Counter[str] = Counter()
    config = Config(retry={"attempts": 1}, transfer={"range_size": 2**16, "window": 2**20})
    async with AsyncBentoAPI(config=config, progress=False) as api:
        does = {
            "pull": lambda: api.pull(TAG),
            "replace": lambda: api.pull(TAG, force=True),
            "push": lambda: api.push(TAG, force=True),
            "delete": lambda: asyncio.to_thread(BentoStore().delete, TAG),
        }[role]
        while not until.is_over() or not (happened["done"] or until.is_late()):
            try:
                await does()
                happened["done"] += 1
            except NotFoundError:
                happened["not found"] += 1
            except (ArchiveError, TransferError) as error:
                # A push fails when its item is deleted or replaced, and a pull when its item is pushed again.
                raced = isinstance(error, SourceChangedError) or re.search(
                    "pushed again|cannot pack .*: No such file", str(error)
                )
                happened["raced" if raced else f"broken: {error}"] += 1
            except Exception as error:  # noqa: BLE001 - the test reports it
                happened[f"broken: {type(error).__name__}: {error}"] += 1
            await asyncio.sleep(random.random() * (0.4 if role == "delete" else 0.05))
    return happened


def look(until: Until) -> Counter[str]:
    """Read with our store in a loop."""
    from async_bento import BentoStore, NotFoundError

    happened: Counter[str] = Counter()
    store = BentoStore()

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            happened[f"broken: {record.getMessage()}"] += 1

    logging.getLogger("async_bento").addHandler(Broken())
    while not until.is_over(happened):
        try:
            item = store.get(TAG)
            happened[side_of(item.path) or "gone"] += 1
            assert store.get("svc").labels.keys() <= {"side"}
        except NotFoundError:
            happened["not found"] += 1
        except Exception as error:  # noqa: BLE001 - the test reports it
            happened[f"broken: {type(error).__name__}: {error}"] += 1
        assert 1 <= len(store.list("svc")) <= 2  # v0 is always there
    return happened


def look_with_bentoml(until: Until) -> Counter[str]:
    """Read with BentoML in a loop."""
    import bentoml

    happened: Counter[str] = Counter()
    while not until.is_over(happened):
        try:
            bento = bentoml.bentos.get(TAG)
            assert bento.info.labels["side"] in SIZES
            happened[side_of(Path(bento.path)) or "gone"] += 1
            assert bentoml.bentos.get("svc").tag.version in {"v0", "v1"}
            assert 1 <= len(bentoml.bentos.list("svc")) <= 2
        except bentoml.exceptions.NotFound:
            happened["not found"] += 1
        except Exception as error:  # noqa: BLE001 - the test reports it
            happened[f"broken: {type(error).__name__}: {error}"] += 1
    return happened


def start(role: str, home: Path, seconds: float, stop: Path) -> subprocess.Popen[str]:
    """Start a process of the crowd, with the registry of the environment variables."""
    return subprocess.Popen(
        [sys.executable, __file__, role, str(seconds), str(stop)],
        env=os.environ
        | {"BENTOML_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2]), "BENTOML_DO_NOT_TRACK": "True"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def crowd(roles: list[tuple[str, Path]], seconds: float) -> list[Counter[str]]:
    """Start a process per role and home at the same time; return for each how often each outcome occurred."""
    stop = roles[0][1].parent / "crowd-stop"
    processes = [start(role, home, seconds, stop) for role, home in roles]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        ends = [process.communicate(timeout=seconds + LONGEST + 20)[0] for process in processes]
        return [Counter(json.loads(end.splitlines()[-1])) for end in ends]
    finally:
        for process in processes:
            process.kill()


def main() -> None:
    """Run as one process of the crowd."""
    role, seconds, stop = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    if role == "bentoml":
        import bentoml  # noqa: F401 - it takes seconds
    else:
        import async_bento.api.async_api  # noqa: F401
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    until = Until(seconds, stop)
    if role == "look":
        happened = look(until)
    elif role == "bentoml":
        happened = look_with_bentoml(until)
    else:
        happened = asyncio.run(act(role, until))
    print(json.dumps(happened))  # noqa: T201


if __name__ == "__main__":
    main()

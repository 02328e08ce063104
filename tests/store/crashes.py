"""Kill a push or a pull at a chosen step, or let the disk fail from that step on; `crash.c` defines a step."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from async_bento import BentoStore, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("crash.c")

SERVER = """
import asyncio, ctypes, json, os, sys, traceback
from async_bento import AsyncBentoAPI, BentoError, Config
from async_bento import cli
from async_bento.api import async_api  # imported here, so that the children need not
from async_bento._core import platform

crash = ctypes.CDLL(None)  # the preloaded library

async def main(task):
    config = Config(retry={"attempts": 1}, transfer={"range_size": 2**16, "window": 2**20, "part_size": 5 * 2**20})
    async with AsyncBentoAPI(config=config, progress=False) as client:
        await getattr(client, task["call"])(task["tag"], force=task["force"])

def child(task):
    os.environ["BENTOML_HOME"] = task["home"]
    if not task["exchange"]:
        platform.exchange = lambda *_: False
    crash.crash_at(os.fsencode(task["home"]), ctypes.c_long(task["at"]), task["call"] == "push", task["error"])
    try:
        asyncio.run(main(task))
        return {"steps": crash.crash_steps()}
    except BentoError as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    finally:
        crash.crash_at(b"", ctypes.c_long(0), 0, 0)

print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            outcome = child(json.loads(line))
        except BaseException:
            outcome = {"error": traceback.format_exc()}
        os.write(writing, json.dumps(outcome).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        outcome = file.read()
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status)
    print(json.dumps({"steps": None} if killed else json.loads(outcome)), flush=True)
"""


@dataclass
class Crasher:
    """A process that forks one child per push or pull, which saves the imports."""

    process: subprocess.Popen[str]

    def run(
        self, call: str, home: Path, *, at: int = 0, force: bool = False, exchange: bool = True, error: int = 0
    ) -> int | str | None:
        """Push or pull `svc:v1`; return the number of steps, None after a kill, or the error as text.

        Step `at` kills the process, or with `error` is the first to fail with that errno; 0 lets the process run.
        """
        assert self.process.stdin
        assert self.process.stdout
        task = {"call": call, "home": str(home), "at": at, "force": force, "exchange": exchange, "error": error}
        task["tag"] = "svc:v1"
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        outcome: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert "error" not in outcome, outcome["error"]
        assert at or "steps" in outcome, outcome
        return outcome.get("steps", outcome.get("failed"))


def library(directory: Path) -> Path:
    """Compile the library that counts steps and kills."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    path = directory / "crash.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(SOURCE), "-ldl"], check=True, timeout=60)
    return path


@contextmanager
def crashing(tmp_path: Path) -> Iterator[Crasher]:
    """Start a Crasher with the registry of the environment variables."""
    environment = os.environ | {"LD_PRELOAD": str(library(tmp_path)), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline()) == "ready"
        try:
            yield Crasher(process)
        finally:
            process.kill()


def whole(directory: Path) -> dict[str, object]:
    """Read an item: contents, link targets and modes, without the mode of its own directory."""
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content: object = str(path.readlink())
        else:
            content = path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(directory))] = (oct(status.st_mode), content)
    return found


def seen(home: Path) -> tuple[str | None, dict[str, dict[str, object]]]:
    """Read the `latest` file, and the items of `svc` that the store lists and gets, by version."""
    file = home / "bentos" / "svc" / "latest"
    latest = file.read_text() if file.exists() else None
    store = BentoStore(home / "bentos")
    items = {item.tag.version or "": whole(item.path) for item in store.list()}
    for version in ("v0", "v1"):
        try:
            assert whole(store.get(f"svc:{version}", prefix=False).path) == items[version]
        except NotFoundError:
            assert version not in items
    return latest, items

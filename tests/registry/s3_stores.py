"""Runs moto, rclone's `serve s3` and s3rver, each with a bucket, for the tests of the registry."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

BUCKET = "registries"
KEY = "S3RVER"
"""The access key and the secret of all stores: s3rver has no others."""

SECONDS_TO_START = 60

NAMES = ("moto", "rclone", "s3rver")


@dataclass(frozen=True)
class Store:
    """A running S3 server."""

    name: str
    endpoint: str


def is_installed() -> bool:
    """Whether all stores are installed; `S3RVER` is the directory that npm has installed s3rver into."""
    return find_spec("moto") is not None and _rclone() is not None and _s3rver() is not None


def _rclone() -> str | None:
    return shutil.which("rclone", path=str(Path(sys.executable).parent))


def _s3rver() -> str | None:
    directory = os.environ.get("S3RVER")
    return shutil.which("s3rver", path=f"{directory}/node_modules/.bin") if directory else None


def _command(name: str, data: Path, port: int) -> list[str | Path | None]:
    if name == "moto":
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    if name == "rclone":
        options = ["--config", os.devnull, "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{KEY}"]
        return [_rclone(), "serve", "s3", *options, data]
    return [_s3rver(), "--address", "127.0.0.1", "--port", str(port), "--directory", data]


@contextmanager
def running(name: str, directory: Path) -> Iterator[Store]:
    """Run a store on a free port, with a bucket."""
    (port,) = free_ports(1)
    data, log = directory / "data", directory / "log"
    (data / BUCKET).mkdir(parents=True)  # directories are the buckets of rclone and of s3rver
    with log.open("wb") as output:
        command = [str(word) for word in _command(name, data, port)]
        process = subprocess.Popen(command, cwd=directory, stdout=output, stderr=output)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_for(endpoint, process, log)
        if name == "moto":  # it checks no credentials
            with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=30):
                pass
        yield Store(name, endpoint)
    finally:
        process.kill()
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            return  # it asks for credentials
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"{url} did not start:\n{log.read_text()[-2000:]}")

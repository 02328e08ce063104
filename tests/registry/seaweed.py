"""Runs SeaweedFS, an S3 server, for the tests of the registry and for the benchmarks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS_TO_START = 40

PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)

USERS = {
    "admin": ["Admin", "Read", "Write", "List", "Tagging"],
    "reader": ["Read", "List"],
}


def is_installed() -> bool:
    """Whether SeaweedFS and aiobotocore are installed."""
    return find_spec("aiobotocore") is not None and _weed() is not None


def _weed() -> str | None:
    return shutil.which("weed", path=str(Path(sys.executable).parent))


@dataclass(frozen=True)
class Seaweed:
    """A running SeaweedFS; the access key and the secret of each user are the user's name."""

    endpoint: str


@contextmanager
def seaweed(directory: Path, *, volume_size: int = 128) -> Iterator[Seaweed]:
    """Run SeaweedFS in a directory, on free ports; its volumes grow to `volume_size` MiB each."""
    weed = _weed()
    assert weed is not None
    config = directory / "s3.json"
    users = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": name}], "actions": actions}
        for name, actions in USERS.items()
    ]
    config.write_text(json.dumps({"identities": users}))
    (directory / "data").mkdir()
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    options = {
        "dir": directory / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": config,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": volume_size,
        "volume.max": 100,
        **ports,
    }
    command = [weed, "server", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=directory, stdout=output, stderr=output)
    try:
        _wait_for(f"{endpoint}/status", process, log)
        yield Seaweed(endpoint)
    finally:
        process.kill()  # terminate() takes seconds, and the data is of no use
        process.wait()
        for path in Path("/tmp").glob("seaweedfs-*-grpc-*.sock"):  # SeaweedFS always creates its sockets here
            if int(path.stem.rpartition("-")[2]) in ports.values():
                path.unlink(missing_ok=True)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")

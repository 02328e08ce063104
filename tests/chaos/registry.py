"""A registry of a case: a process behind a proxy, on a disk of its own, that can be killed and restarted."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.disk import Disk
from tests.chaos.proxy import ChaosProxy, Upstream
from tests.chaos.truth import Record, record_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.chaos.items import Item
    from tests.chaos.processes import Process, Zygote

TOKEN = "token"


@dataclass
class Registry:
    """A registry with its proxy and disk; `direct` is the endpoint behind the proxy."""

    proxy: ChaosProxy
    disk: Disk
    zygote: Zygote
    log: Path
    options: dict[str, object]
    direct: str = ""
    _process: Process | None = field(default=None, init=False)
    _killed: Process | None = field(default=None, init=False)

    async def start(self) -> None:
        """Start the process, unless the process runs."""
        if self._killed is not None:  # `stop` may have been cancelled, and the directory is still locked
            await self._killed.ended.wait()
        if self._process is None:
            self._process = self.zygote.start(
                do="serve",
                root=str(self.disk.path / "root"),
                options={**self.options, "api_token": TOKEN},
                log=str(self.log),
            )
        process = self._process
        await process.reported.wait()
        if process.ended.is_set():
            raise RuntimeError(f"the registry did not start: {self.log.read_text()[-3000:]}")
        self.direct = process.report["endpoint"]
        self.proxy.registry.endpoint = self.direct

    async def stop(self) -> None:
        """Kill the process."""
        self.proxy.registry.endpoint = ""
        if self._process is not None:
            self._killed, self._process = self._process, None
            self._killed.kill()
        if self._killed is not None:
            await self._killed.ended.wait()

    async def record(self, item: Item) -> Record:
        """Read the record and the bytes of an item, without the proxy."""
        return await asyncio.to_thread(record_of, self.direct, TOKEN, item.kind, item.name, item.version)

    async def left_over(self) -> list[Path]:
        """Return the paths that no record names, except open uploads."""
        root = self.disk.path / "root"

        def left() -> Iterator[Path]:
            with closing(sqlite3.connect(f"file:{root}/registry.sqlite3?mode=ro", uri=True)) as records:
                known = {key for (key,) in records.execute("SELECT key FROM blobs")}
            for directory in (root / "blobs").glob("*/*/*/*"):
                if (directory / "upload").exists():  # an open upload, which survives a kill of the registry
                    continue
                yield from directory.glob(".*")
                if directory.relative_to(root / "blobs").as_posix() not in known:
                    yield directory

        found: list[Path] = []
        for _ in range(50):
            found = await asyncio.to_thread(lambda: [*left()])
            if not found:
                break
            await asyncio.sleep(0.1)
        return found


@asynccontextmanager
async def running_registry(
    zygote: Zygote, work: Path, name: str, size: int | None, options: dict[str, object], faults: Counter[str]
) -> AsyncIterator[Registry]:
    """Run a registry behind a proxy, on a disk of `size` bytes, and add the faults of the proxy to `faults`."""
    disk = Disk(work / name, size)
    try:
        async with ChaosProxy(Upstream(api_token=TOKEN)) as proxy:
            registry = Registry(proxy, disk, zygote, work / f"{name}.log", options)
            try:
                await registry.start()
                yield registry
            finally:
                faults.update(proxy.counts)
                await registry.stop()
    finally:
        disk.unmount()

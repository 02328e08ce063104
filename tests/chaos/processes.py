"""Clients and registries in their own processes, controlled by the driver."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    """A process that the zygote has forked.

    Attributes:
        report: The last report of the process.
        reported: Set at the first report, or at the end of the process.
        ended: Set at the end of the process, together with `status`.
    """

    id: int
    zygote: Zygote
    report: dict[str, Any] = field(default_factory=dict)
    reported: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    status: int | None = None

    def kill(self) -> None:
        """Send SIGKILL to the process, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, unless the process has ended."""
        self.zygote.send({"kill": self.id, "signal": number})


class Zygote:
    """The process that forks all others and ends them when the block ends."""

    def __init__(self) -> None:
        self._processes: dict[int, Process] = {}
        self._next = 0

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.chaos.zygote",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening

    def start(self, **job: object) -> Process:
        """Fork a process for a job."""
        self._next += 1
        process = self._processes[self._next] = Process(self._next, self)
        self.send({"id": self._next, **job})
        return process

    def send(self, message: object) -> None:
        """Send a message to the zygote."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _listen(self) -> None:
        assert self._process.stdout
        async for line in self._process.stdout:
            report = json.loads(line)
            process = self._processes[report.pop("id")]
            process.reported.set()
            if "ended" in report:
                process.status = report["ended"]
                process.ended.set()
                del self._processes[process.id]
            else:
                process.report = report

"""Run a command and measure its wall time, CPU, memory and disk usage. Linux only: it reads /proc.

The kernel reports wall time and CPU of the process and the children that it waited for. Memory and disk are sampled
many times a second, so short peaks can be missed; the peak memory of each process is also the kernel's.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SECONDS_A_LOOK = 0.05
SHARE_FOR_DISK = 0.05
"""The maximum share of the time; a walk through 20,000 files must not take CPU from the measured process."""

SECTOR = 512


class FailedError(Exception):
    """A command exited with an error."""


@dataclass(frozen=True)
class Taken:
    """The measurements of a command and all its processes; `written` counts writes to files, synced or not."""

    wall: float
    cpu: float
    servers_cpu: float
    peak_memory: int
    peak_disk: int
    written: int

    def as_json(self) -> dict[str, float]:
        """Return the measurements as a JSON object."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def take(command: Sequence[str], environment: Mapping[str, str], watched: Sequence[Path], log: Path) -> Taken:
    """Run a command to its end and measure it; raise FailedError with the end of its log if it fails."""
    before, servers_before = on_disk(watched, set()), _cpu_of_servers()
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=watched[0])
        look = _Look(process.pid, watched)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            wall = time.monotonic() - began
            look.end()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise FailedError(f"{' '.join(command)}: exit {process.returncode}\n{log.read_text(errors='replace')[-3000:]}")
    return Taken(
        wall=wall,
        cpu=used.ru_utime + used.ru_stime,
        servers_cpu=_cpu_of_servers() - servers_before,
        peak_memory=look.memory,
        peak_disk=max(0, look.disk - before, on_disk(watched, set()) - before),
        written=used.ru_oublock * SECTOR,
    )


class _Look:
    """Samples a process and its descendants until `end` is called."""

    def __init__(self, pid: int, watched: Sequence[Path]) -> None:
        self.memory = 0
        self.disk = 0
        self._pid = pid
        self._watched = watched
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        disk_due = 0.0
        while True:
            pids = list(_family(self._pid))
            sizes = [_memory(pid) for pid in pids]
            self.memory = max(self.memory, sum(now for now, _ in sizes), *(peak for _, peak in sizes), 0)
            if (now := time.monotonic()) >= disk_due:
                seen: set[tuple[int, int]] = set()
                self.disk = max(self.disk, on_disk(self._watched, seen) + _deleted(pids, self._watched, seen))
                disk_due = now + (time.monotonic() - now) / SHARE_FOR_DISK
            if self._over.wait(SECONDS_A_LOOK):
                return


def _family(pid: int) -> Iterator[int]:
    """Yield a process and all its descendants."""
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _family(int(child))


def _cpu_of_servers() -> float:
    """Return the CPU seconds of all running processes that this process started."""
    total = 0.0
    for pid in _family(os.getpid()):
        if pid != os.getpid():
            with suppress(OSError):
                # The fields follow the name, which may contain any character: see proc_pid_stat(5).
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _memory(pid: int) -> tuple[int, int]:
    """Return the current and the peak resident memory of a process, in bytes."""
    found = {"VmRSS:": 0, "VmHWM:": 0}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, *rest = line.split()
            if name in found:
                found[name] = int(rest[0]) * 1024
    return found["VmRSS:"], found["VmHWM:"]


def on_disk(directories: Iterable[Path], seen: set[tuple[int, int]]) -> int:
    """Return the bytes of all files below directories, counting each (device, inode) that is not in `seen` once."""
    total = 0
    for directory in directories:
        for parent, _, names in os.walk(directory):
            for name in names:
                with suppress(OSError):
                    total += _once(os.lstat(f"{parent}/{name}"), seen)
    return total


def _once(status: os.stat_result, seen: set[tuple[int, int]]) -> int:
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return 0
    seen.add(key)
    return status.st_blocks * SECTOR


def _deleted(pids: Iterable[int], directories: Sequence[Path], seen: set[tuple[int, int]]) -> int:
    """Return the bytes of deleted files that a process still has open."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for path in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    target = path.readlink()
                    if target.name.endswith(" (deleted)") and any(map(target.is_relative_to, directories)):
                        total += _once(path.stat(), seen)
    return total

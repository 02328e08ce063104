"""What a pull receives, unpacked as it comes, and what is noted of it so that another process can go on.

Beside the directory lies a state file: which object of which registry it is, and the checkpoint of the extractor. It is
written before anything is fed that the last one does not foresee, and removed before the last steps are taken, so
that what it says is true however the process ends. After a crash of the system it may not be, since nothing was
synced; it names the boot it was written in, and another one starts anew.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from async_bento._core.files import atomic_write
from async_bento._core.text import human_size
from async_bento.config import MiB
from async_bento.errors import StoreError
from async_bento.store.errors import as_store_error
from async_bento.transfer.download import Begun
from async_bento.transfer.tar.checkpoint import Checkpoint
from async_bento.transfer.tar.extract import Extractor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_bento._core.concurrency import Threads
    from async_bento.config import Limits

VERSION = 1
"""Of the state file; one of another version is not read."""

INTERVAL = 8 * MiB
"""Bytes of the tar between two checkpoints, or more where a checkpoint is long: what a killed process has to fetch
anew, beside what was on its way."""

_SHARE = 50  # bytes of the tar for each of a checkpoint, so that writing those takes no time to speak of
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Unpacking:
    """Extracts what arrives into a staging directory. Its construction blocks.

    Args:
        directory: The staging directory; what an earlier pull has left in it is gone on with, or removed.
        state: The file for what another may go on with, beside the directory; None for no such thing.
        source: Where the tar comes from; only what came from there is gone on with.
        threads: Where it is done.
        limits: What the tar may hold.
        announced: How much content it should have, in bytes; 0 where nobody says.

    Attributes:
        begun: What there is to go on with, or None.
    """

    def __init__(
        self, directory: Path, state: Path | None, source: str, threads: Threads, limits: Limits, announced: int
    ) -> None:
        self.begun: Begun | None = None
        self._directory = directory
        self._state = state
        self._source = source
        self._threads = threads
        self._limits = limits
        self._announced = announced
        self._etag: str | None = None
        self._total: int | None = None
        self._fed = 0
        self._reach = 0
        self._longest = 0
        try:
            self._extractor = self._resumed()
        except (OSError, ValueError, StoreError):  # there is none, or it is not as it was left
            self._extractor = self._anew()

    async def started(self, total: int | None, etag: str | None) -> None:
        """Take note of what will come.

        Args:
            total: Bytes of the tar, or None where that is not known.
            etag: Its ETag, or None.

        Raises:
            StoreError: The disk has no room for it.
        """
        self._total, self._etag = total, etag
        if total is not None:
            await self._threads.run(self._check_room, total - self._fed)

    async def feed(self, data: Sequence[bytes]) -> None:
        """Extract some more.

        Args:
            data: The next bytes of the tar, in pieces.

        Raises:
            UnsafeArchiveError: They are no part of a tar, or of one that is refused.
            StoreError: The disk is full, or refuses.
        """
        await self._threads.run(self._feed, data)

    async def restart(self) -> None:
        """Remove what was extracted: the tar comes again from its first byte."""
        await self._threads.run(self._restart)

    async def close(self) -> None:
        """Check that the tar has come to its end, and do what is to be done last.

        Raises:
            UnsafeArchiveError: The tar ends too early, or a link leads outside.
            StoreError: The disk is full, or refuses.
        """
        await self._threads.run(self._close)

    async def give_up(self, *, keep: bool) -> None:
        """Let go of the directory.

        Args:
            keep: Whether another may go on with what is there.
        """
        await self._threads.run(self._give_up, keep)

    def _resumed(self) -> Extractor:
        if self._state is None:
            raise FileNotFoundError
        read: object = json.loads(self._state.read_bytes())
        said = cast("dict[str, Any]", read) if isinstance(read, dict) else {}
        if said.get("about") != self._about(said.get("etag"), said.get("total")):
            raise ValueError("it is of another tar, or of another time")
        checkpoint = Checkpoint.from_json(said.get("checkpoint"))
        extractor = Extractor(self._directory, self._limits, announced=self._announced, checkpoint=checkpoint)
        self._etag, self._total = said["etag"], said["total"]
        self._fed, self._reach = checkpoint.position, checkpoint.covered
        self.begun = Begun(checkpoint.position, said["total"], said["etag"])
        return extractor

    def _anew(self) -> Extractor:
        self._forget()
        self.begun = None
        self._fed = self._reach = 0
        if any(self._directory.iterdir()):
            shutil.rmtree(self._directory)
            self._directory.mkdir()
        return Extractor(self._directory, self._limits, announced=self._announced)

    def _restart(self) -> None:
        self._extractor.abort()
        self._extractor = self._anew()

    def _feed(self, data: Sequence[bytes]) -> None:
        after = self._fed + sum(map(len, data))
        if after > self._reach:
            self._save(after)
        for piece in data:
            self._extractor.feed(piece)
        self._fed = after

    def _close(self) -> None:
        self._forget()
        self._extractor.close()

    def _give_up(self, keep: bool) -> None:
        self._extractor.abort()
        with suppress(StoreError):  # whoever gives up has a better reason to tell
            if keep and self._fed:
                self._save(self._fed)
            else:
                self._forget()

    def _save(self, upto: int) -> None:
        """Note how far it has come, before it goes further than the last note says."""
        if self._state is None or not self._etag or self._etag.startswith("W/") or self._total is None:
            return
        reach = max(self._reach, upto + max(INTERVAL, _SHARE * self._longest))
        checkpoint = self._extractor.checkpoint(reach)
        if checkpoint is None:
            return
        self._reach = reach
        said = {
            "about": self._about(self._etag, self._total),
            "etag": self._etag,
            "total": self._total,
            "checkpoint": checkpoint.to_json(),
        }
        text = json.dumps(said)
        self._longest = len(text)
        try:
            temp_path = self._state.with_name(f"{self._state.name}.new")  # one name: killed pulls leave one file
            atomic_write(self._state, text, durable=False, temp_path=temp_path)
        except OSError:  # without it, a pull that is interrupted starts anew; with the old one, it would be misled
            self._forget()

    def _forget(self) -> None:
        if self._state is not None:
            with as_store_error("forget how far it had come"):
                self._state.unlink(missing_ok=True)

    def _about(self, etag: object, total: object) -> list[object]:
        return [VERSION, _boot(), self._source, etag, total]

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            raise StoreError(
                f"the disk of {self._directory} has {human_size(free)} free, and {human_size(needed)} are to come"
            )


def _boot() -> str:
    """What tells this run of the system from the next; empty where the system does not say."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""

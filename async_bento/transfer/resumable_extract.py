"""Extraction of a tar as it arrives, with state that lets another process resume it.

A state file next to the staging directory names the object and holds the extractor's checkpoint. The file is written
before any byte is fed beyond what the last checkpoint covers, and removed before the final steps, so that it is valid
however the process ends. It is not synced, so it may be invalid after a system crash: the file names the boot in which
it was written, and is ignored after another boot.
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from async_bento._core import platform
from async_bento._core.files import atomic_write
from async_bento._core.text import human_size
from async_bento.config import MiB
from async_bento.errors import ArchiveError, StoreError
from async_bento.store.errors import as_store_error
from async_bento.transfer.tar.checkpoint import Checkpoint
from async_bento.transfer.tar.extract import Extractor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from async_bento.config import Limits

VERSION = 2
"""Format of the state file; another version is ignored."""

CHECKPOINT_INTERVAL = 8 * MiB
"""Bytes of the tar between two checkpoints, more for a long checkpoint: what a killed process has to fetch again."""

_TAR_PER_CHECKPOINT = 50  # bytes of the tar per byte of checkpoint, so that writing checkpoints takes negligible time


class ResumePoint(NamedTuple):
    """What an interrupted download left: the next byte, the size of the tar in bytes, and the ETag it must have.

    `is_verified` states whether the MD5s of the parts before were compared.
    """

    position: int
    total: int
    etag: str
    is_verified: bool


@contextmanager
def resumable_extract(
    directory: Path, state: Path | None, origin: str, limits: Limits, announced: int
) -> Generator[ResumableExtract]:
    """Extract a tar in a block that ends with `close`; after an error, the state for a resume is kept if it is true."""
    extract = ResumableExtract(directory, state, origin, limits, announced)
    keep_state = True
    try:
        yield extract
    except (ArchiveError, StoreError):
        keep_state = not extract.has_fed  # what earlier pulls left is as true as before
        raise
    finally:
        if not extract.finished:
            extract.abort(keep_state=keep_state)


class ResumableExtract:
    """Extracts a tar into a staging directory, resuming or removing what an earlier pull left there.

    Every method blocks. `state` is the file for resume state, None to disable resuming; only a tar from the same
    `origin` (the registry's URL) is resumed. `announced` is the content size in bytes by the record, 0 where unknown.
    """

    def __init__(self, directory: Path, state: Path | None, origin: str, limits: Limits, announced: int) -> None:
        self.resume_point: ResumePoint | None = None
        self.not_resumed: str | None = None
        """Why the state of an interrupted pull is not used; None where it is used, and where there is none."""
        self.finished = False
        self.has_fed = False
        self._directory = directory
        self._state = state
        self._origin = origin
        self._limits = limits
        self._announced = announced
        self._etag: str | None = None
        self._total: int | None = None
        self._fed: int
        self._covered: int  # the byte up to which the last checkpoint stays true
        self._longest = 0  # characters of the last checkpoint
        self._next_checkpoint: Callable[[int], int] | None = None
        extractor: Extractor | None = None
        try:
            extractor = self._resumed()
        except (OSError, ValueError, LookupError, OverflowError, StoreError):  # the pull starts from the first byte
            self.not_resumed = "its state or its files are damaged"
        self._extractor = self._fresh() if extractor is None else extractor

    def start(self, total: int | None, etag: str | None, next_checkpoint: Callable[[int], int] | None = None) -> None:
        """Take the size and ETag of the tar, and check that the disk has room for it.

        `next_checkpoint(byte)` returns the first byte at or after `byte` where a part ends: all bytes before it are
        verified, so a pull can be resumed there. None where nothing is verified: a pull can be resumed at any byte.
        """
        self._total, self._etag, self._next_checkpoint = total, etag, next_checkpoint
        if total is not None:
            self._check_space(total - self._fed)

    def feed(self, data: Sequence[bytes | memoryview]) -> None:
        """Extract the next bytes of the tar."""
        end = self._fed + sum(map(len, data))
        if end > self._covered and (self._next_checkpoint is None or self._next_checkpoint(self._fed) == self._fed):
            self._save(end)
        self.has_fed = True
        for piece in data:
            self._extractor.feed(piece)
        self._fed = end

    def restart(self) -> None:
        """Remove what was extracted: the tar comes again from its first byte."""
        self._extractor.abort()
        self._extractor = self._fresh()

    def close(self) -> None:
        """Check that the tar is complete, and apply links and directory times."""
        self._remove_state()  # first: from now on, links and times differ from what the state describes
        self._extractor.close()
        self.finished = True

    def abort(self, *, keep_state: bool) -> None:
        """Stop; keep the state for a later pull to resume, or remove it."""
        self._extractor.abort()
        with suppress(StoreError):  # the error that ended the pull is the one to raise
            if keep_state and self._fed:
                # With a verifier, the last state is the last that was verified.
                if self.has_fed and self._next_checkpoint is None:
                    self._save(self._fed)
            else:
                self._remove_state()

    def _resumed(self) -> Extractor | None:
        try:
            read: object = json.loads(self._state.read_bytes()) if self._state is not None else None
        except FileNotFoundError:
            return None
        if read is None:
            return None
        state = cast("dict[str, Any]", read) if isinstance(read, dict) else {}
        self.not_resumed = self._difference(state)
        if self.not_resumed is not None:
            return None
        checkpoint = Checkpoint.from_json(state.get("checkpoint"))
        extractor = Extractor(self._directory, self._limits, announced=self._announced, checkpoint=checkpoint)
        self._etag, self._total = state["etag"], state["total"]
        self._fed, self._covered = checkpoint.position, checkpoint.covered
        is_verified = state.get("verified") is True
        self.resume_point = ResumePoint(checkpoint.position, state["total"], state["etag"], is_verified)
        return extractor

    def _fresh(self) -> Extractor:
        self._remove_state()
        self.resume_point = None
        self._fed = self._covered = 0
        if any(self._directory.iterdir()):
            platform.remove_directory(self._directory)
            self._directory.mkdir()
        return Extractor(self._directory, self._limits, announced=self._announced)

    def _save(self, end: int) -> None:
        """Write the state before the extractor goes beyond what the last state covers."""
        # A weak ETag may stay when bytes change (RFC 9110, 8.8.1), so nothing would show that the object is the same.
        if self._state is None or not self._etag or self._etag.startswith("W/") or self._total is None:
            return
        covered = max(self._covered, end + max(CHECKPOINT_INTERVAL, _TAR_PER_CHECKPOINT * self._longest))
        if self._next_checkpoint is not None:
            covered = self._next_checkpoint(covered)
        checkpoint = self._extractor.checkpoint(covered)
        if checkpoint is None:
            return
        self._covered = covered
        state = {
            "about": self._about(self._etag, self._total),
            "etag": self._etag,
            "total": self._total,
            "verified": self._next_checkpoint is not None,
            "checkpoint": checkpoint.to_json(),
        }
        text = json.dumps(state)
        self._longest = len(text)
        try:
            # One fixed name, so that killed processes leave one file at most.
            atomic_write(self._state, text, durable=False, temp_path=self._state.with_name(f"{self._state.name}.new"))
        except OSError:  # the old state would mislead a resumed pull; without any, it starts from the first byte
            self._remove_state()

    def _remove_state(self) -> None:
        if self._state is not None:
            with as_store_error("remove the resume state"):
                platform.remove(self._state, missing_ok=True)

    def _about(self, etag: object, total: object) -> list[object]:
        return [VERSION, platform.boot_id(), self._origin, etag, total]

    def _difference(self, state: dict[str, Any]) -> str | None:
        """Why a state is not one of this pull; None where it is."""
        about, expected = state.get("about"), self._about(state.get("etag"), state.get("total"))
        if about == expected:
            return None
        if not isinstance(about, list) or len(about := cast("list[object]", about)) != len(expected):
            return "its state is damaged"
        if about[0] != expected[0]:
            return "another version of async-bento wrote its state"
        if about[1] != expected[1]:
            return "the machine was restarted, or another machine wrote its state, so files may be incomplete"
        return f"it was from {about[2]}"

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            raise StoreError(
                f"not enough disk space in {self._directory}: {human_size(free)} free, {human_size(needed)} required. "
                "Free some space."
            )

"""From a staging directory to the commit into the store, and the recovery of commits that crashed.

    $BENTOML_HOME/tmp/async-bento-<random>/     a temporary directory, locked while in use
        item/                                   the staged item, or the old one that a commit or a delete moved aside
        target                                  the path of the item that a commit is about to change
    $BENTOML_HOME/tmp/async-bento-kept-<name>/  a temporary directory that a later call may resume
        state.json                              how to resume
    $BENTOML_HOME/tmp/async-bento-kept-<name>   a file that outlives its process, like the journal of a push
    $BENTOML_HOME/tmp/async-bento-locks/        lock files

BentoML takes every directory in a store for an item, so nothing unfinished may lie there. These directories lie next to
the stores, from where one rename moves an item into its store.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from async_bento._core.files import fsync_path
from async_bento.errors import StoreError
from async_bento.store.errors import as_store_error
from async_bento.store.filesystem import exchange, make_movable, move_aside, remove_tree
from async_bento.store.locks import Lock, lock_directory
from async_bento.store.tag import LATEST

if TYPE_CHECKING:
    from collections.abc import Generator

logger = logging.getLogger(__name__)

PREFIX = "async-bento-"
"""Marks our entries in a directory that BentoML uses too."""

LOCKS = f"{PREFIX}locks"
KEPT = f"{PREFIX}kept-"

ITEM = "item"
STATE = "state.json"
_TARGET = "target"

KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a resumable directory or file is kept after its last use. A week outlasts a long weekend."""

_RECOVERY_TIMEOUT = 1.0  # seconds for which another process's recovery may hold the lock of a kept directory
_POLL_INTERVAL = 0.01  # in seconds

# Always the same name, so that the next probe replaces one that a killed process left. A file: neither BentoML nor this
# package takes a file for an item.
_PROBE = f".{PREFIX}probe"


class StagingArea:
    """The temporary directories, kept files and locks of the stores that share one parent directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def lock(self, name: str) -> Lock:
        """Make a lock, not yet acquired, on a name that is valid as a file name."""
        return Lock(self.root / LOCKS / f"{name}.lock")

    def kept_file(self, name: str) -> Path:
        """Return the path of a file that outlives its process until `KEPT_SECONDS` after its last write."""
        with as_store_error(f"make {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            self.recover()
        return self.root / f"{KEPT}{name}"

    @contextmanager
    def directory(self, resume: str | None = None) -> Generator[Path]:
        """Make a temporary directory that only its owner may read, and remove it on exit.

        With a name in `resume`, a block that fails and leaves a `STATE` file keeps the directory for `KEPT_SECONDS`,
        and the next block with this name continues in it.
        """
        with as_store_error(f"make a directory in {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            self.recover()
            path, descriptor = self._create() if resume is None else self._open_kept(resume)
        finished = False
        try:
            yield path
            finished = True
        finally:
            try:
                if finished or resume is None or not (path / STATE).exists():
                    remove_tree(path)
            except OSError:
                logger.warning("cannot remove %s. The next push or pull tries again.", path, exc_info=True)
            finally:
                os.close(descriptor)

    def recover(self) -> None:
        """Finish interrupted commits, then remove what crashed processes left and what was kept for too long."""
        for path in self.root.glob(f"{PREFIX}*"):
            with suppress(OSError):
                if path.name == LOCKS:
                    continue
                if path.name.startswith(KEPT) and _is_resumable(path):
                    continue
                if not path.is_dir():
                    if path.name.startswith(KEPT):
                        path.unlink()
                    continue
                # Every process locks the directories that it uses, so one that is not locked belongs to a dead process.
                descriptor = lock_directory(path, required=True)
                try:
                    _recover_commit(path)
                    remove_tree(path)
                finally:
                    os.close(descriptor)

    def _create(self) -> tuple[Path, int]:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.root))
            # Another process's recovery may remove the directory between mkdtemp and the lock.
            with suppress(BlockingIOError, FileNotFoundError):
                return path, lock_directory(path)

    def _open_kept(self, name: str) -> tuple[Path, int]:
        path = self.root / f"{KEPT}{name}"
        deadline = time.monotonic() + _RECOVERY_TIMEOUT
        while True:
            path.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                try:
                    descriptor = lock_directory(path)
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise StoreError(
                            f"cannot resume in {path}: the directory is in use by another process. "
                            "Try again when that process has ended."
                        ) from error
                    time.sleep(_POLL_INTERVAL)
                    continue
                os.utime(path)
                return path, descriptor


def _is_resumable(kept: Path) -> bool:
    """Whether a kept file or directory is recent, and a directory has the state to resume from."""
    return time.time() - kept.stat().st_mtime < KEPT_SECONDS and (not kept.is_dir() or (kept / STATE).exists())


def record_commit(aside: Path, target: Path) -> None:
    """Write into a temporary directory which item is about to change, for the recovery if this process is killed."""
    (aside / _TARGET).write_bytes(os.fsencode(target))


def _recover_commit(aside: Path) -> None:
    """Finish a commit whose process was killed: restore the old item if the new one is missing, and reset `latest`."""
    try:
        target = Path(os.fsdecode((aside / _TARGET).read_bytes()))
    except FileNotFoundError:
        return
    if (aside / ITEM).is_dir() and not os.path.lexists(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        (aside / ITEM).rename(target)
    if target.is_dir():
        # The process may have been killed before it updated `latest`. The next reader finds the newest version again.
        (target.parent / LATEST).unlink(missing_ok=True)


def check_same_filesystem(base: Path, temporary: Path) -> None:
    """Move a probe from a temporary directory into the store, to fail before a download rather than after it."""
    base.mkdir(parents=True, exist_ok=True)
    probe = temporary / "probe"
    probe.touch()
    arrived = base / _PROBE
    try:
        probe.rename(arrived)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise StoreError(
            f"cannot move items into {base}: {temporary.parent} is on another filesystem. "
            "Mount their parent directory instead."
        ) from error
    arrived.unlink(missing_ok=True)  # another process with the same probe may have been faster


def move_into_store(staged: Path, target: Path, aside: Path) -> None:
    """Move a staged item to its place in one step; an item that it replaces ends up in `staged` or in `aside`.

    The caller holds the lock of the name. If the move fails, the old item is in its place again.
    """
    record_commit(aside, target)
    make_movable(staged)
    if not os.path.lexists(target):
        if not target.parent.exists():
            target.parent.mkdir(parents=True)
            fsync_path(target.parent.parent)
        staged.rename(target)
        return
    make_movable(target)
    if exchange(staged, target):
        return
    # Two renames. A reader between them finds no item; after a kill between them, `recover` restores the old item.
    old = aside / ITEM
    move_aside(target, old)
    try:
        staged.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise

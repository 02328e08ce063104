"""Temporary directories, kept files and locks of a store, and the recovery of what killed processes left.

    <root>/async-bento-<random>/      a temporary directory
        item/                         the staged item, or the old one that a commit or a delete moved aside
        commit.json                   the move of an item that a commit is about to make, see `moves.py`
    <root>/async-bento-kept-<name>/   a temporary directory that a later call may resume
        state.json                    how to resume
    <root>/async-bento-kept-<name>    a file that outlives its process, like the journal of a push
    <root>/async-bento-lock-<name>    a lock file; every temporary directory has one

BentoML takes every directory in a store for an item, so nothing unfinished may lie there; `places.py` chooses the root.
"""

from __future__ import annotations

import logging
import os
import secrets
import stat
import time
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento._core.files import set_times
from async_bento.errors import StoreError
from async_bento.store.errors import as_store_error
from async_bento.store.filesystem import inherit_group, is_writable, move_aside, remove_files, remove_tree
from async_bento.store.items import directory_size
from async_bento.store.locks import Lock
from async_bento.store.moves import recorded_move
from async_bento.store.places import LOCK, PREFIX, existing_roots, staging_root

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

logger = logging.getLogger(__package__)

KEPT = f"{PREFIX}kept-"
STATE = "state.json"

KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a resumable directory or file is kept after its last use. A week outlasts a long weekend."""

_RECOVERY_TIMEOUT = 10.0  # seconds for which another process's recovery may hold the lock of a kept directory


class StagingArea:
    """The temporary directories, kept files and locks of the store at a path, or those in a directory of their own."""

    def __init__(self, path: Path, own_root: Path | None = None) -> None:
        self._path = path
        self._own_root = own_root

    @cached_property
    def base(self) -> Path:
        """The directory of the store without links: staging must lie on the filesystem of the link's target."""
        return self._path.resolve()

    @cached_property
    def root(self) -> Path:
        """The directory of the area, made with the first use."""
        remedy = "Make the directory writable for this user, or set BENTOML_HOME to another directory."
        with as_store_error(f"write to {self.base}", if_refused=remedy):
            return self._own_root or staging_root(self.base)

    def lock(self, name: str) -> Lock:
        """Make a lock, not yet acquired, on a name that is valid as a file name."""
        return self._lock(self.root, name)

    def name_lock(self, name: str) -> Lock:
        """Make the lock under which the items of a name and its `latest` file change."""
        return self.lock(self.name_lock_name(name))

    def name_lock_name(self, name: str) -> str:
        """Name the lock of an item's name; with the store, since several stores may share a staging area."""
        return f"{self.base.name}+{name}"

    def kept_file(self, name: str) -> Path:
        """Return the path of a file that outlives its process until `KEPT_SECONDS` after its last write."""
        path = self.root / f"{KEPT}{name}"
        self.recover()
        return path

    @contextmanager
    def directory(self, resume: str | None = None) -> Generator[Path]:
        """Make a temporary directory that only its owner may read, and remove it on exit.

        With a name in `resume`, a block that fails and leaves a `STATE` file keeps the directory for `KEPT_SECONDS`,
        and the next block with this name continues in it.
        """
        root = self.root
        with as_store_error(f"make a directory in {root}"):
            root.mkdir(parents=True, exist_ok=True)
            path, lock = self._create(root) if resume is None else self._open_kept(root, resume)
        process = os.getpid()
        finished = False
        try:
            yield path
            finished = True
        finally:
            if os.getpid() == process:  # not a forked child, which ends while its parent still uses the directory
                try:
                    if finished or resume is None or not (path / STATE).exists():
                        remove_tree(path)
                except OSError:
                    logger.warning("cannot remove %s. The next push or pull tries again.", path, exc_info=True)
                finally:
                    lock.release()

    def recover(self) -> None:
        """Finish interrupted commits, then remove what crashed processes left and what was kept for too long."""
        for root in self._known_roots():
            for path in root.glob(f"{PREFIX}*"):
                with suppress(OSError, StoreError):  # another process may recover the same path at the same time
                    self._recover(path)

    def prune(self, *, dry_run: bool = False) -> dict[Path, int]:
        """Remove what no process uses, resumable or not; return the size in bytes of each path."""
        removed: dict[Path, int] = {}
        if not self.base.is_dir():
            return removed
        for root in self._known_roots() if dry_run else {*self._known_roots(), self.root}:
            for path in root.glob(f"{PREFIX}*"):
                if not path.name.startswith(LOCK):
                    with suppress(OSError, StoreError):
                        removed |= self._prune(path, dry_run)
        if not dry_run:
            self.recover()  # removes the lock files
        return removed

    def _known_roots(self) -> set[Path]:
        """The directories of the area that exist; `root` only if it was used, since the first use makes directories."""
        roots = {*existing_roots(self.base)} if self._own_root is None else {self._own_root}
        return {*roots, self.root} if "root" in self.__dict__ else roots

    def _prune(self, path: Path, dry_run: bool) -> dict[Path, int]:
        lock = self._lock(path.parent, path.name)
        locks = [lock]
        if path.name.startswith(KEPT):  # a push and a pull hold another lock from their start to their end
            locks.append(self._lock(path.parent, path.name.removeprefix(KEPT)))
        try:
            if not all(each.acquire(timeout=0) and each.excludes_processes for each in locks):
                return {}
            is_directory = path.is_dir()
            size = directory_size(path) if is_directory else path.stat().st_size
            if dry_run:
                return {path: size}
            if not is_directory:
                platform.remove(path)
            elif self._recover_move(path):
                self._remove(path, lock)
            else:
                return {}
            return {path: size}
        finally:
            for each in locks:
                each.release()

    def _recover(self, path: Path) -> None:
        if path.name.startswith(LOCK):
            _remove_unused(Lock(path))
            return
        if path.name.startswith(KEPT) and _is_resumable(path):
            return
        # Every process locks what it uses, so what is not locked belongs to a dead process, or is a kept file.
        lock = self._lock(path.parent, path.name)
        if lock.acquire(timeout=0):
            try:
                if not path.is_dir():
                    platform.remove(path)
                # Without a lock that excludes other processes, the directory may be in use.
                elif lock.excludes_processes and self._recover_move(path):
                    self._remove(path, lock)
            finally:
                lock.release()

    def _recover_move(self, path: Path) -> bool:
        """Recover the commit of a killed process; return False where another process changes the same name."""
        move = recorded_move(path)
        if move is None:
            return True
        lock = self._lock(path.parent, move.lock)
        if not lock.acquire(timeout=0):
            return False
        try:
            move.recover(path)
        finally:
            lock.release()
        return True

    def _remove(self, path: Path, lock: Lock) -> None:
        """Remove a directory under another name, so that its lock is released before the removal, which takes time."""
        aside, aside_lock = self._reserve(path.parent)
        try:
            move_aside(path, aside)
            lock.release()
            remove_files(aside)  # what is left after a cancellation is removed by the next pull or push
            remove_tree(aside)
        finally:
            aside_lock.release()

    def _create(self, root: Path) -> tuple[Path, Lock]:
        path, lock = self._reserve(root)
        try:
            self._make(path)
        except BaseException:
            lock.release()
            raise
        return path, lock

    def _open_kept(self, root: Path, name: str) -> tuple[Path, Lock]:
        path = root / f"{KEPT}{name}"
        lock = self._lock(root, path.name)
        if not lock.acquire(_RECOVERY_TIMEOUT):
            raise StoreError(
                f"cannot resume in {path}: the directory is in use by another process. "
                "Try again when that process has ended."
            )
        try:
            if path.exists() and not _is_resumable(path):
                self._remove(path, lock)
                return self._open_kept(root, name)
            self._make(path)
            if is_writable(path):
                return path, lock
        except PermissionError:  # another user's directory, which is closed to this one
            pass
        except BaseException:
            lock.release()
            raise
        lock.release()
        return self._create(root)  # another user's pull was interrupted

    def _make(self, path: Path) -> None:
        with suppress(FileExistsError):
            path.mkdir(mode=platform.PRIVATE_DIRECTORY)
            inherit_group(path, self.base)
        set_times(path, time.time_ns())  # the last use of a kept directory, from which `KEPT_SECONDS` count

    def _reserve(self, root: Path) -> tuple[Path, Lock]:
        path = root / f"{PREFIX}{secrets.token_hex(6)}"
        lock = self._lock(root, path.name)
        lock.acquire()
        return path, lock

    def _lock(self, root: Path, name: str) -> Lock:
        mode = 0o600
        with suppress(OSError):  # no store yet
            mode |= stat.S_IMODE(self.base.stat().st_mode) & 0o666
        return Lock(root / f"{LOCK}{name}", mode)


def _remove_unused(lock: Lock) -> None:
    if lock.acquire(timeout=0):
        lock.release()


def _is_resumable(kept: Path) -> bool:
    """Whether a kept file or directory is recent, and a directory has the state to resume from."""
    return time.time() - kept.stat().st_mtime < KEPT_SECONDS and (not kept.is_dir() or (kept / STATE).exists())

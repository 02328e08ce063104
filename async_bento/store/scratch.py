"""`$BENTOML_HOME/tmp`: directories that do not outlive their use, and locks.

BentoML takes every directory in a store for an item, so nothing unfinished may lie there. Scratch lies beside it, where
one rename takes it into the store.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import filelock

from async_bento.errors import StoreError
from async_bento.store.disk import as_store_error, remove_tree
from async_bento.store.tag import LATEST

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__name__)

PREFIX = "async-bento-"
"""What is ours in a directory that BentoML uses too."""

LOCKS = f"{PREFIX}locks"
KEPT = f"{PREFIX}kept-"

ITEM = "item"
"""In a scratch directory: what is staged, or what was moved aside."""

_PLACE = "place"

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})

STATE = "state.json"
"""What says, in a directory that is kept, how to go on with it."""

_LONGEST_SWEEP = 1.0  # of one directory, in seconds
_BETWEEN_TRIES = 0.01  # in seconds

KEEP_FOR = 7 * 24 * 3600.0
"""How long a kept directory waits to be gone on with, in seconds. A week outlasts a long weekend."""


class _FileLock(Protocol):
    """What is used of filelock's locks; its own types are not complete."""

    def acquire(self, timeout: float) -> object: ...

    def release(self) -> None: ...


class _ThreadLock:
    """What is left of a lock where the filesystem has none."""

    _by_path: ClassVar[defaultdict[Path, threading.Lock]] = defaultdict(threading.Lock)

    def __init__(self, path: Path) -> None:
        self._lock = self._by_path[path]
        self._held = False

    def acquire(self, timeout: float) -> None:
        if not self._lock.acquire(timeout=timeout):
            raise filelock.Timeout("")
        self._held = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()


class Lock:
    """A lock on a name that other processes respect, and other threads too.

    On a filesystem without locks only the threads of this process respect it, and a warning is logged, once.

    It lasts until it is released or its process ends, however that ends. As a context manager it waits without limit;
    on an event loop, try `acquire(timeout=0)` in a worker thread again and again: a thread that waits cannot be
    cancelled.

    Args:
        path: The lock file. It stays: removing it would let two in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: _FileLock | None = None

    def acquire(self, timeout: float | None = None) -> bool:
        """Take the lock. Blocks.

        Args:
            timeout: How long to wait for it, in seconds; None for as long as it takes.

        Returns:
            Whether it was taken.

        Raises:
            StoreError: There can be no lock file: no permission, a read-only filesystem.
        """
        with as_store_error(f"lock {self.path.stem}"):
            if self._lock is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _lock_at(self.path)
            try:
                self._lock.acquire(timeout=-1 if timeout is None else timeout)
            except filelock.Timeout:
                return False
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Scratch:
    """The scratch beside a store.

    A directory in use is locked, so that one whose process was killed is known by its lock being free, and goes when
    the next one is made.

    Args:
        root: Where it lies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def lock(self, name: str) -> Lock:
        """Make a lock.

        Args:
            name: What is locked; a file name.

        Returns:
            The lock, not yet taken.
        """
        return Lock(self.root / LOCKS / f"{name}.lock")

    def kept_file(self, name: str) -> Path:
        """Name a file that outlives its process, for `KEEP_FOR` seconds since it was last written.

        Args:
            name: What distinguishes it.

        Returns:
            Its path, in a directory that is there.

        Raises:
            StoreError: The directory cannot be made.
        """
        with as_store_error(f"make {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            self.sweep()
        return self.root / f"{KEPT}{name}"

    @contextmanager
    def directory(self, keep: str | None = None) -> Generator[Path]:
        """Make a directory that is removed at the block's end.

        Args:
            keep: A file name. When the block fails and leaves a file `STATE` in the directory, which says how to go on,
                the directory is kept for `KEEP_FOR` seconds, and given to the next block that asks for it by this name.

        Yields:
            The directory; only its owner may look into it.

        Raises:
            StoreError: It cannot be made, or another process has it.
        """
        with as_store_error(f"make a directory in {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            self.sweep()
            path, descriptor = self._take_new() if keep is None else self._take_kept(keep)
        finished = False
        try:
            yield path
            finished = True
        finally:
            try:
                if finished or keep is None or not (path / STATE).exists():
                    remove_tree(path)
            except OSError:
                logger.warning("could not remove %s, and will try again later", path, exc_info=True)
            finally:
                os.close(descriptor)

    def sweep(self) -> None:
        """Remove what killed processes left here, and what was kept for too long.

        A change of an item that was half-way is settled first: see `remember_change`.
        """
        for path in self.root.glob(f"{PREFIX}*"):
            with suppress(OSError):
                if path.name == LOCKS:
                    continue
                if path.name.startswith(KEPT) and _is_wanted(path):
                    continue
                if not path.is_dir():
                    if path.name.startswith(KEPT):
                        path.unlink()
                    continue
                descriptor = _hold(path, surely=True)
                try:
                    _settle(path)
                    remove_tree(path)
                finally:
                    os.close(descriptor)

    def _take_new(self) -> tuple[Path, int]:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.root))
            # A sweep may take it for dead in the moment between its making and its locking.
            with suppress(BlockingIOError, FileNotFoundError):
                return path, _hold(path)

    def _take_kept(self, name: str) -> tuple[Path, int]:
        path = self.root / f"{KEPT}{name}"
        given_up = time.monotonic() + _LONGEST_SWEEP
        while True:
            path.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                try:
                    descriptor = _hold(path)
                except BlockingIOError as error:
                    if time.monotonic() > given_up:
                        raise StoreError(f"{path} is in use by another process") from error
                    time.sleep(_BETWEEN_TRIES)  # a sweep looks at it
                    continue
                os.utime(path)
                return path, descriptor


def _is_wanted(kept: Path) -> bool:
    """Whether something may still be gone on with: it is not too old, and says how."""
    return time.time() - kept.stat().st_mtime < KEEP_FOR and (not kept.is_dir() or (kept / STATE).exists())


def _lock_at(path: Path) -> _FileLock:
    # Not bound to a thread: an event loop acquires in one worker thread and releases in another.
    return filelock.FileLock(path, thread_local=False) if _has_locks(path.parent) else _ThreadLock(path)


@cache
def _has_locks(directory: Path) -> bool:
    """Whether files in a directory can be locked. Asked here, since filelock's answer differs with its version."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "the filesystem of %s has no locks: see to it that one process at a time pulls to, or deletes from, the "
            "stores beside it, and remove what killed ones leave there",
            directory.parent,
        )
        return False
    finally:
        os.close(descriptor)
    return True


def remember_change(aside: Path, place: Path) -> None:
    """Let a sweep know what a scratch directory is for, in case this process is killed before the change is done.

    Args:
        aside: The scratch directory. Its `ITEM` is what was in the place before, if that was moved there.
        place: The directory of the item that is about to change.
    """
    (aside / _PLACE).write_bytes(os.fsencode(place))


def _settle(aside: Path) -> None:
    """Come to an end with a change whose process was killed in it."""
    try:
        place = Path(os.fsdecode((aside / _PLACE).read_bytes()))
    except FileNotFoundError:
        return
    if (aside / ITEM).is_dir() and not os.path.lexists(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        (aside / ITEM).rename(place)
    if place.is_dir():
        # The new item may be there and not yet the latest; who reads next finds the latest anew.
        (place.parent / LATEST).unlink(missing_ok=True)


def _hold(path: Path, *, surely: bool = False) -> int:
    """Lock a directory as long as a descriptor is open.

    Args:
        path: The directory.
        surely: Whether to fail where the filesystem has no locks. Whoever makes a directory there goes without, since
            no sweep will remove what it cannot lock.

    Returns:
        The descriptor.

    Raises:
        BlockingIOError: Another has it.
        FileNotFoundError: Another removed it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            if surely:
                raise
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

"""Locks on names and directories that other processes respect."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Protocol

import filelock

from async_bento.store.filesystem import as_store_error

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__name__)

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


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


def hold_directory(path: Path, *, surely: bool = False) -> int:
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

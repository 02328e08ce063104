"""Locks on files and directories that other processes respect."""

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

from async_bento.store.errors import as_store_error

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__name__)

_LOCKS_UNSUPPORTED = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


class _FileLock(Protocol):
    """The methods of filelock's locks that are used; filelock's own types are incomplete."""

    def acquire(self, timeout: float) -> object: ...

    def release(self) -> None: ...


class _ThreadLock:
    """The fallback where the filesystem has no locks: only threads of this process respect it."""

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
    """A lock file that other processes and threads respect, held until it is released or its process ends.

    An event loop polls `acquire(timeout=0)` in a worker thread, since a thread that waits cannot be cancelled.
    """

    def __init__(self, path: Path) -> None:
        self.path = path  # the file is never removed: a second process could then lock a new file of the same name
        self._lock: _FileLock | None = None

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock for so many seconds, or without limit; return whether the lock is held. Blocks."""
        with as_store_error(f"lock {self.path}"):
            if self._lock is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock = _lock_at(self.path)
            try:
                self._lock.acquire(timeout=-1 if timeout is None else timeout)
            except filelock.Timeout:
                return False
        return True

    def release(self) -> None:
        """Release the lock if it is held."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _lock_at(path: Path) -> _FileLock:
    # Not bound to a thread: an event loop acquires the lock in one worker thread and releases it in another.
    return filelock.FileLock(path, thread_local=False) if _supports_locks(path.parent) else _ThreadLock(path)


@cache
def _supports_locks(directory: Path) -> bool:
    """Try a lock on a directory; warn once where the filesystem has none."""
    # Not left to filelock: what its FileLock does on such a filesystem differs between its versions.
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise
        logger.warning(
            "the filesystem of %s does not support locks. Let only one process at a time pull to, or delete from, the "
            "stores that share this directory, and remove the directories that killed processes leave in it.",
            directory.parent,
        )
        return False
    finally:
        os.close(descriptor)
    return True


def lock_directory(path: Path, *, required: bool = False) -> int:
    """Lock a directory without waiting; return the descriptor whose closing releases the lock.

    Raises BlockingIOError where another process holds the lock, and FileNotFoundError where one removed the directory.
    On a filesystem without locks, the directory is opened without a lock, unless the lock is `required`.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            if required:
                raise
        # Between the open and the lock, another process may have removed the directory and made a new one.
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

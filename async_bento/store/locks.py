"""Lock files that other processes and threads respect, removed with the last use.

Every change of a store holds the lock of a name, and every temporary directory has a lock of its own (`staging.py`).
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento._core.concurrency import check_cancelled
from async_bento.errors import StoreError
from async_bento.store.errors import as_store_error

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__package__)

POLL_INTERVAL = 0.05  # in seconds; locks of names are held for moments

# EBADF: NFS locks only what is open for writing, which another user's file may not be.
_LOCKS_UNSUPPORTED = frozenset(
    {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF, errno.EPERM}
)
_FLAGS = platform.OPEN | platform.NOFOLLOW
_NEW_FILE = _FLAGS | os.O_RDWR | os.O_CREAT

_mutex = threading.Lock()
_in_this_process: set[Path] = set()  # held where other processes cannot be excluded
_held: set[Lock] = set()  # with an open descriptor
_warned: set[Path] = set()


class Lock:
    """A lock file, held until it is released or its process ends. Not bound to a thread.

    Locks are polled, since a thread that waits for a lock in the kernel cannot be interrupted. An event loop calls
    `acquire(timeout=0)` in a worker thread. Where the filesystem has no locks, or another user keeps this one from the
    file, only the threads of this process exclude each other (`excludes_processes`), and a warning is logged.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path = path
        self.excludes_processes = False
        self._mode = mode  # so that the other users of a store may open the file
        self._descriptor: int | None = None
        self._in_this_process = False

    def acquire(self, timeout: float | None = None) -> bool:
        """Wait for the lock for so many seconds, or without limit; return whether the lock is held. Blocks."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with as_store_error(f"lock {self.path}"):
            while not self._try_acquire():
                if deadline is not None and time.monotonic() >= deadline:
                    return False
                check_cancelled()
                time.sleep(POLL_INTERVAL)
        return True

    def release(self) -> None:
        """Release the lock if it is held, and remove its file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            _held.discard(self)
            if platform.IS_WINDOWS:  # where a file that anyone has open cannot be removed
                _close(descriptor)
            # Removed under the lock: a process that waits for it sees that the file is gone, and opens the next one.
            with suppress(OSError):
                self.path.unlink()
            if not platform.IS_WINDOWS:
                _close(descriptor)
        if self._in_this_process:
            self._in_this_process = False
            with _mutex:
                _in_this_process.discard(self.path)

    def forget(self) -> None:
        """Close the file, but leave the lock to the parent process."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try_acquire(self) -> bool:
        if self._descriptor is not None or self._in_this_process:
            return True
        while True:
            try:
                descriptor = platform.patiently(self._open)
            except PermissionError as error:
                return self._acquire_in_process(error)
            try:
                if not platform.try_lock(descriptor):
                    return False
                if _is_same_file(descriptor, self.path):
                    self._descriptor = descriptor
                    self.excludes_processes = True
                    _held.add(self)
                    return True
            except OSError as error:
                if error.errno not in _LOCKS_UNSUPPORTED:
                    raise
                if error.errno != errno.EBADF:  # with EBADF, the file is another user's, who may hold its lock
                    with suppress(OSError):
                        self.path.unlink()
                return self._acquire_in_process(error)
            finally:
                if self._descriptor != descriptor:
                    _close(descriptor)

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, _NEW_FILE, 0o666)
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, _NEW_FILE, 0o666)
        except PermissionError:  # another user's file, or directory; flock(2) needs no write permission
            try:
                return os.open(self.path, _FLAGS | os.O_RDONLY)
            except FileNotFoundError:  # no file yet, in a directory where this user can make none
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path)) from None
        with suppress(OSError):  # of another user
            if self._mode & ~os.fstat(descriptor).st_mode:  # the umask took bits from the mode of a new file
                platform.set_mode(descriptor, self._mode)
        return descriptor

    def _acquire_in_process(self, reason: OSError) -> bool:
        with _mutex:
            if self.path in _in_this_process:
                return False
            _in_this_process.add(self.path)
            self._in_this_process = True
            warned = self.path.parent in _warned
            _warned.add(self.path.parent)
        if not warned:
            logger.warning(
                "cannot lock files in %s: %s. Let only one process at a time pull to, or delete from, the stores that "
                "use this directory, and remove what killed processes leave in it.",
                self.path.parent,
                reason.strerror,
            )
        return True


@contextmanager
def hold(lock: Lock, timeout: float, action: str) -> Generator[None]:
    """Hold a lock in a worker thread; raise a StoreError, `cannot {action}`, after `timeout` seconds."""
    if not lock.acquire(timeout):
        raise StoreError(
            f"cannot {action}: another process has held {lock.path} for {timeout:g} s. "
            "Try again when that process has ended."
        )
    try:
        yield
    finally:
        lock.release()


def _is_same_file(descriptor: int, path: Path) -> bool:
    """Whether a locked file still has its name: its last holder may have removed it after it was opened."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as error:  # ESTALE: of NFS, where another machine has removed the file
        if error.errno not in {errno.ENOENT, errno.ESTALE}:
            raise
        return False


def _close(descriptor: int) -> None:
    # A forked child has the descriptor too, and flock(2) holds a lock until the last copy is closed.
    with suppress(OSError):
        platform.unlock(descriptor)
    os.close(descriptor)


def _forget_after_fork() -> None:
    """Close the parent's lock files in a forked child: the child must not hold them on when the parent is killed."""
    global _mutex  # noqa: PLW0603 - another thread of the parent may have held it during the fork
    _mutex = threading.Lock()
    for lock in _held:
        lock.forget()
    _held.clear()
    _in_this_process.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_after_fork)

"""`$BENTOML_HOME/tmp`: directories that do not outlive their use, and locks.

BentoML takes every directory in a store for an item, so nothing unfinished may lie there. Scratch lies beside it, where
one rename takes it into the store.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import filelock

from async_bento.errors import StoreError
from async_bento.store.disk import as_store_error, remove_tree

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger(__name__)

PREFIX = "async-bento-"
"""What is ours in a directory that BentoML uses too."""

LOCKS = f"{PREFIX}locks"
KEPT = f"{PREFIX}kept-"

STATE = "state.json"
"""What says, in a directory that is kept, how to go on with it."""

KEEP_FOR = 7 * 24 * 3600.0
"""How long a kept directory waits to be gone on with, in seconds. A week outlasts a long weekend."""


class _FileLock(Protocol):
    """What is used of filelock's locks; its own types are not complete."""

    def acquire(self, timeout: float) -> object: ...

    def release(self) -> None: ...


class Lock:
    """A lock on a name that other processes respect, and other threads too.

    It lasts until it is released or its process ends, however that ends. As a context manager it waits without limit;
    on an event loop, try `acquire(timeout=0)` in a worker thread again and again: a thread that waits cannot be
    cancelled.

    Args:
        path: The lock file. It stays: removing it would let two in.
    """

    def __init__(self, path: Path) -> None:
        # Not bound to a thread: an event loop acquires in one worker thread and releases in another.
        self.path = path
        self._lock: _FileLock = filelock.FileLock(path, thread_local=False)

    def acquire(self, timeout: float | None = None) -> bool:
        """Take the lock. Blocks.

        Args:
            timeout: How long to wait for it, in seconds; None for as long as it takes.

        Returns:
            Whether it was taken.

        Raises:
            StoreError: There can be no lock file: no permission, a read-only filesystem, one without locks.
        """
        with as_store_error(f"lock {self.path.stem}"):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._lock.acquire(timeout=-1 if timeout is None else timeout)
            except filelock.Timeout:
                return False
            except NotImplementedError as error:  # filelock, of a filesystem without flock
                raise StoreError(f"cannot lock {self.path.stem}: {error}") from error
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
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

    def file(self, name: str) -> Path:
        """Name a file; the caller sees to it that nobody else uses it meanwhile.

        Args:
            name: What distinguishes it.

        Returns:
            Its path.
        """
        return self.root / f"{PREFIX}{name}"

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

    def left(self, name: str) -> Path | None:
        """Find a kept directory that nobody can go on with: its process was killed between its work and its removal.

        Args:
            name: By which it would be asked for.

        Returns:
            The directory, or None. One that is in use may be found too.
        """
        path = self.root / f"{KEPT}{name}"
        return path if path.is_dir() and not (path / STATE).exists() else None

    def sweep(self) -> None:
        """Remove what killed processes left here, and what was kept for too long."""
        for path in self.root.glob(f"{PREFIX}*"):
            with suppress(OSError):
                if path.name == LOCKS:
                    continue
                if path.name.startswith(KEPT) and time.time() - path.stat().st_mtime < KEEP_FOR:
                    continue
                if not path.is_dir():
                    if path.name.startswith(KEPT):
                        path.unlink()
                    continue
                descriptor = _hold(path, surely=True)
                try:
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
        while True:
            path.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                try:
                    descriptor = _hold(path)
                except BlockingIOError as error:
                    raise StoreError(f"{path} is in use by another process") from error
                os.utime(path)
                return path, descriptor


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

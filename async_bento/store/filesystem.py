"""Directories as wholes: swapped, moved aside, removed, made to last."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from async_bento._core.files import fsync_path
from async_bento.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h, for renameat2(2)
_RENAME_SWAP = 2  # sys/stdio.h of macOS, for renamex_np(2)

# EPERM is what a seccomp filter says; where it is meant, the rename that follows will say it again.
_CANNOT_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM})


@contextmanager
def as_store_error(doing: str) -> Generator[None]:
    """Turn the OSError of a block into a StoreError.

    Args:
        doing: What the block does, like `delete iris:v1`.

    Yields:
        Nothing.

    Raises:
        StoreError: What the system said, and of which path.
    """
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StoreError(f"cannot {doing}: {error.strerror or error}{where}") from error


def exchange(first: Path, second: Path) -> bool:
    """Let two directories of one filesystem change places, in one step that no reader sees halfway.

    Args:
        first: One.
        second: The other.

    Returns:
        Whether it was done; not every system and filesystem can.

    Raises:
        OSError: It can, and failed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            result = libc.renamex_np(*paths, _RENAME_SWAP)
        else:
            result = libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    except AttributeError:  # a libc without it
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(first))


def make_movable(path: Path) -> None:
    """Let the owner write to a directory: without that, nobody but root can move it elsewhere.

    Args:
        path: The directory.
    """
    mode = path.lstat().st_mode  # a link moves as it is, and what it points to is not ours to open
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        path.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)


def move_aside(path: Path, aside: Path) -> None:
    """Take a directory away.

    Args:
        path: The directory.
        aside: Where it goes; nothing is there yet.
    """
    make_movable(path)
    try:
        path.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # It came with a lower layer of an overlay filesystem: a container's image. Those cannot move.
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory, read-only directories in it included.

    Args:
        path: The directory, or a link to one, of which only the link goes. None is fine.
    """
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():  # something in it was removed by someone else
            shutil.rmtree(path, ignore_errors=True)
    except PermissionError:
        make_movable(path)
        for root, directories, _ in os.walk(path):
            for name in directories:
                make_movable(Path(root, name))
        shutil.rmtree(path)


def sync_tree(path: Path) -> None:
    """Make a directory and everything below it outlive a loss of power.

    On Linux by one syncfs(2): of many files it costs a fraction of what an fsync of each does, since their metadata
    goes out together. It also waits for what others have written to the same filesystem; that had to go out anyway.

    Args:
        path: The directory.

    Raises:
        OSError: Something could not be written, now or since it was handed to the system.
    """
    if _sync_filesystem(path):
        return
    for root, _, files in os.walk(path):
        for name in files:
            # A link has nothing to sync, and a file may have a mode that lets nobody open it.
            with suppress(PermissionError):
                if not (file := Path(root, name)).is_symlink():
                    fsync_path(file)
        fsync_path(Path(root))


def _sync_filesystem(path: Path) -> bool:
    """Whether it was done; not every system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) == 0:
            return True
        number = ctypes.get_errno()
    except AttributeError:  # a libc without it
        return False
    finally:
        os.close(descriptor)
    if number in {errno.ENOSYS, errno.EPERM}:  # an old kernel, or a seccomp filter
        return False
    raise OSError(number, os.strerror(number), str(path))

"""Directories as wholes: exchange, move, remove and sync them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

from async_bento._core.files import fsync_path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h, for renameat2(2)
_RENAME_SWAP = 2  # sys/stdio.h of macOS, for renamex_np(2)

# A seccomp filter answers EPERM. Where EPERM is the filesystem's own, the rename that follows fails with it again.
_EXCHANGE_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM})


def exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; return False where the system or the filesystem cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(first), os.fsencode(second)
    try:
        if sys.platform == "darwin":
            result = libc.renamex_np(*paths, _RENAME_SWAP)
        else:
            result = libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    except AttributeError:  # a libc without the function
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _EXCHANGE_UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first))


def make_movable(path: Path) -> None:
    """Give the owner write permission, without which nobody but root can move a directory elsewhere."""
    mode = path.lstat().st_mode  # of a link itself: the mode of its target must not change
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        path.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)


def move_aside(path: Path, aside: Path) -> None:
    """Move a directory to a path that does not exist; where the directory cannot move, remove it instead."""
    make_movable(path)
    try:
        path.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A directory of a lower overlayfs layer, that is of a container's image, cannot be renamed.
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory with its read-only subdirectories, or a link but not its target, if there is one."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():  # another process removed an entry at the same time
            shutil.rmtree(path, ignore_errors=True)
    except PermissionError:
        make_movable(path)
        for root, directories, _ in os.walk(path):
            for name in directories:
                make_movable(Path(root, name))
        shutil.rmtree(path)


def sync_tree(path: Path) -> None:
    """Flush a directory and everything below it, so that they survive a power failure."""
    # One syncfs(2) costs a fraction of an fsync per file, since it writes the metadata of all files together. It also
    # flushes what other processes wrote to the filesystem, which had to be written sooner or later anyway.
    if _sync_filesystem(path):
        return
    for root, _, files in os.walk(path):
        for name in files:
            # Links have nothing to flush, and a file's mode may keep even its owner from opening it.
            with suppress(PermissionError):
                if not (file := Path(root, name)).is_symlink():
                    fsync_path(file)
        fsync_path(Path(root))


def _sync_filesystem(path: Path) -> bool:
    """Flush the whole filesystem of a path; return False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor) == 0:
            return True
        number = ctypes.get_errno()
    except AttributeError:  # a libc without the function
        return False
    finally:
        os.close(descriptor)
    if number in {errno.ENOSYS, errno.EPERM}:  # an old kernel, or a seccomp filter
        return False
    raise OSError(number, os.strerror(number), str(path))

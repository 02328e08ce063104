"""Directories as wholes: exchange, move, share, remove and sync them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from async_bento._core.concurrency import check_cancelled, run_abandonable
from async_bento._core.files import UNSUPPORTED, fsync_path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h, for renameat2(2)
_RENAME_SWAP = 2  # sys/stdio.h of macOS, for renamex_np(2)

# A seccomp filter answers EPERM. Where EPERM is the filesystem's own, the rename that follows fails with it again.
_EXCHANGE_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV, errno.EPERM})
_SYNCFS_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.ENOTSUP})

_FEW_FILES = 64
"""Most files that are synced one by one. The sync of a whole filesystem waits for what other programs write, but one
fsync per file of thousands takes longer."""


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
        try:
            path.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)
        except OSError as error:  # another user's directory, or no modes; the move shows whether it matters
            if error.errno not in UNSUPPORTED:
                raise


def is_writable(directory: Path) -> bool:
    """Whether this user may list, use and change a directory."""
    mode = os.R_OK | os.W_OK | os.X_OK
    return os.access(directory, mode, effective_ids=os.access in os.supports_effective_ids)


def share_like(path: Path, model: Path) -> None:
    """Give a new directory the owner, group and permissions of another directory, as far as this user may."""
    wanted = model.stat()
    with suppress(OSError):  # only root may give directories away
        os.chown(path, wanted.st_uid, wanted.st_gid)
    inherit_group(path, model)
    with suppress(OSError):
        path.chmod(stat.S_IMODE(wanted.st_mode) & ~stat.S_ISVTX)


def inherit_group(path: Path, model: Path) -> None:
    """Let what is made in a new directory belong to the group that it would belong to in a set-gid directory."""
    with suppress(OSError):  # not a member of the group, or no groups
        wanted, status = model.stat(), path.stat()
        if wanted.st_mode & stat.S_ISGID:
            if status.st_gid != wanted.st_gid:
                os.chown(path, -1, wanted.st_gid)
            if not status.st_mode & stat.S_ISGID:
                path.chmod(stat.S_IMODE(status.st_mode) | stat.S_ISGID)


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


def remove_files(path: Path) -> None:
    """Remove the files below a directory; a cancelled call stops at the next file."""
    for root, _, names in os.walk(path):
        for name in names:
            check_cancelled()
            with suppress(OSError):  # in a read-only directory, say, which `remove_tree` can remove
                Path(root, name).unlink()


def sync_tree(path: Path) -> None:
    """Flush a directory and everything below it, so that they survive a power failure."""
    directories = [Path(root) for root, _, _ in os.walk(path)]
    files = [Path(root, name) for root, _, names in os.walk(path) for name in names]
    # One syncfs(2) costs a fraction of an fsync per file, since it writes the metadata of all files together.
    if len(files) > _FEW_FILES and run_abandonable(partial(_sync_filesystem, path)):
        return
    for file in files:
        check_cancelled()
        # Links have nothing to flush, and a file's mode may keep even its owner from opening it.
        with suppress(PermissionError):
            if not file.is_symlink():
                fsync_path(file)
    for directory in directories:
        fsync_path(directory)


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
    if number in _SYNCFS_UNSUPPORTED:  # an old kernel, a seccomp filter, or the filesystem
        return False
    raise OSError(number, os.strerror(number), str(path))

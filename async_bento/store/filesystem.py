"""Directories as wholes: move, share, remove and sync them, for staging and commits."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

from async_bento._core import platform
from async_bento._core.concurrency import check_cancelled, run_abandonable
from async_bento._core.files import UNSUPPORTED, fsync_path

_FEW_FILES = 64
"""Most files that are synced one by one. The sync of a whole filesystem waits for what other programs write, but one
fsync per file of thousands takes longer."""


def make_movable(path: Path) -> None:
    """Give the owner write permission, without which nobody but root can move a directory elsewhere.

    A move to another parent updates the `..` of the directory (rename(2), EACCES).
    """
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
    if not platform.HAS_MODES:
        return
    wanted = model.stat()
    with suppress(OSError):  # only root may give directories away
        platform.set_owner(path, wanted.st_uid, wanted.st_gid)
    inherit_group(path, model)
    with suppress(OSError):
        # Not sticky: the users of a store remove what each other's killed processes left.
        path.chmod(stat.S_IMODE(wanted.st_mode) & ~stat.S_ISVTX)


def inherit_group(path: Path, model: Path) -> None:
    """Let what is made in a new directory belong to the group that it would belong to in a set-gid directory."""
    with suppress(OSError):  # not a member of the group, or no groups
        wanted, status = model.stat(), path.stat()
        if wanted.st_mode & stat.S_ISGID:
            if status.st_gid != wanted.st_gid:
                platform.set_owner(path, -1, wanted.st_gid)
            if not status.st_mode & stat.S_ISGID:
                path.chmod(stat.S_IMODE(status.st_mode) | stat.S_ISGID)


def move_aside(path: Path, aside: Path) -> None:
    """Move a directory to a path that does not exist; where the directory cannot move, remove it instead."""
    make_movable(path)
    try:
        platform.rename(path, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A directory of a lower overlayfs layer, that is of a container's image, cannot be renamed.
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory with its read-only subdirectories, or a link but not its target, if there is one."""
    if path.is_symlink():
        platform.remove(path, missing_ok=True)
        return
    try:
        platform.remove_directory(path)
    except FileNotFoundError:
        if path.exists():  # another process removed an entry at the same time
            shutil.rmtree(path, ignore_errors=True)
    except PermissionError:
        make_movable(path)
        for root, directories, _ in os.walk(path):
            for name in directories:
                make_movable(Path(root, name))
        platform.remove_directory(path)


def remove_files(path: Path) -> None:
    """Remove the files below a directory; a cancelled call stops at the next file."""
    for root, _, names in os.walk(path):
        for name in names:
            check_cancelled()
            with suppress(OSError):  # such as in a read-only directory, which `remove_tree` can remove
                platform.remove(Path(root, name))


def sync_tree(path: Path) -> None:
    """Flush a directory and everything below it, so that they survive a power failure."""
    path = platform.long_path(path)
    directories = [Path(root) for root, _, _ in os.walk(path)]
    files = [Path(root, name) for root, _, names in os.walk(path) for name in names]
    # One syncfs(2) costs a fraction of an fsync per file, since it writes the metadata of all files together.
    if len(files) > _FEW_FILES and run_abandonable(partial(platform.flush_filesystem, path)):
        return
    for file in files:
        check_cancelled()  # each sync may take long, on a network filesystem above all
        # Links have nothing to flush, and a file's mode may keep even its owner from opening it.
        with suppress(PermissionError):
            if not file.is_symlink():
                fsync_path(file, drive=False)
    for directory in directories:
        fsync_path(directory, drive=directory == directories[-1])  # which flushes the drive for all

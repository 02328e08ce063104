"""Checks that a directory is still what the scan found, so that a tar never mixes two versions of it.

`TarReader` checks each file after reading it, and `TarPlan` directories and links at the end.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections import defaultdict
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento.errors import ArchiveError, SourceChangedError
from async_bento.transfer.tar.scan import DS_STORE

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from async_bento.transfer.tar.scan import Entry

# What open(2) fails with where a file is missing or was replaced; for O_NOFOLLOW, BSD has EMLINK where Linux has ELOOP.
_REPLACED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EMLINK, errno.ENXIO}


def changed(path: str, reason: str) -> SourceChangedError:
    """Make the error for a path that changed since the scan."""
    return SourceChangedError(f"{path} changed during the push: {reason}. Push again.", path=path)


def read_error(path: str, error: OSError) -> ArchiveError:
    """Make the error for a path that cannot be read."""
    # Windows refuses to open a directory.
    if error.errno in _REPLACED or (error.errno == errno.EACCES and os.path.isdir(path)):  # noqa: PTH112 - a text
        return changed(path, "the file was removed or replaced by a link")
    return ArchiveError(f"cannot read {path}: {error.strerror}")


def check_file(descriptor: int, path: str, entry: Entry) -> None:
    """Raise a SourceChangedError if an open file is not the one that the scan found."""
    status = os.fstat(descriptor)
    _check_status(status, path, entry)
    # Some mounts (GlusterFS, sshfs) state other times by fstat than by lstat, by which the scan found the file.
    if not _has_times(status, entry):
        check_path(path, entry)


def check_path(path: str, entry: Entry) -> None:
    """Raise a SourceChangedError if a path is not the file that the scan found."""
    status = os.lstat(path)
    _check_status(status, path, entry)
    if not _has_times(status, entry):
        why = "written to" if status.st_mtime_ns != entry.mtime_ns else "replaced, or its attributes were changed"
        raise changed(path, f"the file was {why}")


def _check_status(status: os.stat_result, path: str, entry: Entry) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise changed(path, "it is no longer a file")
    if status.st_size != entry.size:
        raise changed(path, f"the file had {entry.size} bytes and now has {status.st_size}")


def _has_times(status: os.stat_result, entry: Entry) -> bool:
    # Without the inode: sshfs and others give a file another number once the kernel has dropped its cached inode.
    if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
        return False
    # A hard link made elsewhere changes the ctime, too; bindfs states a link up to a second later.
    return status.st_ctime_ns == entry.ctime_ns or (status.st_nlink > 1 and status.st_ino == entry.inode)


def check_tree(root: str, entries: Sequence[Entry], exclude: Collection[str]) -> None:
    """Raise a SourceChangedError if a directory or a link is not as the scan found it; may raise OSError."""
    touched: dict[str, str] = {}  # paths of directories, by name
    for entry in entries:
        path = platform.path_below(root, entry.name) if entry.name else root
        if entry.type == tarfile.SYMTYPE:
            _check_symlink(path, entry)
        elif entry.type == tarfile.LNKTYPE:
            _check_hard_link(path, platform.path_below(root, entry.link))
        elif entry.type == tarfile.DIRTYPE and _is_touched(path, entry):
            touched[entry.name] = path
    # Compared by names: the times also change with a file that came and went, and on some mounts by themselves.
    if touched:
        names: defaultdict[str, set[str]] = defaultdict(set)
        for entry in entries[1:]:  # without the root
            directory, _, name = entry.name.rpartition("/")
            names[directory].add(name)
        for directory, path in touched.items():
            with os.scandir(path) as found:
                present = {one.name for one in found}.difference({DS_STORE}, () if directory else exclude)
            if present != names[directory]:
                raise changed(path, "files were added to the directory or removed from it")


def _is_touched(path: str, entry: Entry) -> bool:
    status = os.lstat(path) if entry.name else os.stat(path)  # noqa: PTH116 - a Path costs more than the call
    if not stat.S_ISDIR(status.st_mode):
        raise changed(path, "it is no longer a directory")
    if platform.mode_in_tar(status) != entry.mode:
        raise changed(path, "the mode of the directory was changed")
    return (status.st_mtime_ns, status.st_ctime_ns) != (entry.mtime_ns, entry.ctime_ns)


def _check_symlink(path: str, entry: Entry) -> None:
    if not os.path.islink(path):  # noqa: PTH114 - a Path costs more than the call
        raise changed(path, "it is no longer a link")
    if platform.read_link(path) != entry.link:
        raise changed(path, "the link has another target")


def _check_hard_link(path: str, first: str) -> None:
    if not os.path.samestat(os.lstat(path), os.lstat(first)):
        raise changed(path, f"it is no longer a hard link to {first}")

"""Open regular files only, write files durably, and copy them; for the store, for transfers and for the registry."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from async_bento._core import platform

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | platform.OPEN

FILE_MODE, EXECUTABLE_MODE = 0o666, 0o777
"""Modes of new files; the umask of the process takes its bits from them."""

UNSUPPORTED = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""What filesystems such as exFAT, SMB and those of object storage answer to calls that they do not support."""

REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.EROFS})
"""What a directory answers that this user, or nobody, may write to."""


def atomic_write(
    path: Path, data: bytes | str, *, mode: int = 0o600, durable: bool, temp_path: Path | None = None
) -> None:
    """Replace a file in one step: readers see the old content or the new. Blocks; raises OSError.

    `durable` costs one fsync. Without it, a loss of power may leave an empty file at `path`. The temporary file gets a
    random name next to `path`. `temp_path` names another place on the same filesystem, or a fixed name, so that killed
    processes leave one file at most; a file that is already there is removed.
    """
    if temp_path is None:
        temp_path = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    else:
        platform.remove(temp_path, missing_ok=True)
    try:
        with os.fdopen(os.open(temp_path, _NEW_FILE, mode), "wb") as file:  # the mode holds from the first byte on
            file.write(data.encode() if isinstance(data, str) else data)
            if durable:
                file.flush()
                platform.flush(file.fileno())
        platform.replace(temp_path, path)
    except BaseException:
        with suppress(OSError):
            temp_path.unlink()
        raise


def fsync_path(path: Path, *, drive: bool = True) -> None:
    """Sync a file or a directory; a filesystem that cannot sync is no error. Blocks; raises OSError.

    `drive` is that of `platform.flush`. Windows has no call for directories, which NTFS journals.
    """
    if platform.IS_WINDOWS and path.is_dir():
        return
    # FlushFileBuffers, by which Windows syncs, needs a handle that may write.
    descriptor = os.open(path, (os.O_RDWR if platform.IS_WINDOWS else os.O_RDONLY) | platform.OPEN)
    try:
        platform.flush(descriptor, drive=drive)
    finally:
        os.close(descriptor)


def new_file_mode(mode: int) -> int:
    """Return the mode for a copy of a file: what the umask allows, with the executable bit of the original."""
    return EXECUTABLE_MODE if mode & stat.S_IXUSR else FILE_MODE


def set_times(file: int | str | Path, mtime_ns: int, *, follow_symlinks: bool = True) -> None:
    """Set the time of a file or directory, unless its filesystem refuses times. Blocks; raises OSError."""
    try:
        os.utime(file, ns=(mtime_ns, mtime_ns), follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def copy_file(source: Path, target: Path) -> None:
    """Copy a file to a path that does not exist, with its time and executable bit. Blocks; raises OSError."""
    status = source.stat()
    descriptor = os.open(target, _NEW_FILE, new_file_mode(status.st_mode))
    # Not `shutil.copyfile`, which opens the target itself, and would write through a link there.
    with os.fdopen(descriptor, "wb") as written, source.open("rb") as read:
        shutil.copyfileobj(read, written)
    set_times(target, status.st_mtime_ns)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory, with its links, to a path that does not exist. Blocks; raises OSError."""
    target.mkdir()
    for entry in source.iterdir():
        copied = target / entry.name
        if entry.is_symlink():
            platform.make_link(copied, platform.read_link(str(entry)), is_directory=entry.is_dir())
        elif entry.is_dir():
            copy_tree(entry, copied)
        else:
            copy_file(entry, copied)
    set_times(target, source.stat().st_mtime_ns)  # last, since each new entry changes the time


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; a FIFO or a device is an OSError, since reading it may never end. Blocks."""
    try:
        # O_NONBLOCK: without it, to open a FIFO waits for a writer.
        descriptor = platform.patiently(os.open, path, os.O_RDONLY | platform.OPEN | platform.NONBLOCK)
    except PermissionError as error:
        if path.is_dir():  # which Windows does not open
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path)) from error
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))

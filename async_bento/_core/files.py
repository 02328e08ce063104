"""Files and directories that survive a crash or a loss of power."""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})


def atomic_write(
    path: Path, data: bytes | str, *, mode: int = 0o600, durable: bool, temp_path: Path | None = None
) -> None:
    """Replace a file in one step: readers see the old content or the new. Blocks; raises OSError.

    `durable` costs one fsync. Without that, a loss of power may leave the new name on an empty file. The temporary file
    lies beside `path` under a random name, unless `temp_path`, on the same filesystem, names another place, or a fixed
    name that does not pile up when processes are killed; a file left there is removed.
    """
    if temp_path is None:
        temp_path = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    else:
        temp_path.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temp_path, _NEW_FILE, mode), "wb") as file:  # the mode holds from the first byte on
            file.write(data.encode() if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temp_path.replace(path)
    except BaseException:
        with suppress(OSError):
            temp_path.unlink()
        raise


def fsync_path(path: Path) -> None:
    """Sync a file or a directory; a filesystem that cannot sync directories is no error. Blocks; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)

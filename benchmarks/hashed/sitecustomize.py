"""Count the bytes that a process hashes with MD5.

Python imports this module at its start if this directory is in PYTHONPATH. The count of each process is kept in a
mapped file in `$BENCHMARKS_HASHED`, so that a process that leaves by `os._exit` is counted, too.
"""

import hashlib
import mmap
import os
import struct
import threading
from pathlib import Path
from typing import Any

_COUNT = struct.Struct("Q")
_lock = threading.Lock()
_md5, _new = hashlib.md5, hashlib.new


def _open() -> mmap.mmap:
    with Path(os.environ["BENCHMARKS_HASHED"], str(os.getpid())).open("w+b") as file:
        file.truncate(_COUNT.size)
        return mmap.mmap(file.fileno(), _COUNT.size)


def _reopen() -> None:
    global _counter  # noqa: PLW0603 - a forked process has a counter of its own
    _counter = _open()


class _Counted:
    """An MD5 that counts its bytes."""

    def __init__(self, digest: Any, data: Any = b"") -> None:
        self._digest = digest
        self.update(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._digest, name)

    def copy(self) -> "_Counted":
        return _Counted(self._digest.copy())

    def update(self, data: Any) -> None:
        self._digest.update(data)
        with _lock:
            (count,) = _COUNT.unpack_from(_counter)
            _COUNT.pack_into(_counter, 0, count + memoryview(data).nbytes)


def _counted_md5(data: Any = b"", **options: Any) -> _Counted:
    return _Counted(_md5(**options), data)


def _counted_new(name: str, data: Any = b"", **options: Any) -> Any:
    return _counted_md5(data, **options) if name.lower() == "md5" else _new(name, data, **options)


_counter = _open()
os.register_at_fork(after_in_child=_reopen)
vars(hashlib).update(md5=_counted_md5, new=_counted_new)

"""The files of the disk storage. An object consists of the files in which its parts arrived.

    <key>/00001.<md5>       a part, or a whole body, named by its number and MD5
    <key>/upload            exists while the upload accepts parts
    <key>/.<random>         a part that is being received

Completing an upload copies no byte, whatever the size: the registry's records name the object and its parts. In
return, a read crosses files. Only one process owns the directory, so a count of readers in memory suffices.

Everything here blocks: call it from a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from bisect import bisect_right
from datetime import datetime, timezone
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento._core.concurrency import check_cancelled
from async_bento._core.files import fsync_path
from async_bento._core.s3 import bare_etag, etag_of_parts
from async_bento._core.text import human_size
from async_bento.registry.blobs.base import IO_CHUNK, UPLOAD_LIFETIME, Content, StoredKey
from async_bento.registry.blobs.multipart import check_parts
from async_bento.registry.errors import NoSuchUploadError, RecordNotFoundError, StorageError

if TYPE_CHECKING:
    from _hashlib import HASH
    from collections.abc import Iterable, Iterator, Sequence
    from io import FileIO
    from pathlib import Path

    from async_bento.registry.blobs.base import CompletedPart

_PART_NAME = re.compile(r"\d{5}\.[0-9a-f]{32}")
_UPLOAD = "upload"
KEY_PATTERN = "*/*/*/*"
"""Of all keys: `bentos/iris/v1/3f9c…`."""


class StagedFile:
    """A file that is being received: under a temporary name until `DiskFiles` adds it to an upload."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f".{secrets.token_hex(16)}"
        self.size: int = 0
        self._md5: HASH = hashlib.md5(usedforsecurity=False)
        self._file: FileIO | None = None

    @property
    def md5(self) -> str:
        """The MD5 of the bytes written so far, in hexadecimal."""
        return self._md5.hexdigest()

    def write(self, chunks: Iterable[bytes | memoryview]) -> None:
        """Append and hash chunks."""
        if self._file is None:
            try:
                self._file = self.path.open("xb", buffering=0)
            except FileNotFoundError as error:  # the upload was removed
                raise NoSuchUploadError from error
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._md5.update(chunk)
            self.size += len(chunk)

    def sync(self) -> None:
        """Flush the file to the disk and close it."""
        assert self._file is not None
        platform.flush(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it got another name."""
        if self._file is not None:
            self._file.close()
        platform.remove(self.path, missing_ok=True)


class DiskFiles:
    """Objects and uploads in one directory."""

    def __init__(self, root: Path, *, min_part_size: int, min_free: int = 0) -> None:
        self._root = root
        self._min_free = min_free
        self._min_part_size = min_part_size
        # Held from looking at an upload until the step that depends on it is done.
        self._lock = threading.Lock()
        self._readers: dict[str, int] = {}
        self._deleted: set[str] = set()

    def check(self) -> None:
        """Raise `OSError` unless the directory can be read and written."""
        if not os.access(self._root, os.R_OK | os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "the directory of the bytes is missing, or cannot be written")

    def directory(self, key: str) -> Path:
        """Return the directory of a key."""
        return self._root / key

    def check_free(self, size: int) -> None:
        """Raise `StorageError` if `size` more bytes would use what is to stay free on the disk."""
        if self._min_free and shutil.disk_usage(self._root).free - size < self._min_free:
            message = f"the registry's disk is full but for {human_size(self._min_free)} that stay free"
            raise StorageError("InsufficientStorage", message, status=507)

    def start(self, key: str) -> None:
        """Start an upload."""
        self.check_free(0)
        directory = self.directory(key)
        with self._lock:  # `_remove` removes empty parents
            directory.mkdir(parents=True)
        try:
            (directory / _UPLOAD).touch()
        except OSError:
            self.delete(key)
            raise

    def check_open(self, key: str) -> None:
        """Raise `NoSuchUploadError` unless an upload accepts parts."""
        if not (self.directory(key) / _UPLOAD).exists():
            raise NoSuchUploadError

    def add_part(self, key: str, number: int, file: StagedFile) -> None:
        """Add a received part to its upload, instead of an older one of the same number."""
        directory, name = self.directory(key), part_name(number, file.md5)
        with self._lock:
            self.check_open(key)
            for older in directory.glob(f"{number:05d}.*"):
                if older.name != name:
                    platform.remove(older)
            platform.replace(file.path, directory / name)
            try:
                fsync_path(directory)
            except OSError:
                # The client gets an error, so the part must not be there.
                platform.remove(directory / name)
                raise

    def complete(self, key: str, completed: Sequence[CompletedPart]) -> Content:
        """Accept no further part; keep the listed parts and remove the others. A repeated call succeeds."""
        directory = self.directory(key)
        with self._lock:
            files = {file.name: file for file in self._files(key)}
            if not files:
                raise NoSuchUploadError
            # Of the parts only: a body that is still arriving may be discarded meanwhile.
            sizes = {name: file.stat().st_size for name, file in files.items() if _PART_NAME.fullmatch(name)}
            uploaded = {(int(name[:5]), name[6:]): name for name in sizes}
            check_parts(completed, {part: sizes[name] for part, name in uploaded.items()}, self._min_part_size)
            listed = [(uploaded[part.number, bare_etag(part.etag)], bare_etag(part.etag)) for part in completed]
            # Among them `upload`, so that no part is added any more, and bodies that are still arriving.
            for unlisted in files.keys() - {name for name, _ in listed}:
                platform.remove(directory / unlisted, missing_ok=True)
            for number, (name, md5) in enumerate(listed, start=1):
                # Numbered without gaps: a read finds the file of a part by its position.
                platform.replace(directory / name, directory / part_name(number, md5))
            fsync_path(directory)
        etag = etag_of_parts([md5 for _, md5 in listed])
        assert etag is not None, "every uploaded part has an MD5 as its ETag"
        return Content.of_parts(etag, [(sizes[name], md5) for name, md5 in listed])

    def finish_put(self, key: str) -> Content | None:
        """Return the only body of an upload, which is complete then; None if none has arrived."""
        with self._lock:
            bodies = [file for file in self._files(key) if _PART_NAME.fullmatch(file.name)]
            if len(bodies) != 1:
                return None
            platform.remove(self.directory(key) / _UPLOAD, missing_ok=True)
            fsync_path(self.directory(key))
            md5, size = bodies[0].name[6:], bodies[0].stat().st_size
        return Content.of_parts(f'"{md5}"', [(size, md5)])

    def acquire(self, key: str) -> None:
        """Keep the parts of an object until `release`; raise `RecordNotFoundError` if it does not exist."""
        with self._lock:
            if key in self._deleted or not self.directory(key).is_dir():
                raise RecordNotFoundError(f"the bytes of {key}")
            self._readers[key] = self._readers.get(key, 0) + 1

    def release(self, key: str) -> None:
        """Release an acquired object; remove its parts if it was deleted and this was its last reader."""
        with self._lock:
            self._readers[key] -= 1
            if not self._readers[key]:
                del self._readers[key]
                if key in self._deleted:
                    self._deleted.remove(key)
                    self._remove(key)

    def read(self, key: str, content: Content, offset: int, size: int) -> bytes:
        """Read `size` bytes of an acquired object; raise `OSError` if a part was truncated."""
        data = bytearray()
        offsets = _offsets(content)
        index = bisect_right(offsets, offset) - 1
        while len(data) < size:
            offset_in_part = offset + len(data) - offsets[index]
            wanted = min(size - len(data), content.parts[index].size - offset_in_part)
            with platform.open_shared(self._part(key, content, index)) as part:
                chunk = platform.read_at(part.fileno(), wanted, offset_in_part)
            if not chunk and wanted:
                raise OSError(errno.EIO, "a part of the object is truncated")
            data += chunk
            # A read may return fewer bytes than wanted: the next one continues in the same part.
            index += len(chunk) == wanted
        return bytes(data)

    def find_damage(self, key: str, content: Content) -> str | None:
        """Read all parts of an object; return what is wrong with the first that differs."""
        for index, expected in enumerate(content.parts):
            what = f"part {index + 1} of {len(content.parts)}"
            md5, size = hashlib.md5(usedforsecurity=False), 0
            try:
                with platform.open_shared(self._part(key, content, index)) as part:
                    while chunk := part.read(IO_CHUNK):
                        check_cancelled()
                        md5.update(chunk)
                        size += len(chunk)
            except FileNotFoundError:
                return f"{what} is missing"
            except OSError as error:
                return f"{what} cannot be read: {error.strerror}"
            if size != expected.size:
                return f"{what} has {size} bytes instead of {expected.size}"
            if md5.hexdigest() != expected.md5:
                return f"{what} has the MD5 {md5.hexdigest()} instead of {expected.md5}"
        return None

    def delete(self, key: str) -> None:
        """Remove an object, once its last reader is done, or its upload; neither need exist."""
        with self._lock:
            if key in self._readers:
                self._deleted.add(key)
            else:
                self._remove(key)

    def modified_at(self, key: str) -> datetime | None:
        """Return when the last file of a key arrived; None if there is none."""
        try:
            return _time_of(self.directory(key))
        except FileNotFoundError:
            return None

    def stored(self, count: int) -> Iterator[list[StoredKey]]:
        """Yield all keys, `count` at a time; remove what killed processes were receiving."""
        found = (path for path in self._root.glob(KEY_PATTERN) if path.is_dir())
        while chunk := [*islice(found, count)]:
            keys: list[StoredKey] = []
            for directory in chunk:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    keys.append(StoredKey(directory.relative_to(self._root).as_posix(), _time_of(directory)))
                    _remove_old_staged(directory)
            yield keys

    def _files(self, key: str) -> list[Path]:
        try:
            return [*self.directory(key).iterdir()]
        except FileNotFoundError:
            return []

    def _part(self, key: str, content: Content, index: int) -> Path:
        return self.directory(key) / part_name(index + 1, content.parts[index].md5)

    def _remove(self, key: str) -> None:
        directory = self.directory(key)
        shutil.rmtree(directory, ignore_errors=True)
        # On Windows, `rmtree` leaves read-only files.
        if directory.exists():
            with contextlib.suppress(OSError):
                platform.remove_directory(directory)
        with contextlib.suppress(OSError):  # not empty, or missing
            for _, parent in zip(range(KEY_PATTERN.count("/")), directory.parents, strict=False):
                parent.rmdir()


def part_name(number: int, md5: str) -> str:
    """Return the name of the file of a part."""
    return f"{number:05d}.{md5}"


def _offsets(content: Content) -> list[int]:
    """Return the offset of each part, and the end of the last one."""
    return [*accumulate((part.size for part in content.parts), initial=0)]


def _time_of(directory: Path) -> datetime:
    # The time of a directory changes when a part is added or renamed in it.
    return datetime.fromtimestamp(directory.stat().st_mtime, timezone.utc)


def _remove_old_staged(directory: Path) -> None:
    oldest = time.time() - UPLOAD_LIFETIME
    for staged in directory.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if staged.stat().st_mtime < oldest:
                platform.remove(staged)

"""The files of the disk storage. An object consists of the very files in which its parts arrived.

    data/<id>/00001.<md5>       a part, or a whole body, named by its number and MD5; `<id>` is the upload's id
    data/<id>/upload            the key that a multipart upload is for; exists while the upload accepts parts
    data/<id>/.<random>         a part that is being received
    objects/<key>.json          the object of `<key>`: the id, names and sizes of its parts, and its ETag

Completing an upload writes only the small file in `objects`, with one `os.replace`: no byte is copied, whatever the
size, and readers see either the old object or the new one. In return, a read crosses files, and replaced parts must
stay until their last reader is done. Only one process owns the directory, so a count in memory suffices.

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
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from async_bento._core.files import atomic_write, fsync_path
from async_bento._core.s3 import bare_etag, etag_of_parts
from async_bento.registry.blobs.base import UPLOAD_LIFETIME
from async_bento.registry.blobs.multipart import check_parts
from async_bento.registry.errors import NoSuchUploadError, RecordNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from io import FileIO
    from pathlib import Path

    from async_bento.registry.blobs.base import CompletedPart

_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_PART_NAME = re.compile(r"\d{5}\.[0-9a-f]{32}")
_UPLOAD = "upload"


class StagedFile:
    """A file that is being received: under a temporary name until `DiskFiles` publishes it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / f".{secrets.token_hex(16)}"
        self.size = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._file: FileIO | None = None

    @property
    def md5(self) -> str:
        """The MD5 of the bytes written so far, in hexadecimal."""
        return self._md5.hexdigest()

    def write(self, chunks: Iterable[bytes]) -> None:
        """Append and hash chunks."""
        if self._file is None:
            try:
                self._file = self.path.open("xb", buffering=0)
            except FileNotFoundError as error:  # the object was deleted, and its uploads with it
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
        os.fsync(self._file.fileno())
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it was published under another name."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


class StoredObject(BaseModel):
    """The content of `objects/<key>.json`; the ETag is quoted, the sizes are bytes."""

    model_config = ConfigDict(frozen=True)

    id: str
    etag: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The offset of each part, and the end of the last one."""
        return tuple(accumulate(self.sizes, initial=0))

    @property
    def size(self) -> int:
        """The size of the object in bytes."""
        return self.offsets[-1]


class DiskFiles:
    """Objects and multipart uploads in one directory."""

    def __init__(self, root: Path, *, min_part_size: int) -> None:
        self._data = root / "data"
        self._objects = root / "objects"
        self._min_part_size = min_part_size
        # Held from reading an object's file until the step that depends on it is done.
        self._lock = threading.Lock()
        self._uploads: dict[str, set[str]] = {}  # the ids of the uploads of each key
        self._readers: dict[str, int] = {}
        self._replaced: set[str] = set()

    def recover(self) -> None:
        """Create the directories; remove what killed processes left, and abandoned uploads."""
        self._data.mkdir(parents=True, exist_ok=True)
        self._objects.mkdir(exist_ok=True)
        published = {_load(pointer).id for pointer in self._objects.rglob("*.json")}
        oldest = time.time() - UPLOAD_LIFETIME
        for directory in self._data.iterdir():
            if directory.name in published:
                # Killed between the two steps of completing the upload.
                (directory / _UPLOAD).unlink(missing_ok=True)
            elif not (directory / _UPLOAD).exists() or directory.stat().st_mtime < oldest:
                shutil.rmtree(directory, ignore_errors=True)
                continue
            else:
                self._uploads.setdefault((directory / _UPLOAD).read_text(), set()).add(directory.name)
            for staged in directory.glob(".*"):
                staged.unlink(missing_ok=True)
        for staged in self._objects.rglob(".*"):
            staged.unlink(missing_ok=True)

    def start_upload(self, key: str) -> str:
        """Start a multipart upload and return its id."""
        directory = self.new_directory()
        self.start_body(key, directory)
        try:
            (directory / _UPLOAD).write_text(key)
        except OSError:
            self.abort_upload(key, directory.name)
            raise
        return directory.name

    def new_directory(self) -> Path:
        """Return an unused path for the parts of a new object."""
        return self._data / secrets.token_hex(16)

    def start_body(self, key: str, directory: Path) -> None:
        """Start the upload of a whole body into a new directory."""
        directory.mkdir()
        with self._lock:
            self._uploads.setdefault(key, set()).add(directory.name)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Remove an upload, unless it was published as the object."""
        with self._lock:
            found = self._find_intact(key)
            is_open = upload_id in self._uploads.get(key, ()) and (found is None or found.id != upload_id)
            self._end_upload(key, upload_id)
        if is_open:
            self._remove(upload_id)
        with contextlib.suppress(OSError):  # a deletion may have left it
            (self._data / upload_id).rmdir()

    def upload_directory(self, key: str, upload_id: str) -> Path:
        """Return the directory of an upload; raise `NoSuchUploadError` if there is none for this key."""
        directory = self._data / upload_id
        if not _UPLOAD_ID.fullmatch(upload_id) or not _contains(directory / _UPLOAD, key):
            raise NoSuchUploadError
        return directory

    def commit_part(self, key: str, upload_id: str, number: int, file: StagedFile) -> None:
        """Add a received part to its upload.

        An older part of the same number stays until the upload is completed with the ETag of one of them.
        """
        with self._lock:
            directory = self.upload_directory(key, upload_id)
            file.path.replace(directory / _part_name(number, file.md5))

    def complete_upload(self, key: str, upload_id: str, completed: Sequence[CompletedPart]) -> None:
        """Publish the listed parts as the object and remove the others; a repeated call succeeds."""
        etag = etag_of_parts([part.etag for part in completed])
        with self._lock:
            current = self._find(key)
            # The response to a first call may have been lost.
            if current is not None and (current.id, current.etag) == (upload_id, etag):
                return
            directory = self.upload_directory(key, upload_id)
            sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
            uploaded = {(int(name[:5]), name[6:]): name for name in sizes if _PART_NAME.fullmatch(name)}
            check_parts(completed, {part: sizes[name] for part, name in uploaded.items()}, self._min_part_size)
            assert etag is not None, "every uploaded part has an MD5 as its ETag"
            names = tuple(uploaded[part.number, bare_etag(part.etag)] for part in completed)
            for unlisted in sizes.keys() - {*names, _UPLOAD}:
                (directory / unlisted).unlink(missing_ok=True)
            stored = StoredObject(id=upload_id, etag=etag, parts=names, sizes=tuple(sizes[name] for name in names))
            unused = self._publish(key, stored)
            self._end_upload(key, upload_id)
        self._remove(unused)

    def commit_object(self, key: str, file: StagedFile) -> None:
        """Publish a whole body as the object; raise `NoSuchUploadError` if the object was deleted meanwhile."""
        with self._lock:
            directory = file.path.parent
            if directory.name not in self._uploads.get(key, ()):
                raise NoSuchUploadError
            part = file.path.replace(directory / _part_name(1, file.md5))
            stored = StoredObject(id=directory.name, etag=f'"{file.md5}"', parts=(part.name,), sizes=(file.size,))
            unused = self._publish(key, stored)
            self._end_upload(key, directory.name)
        self._remove(unused)

    def delete(self, key: str) -> None:
        """Remove an object, once its last reader is done, and its uploads; neither need exist."""
        with self._lock:
            pointer = self._pointer(key)
            previous = self._find_intact(key)
            with contextlib.suppress(FileNotFoundError):
                pointer.unlink()
                fsync_path(pointer.parent)
            with contextlib.suppress(OSError):  # other objects exist, or none ever did
                for directory in (pointer.parent, pointer.parent.parent):
                    directory.rmdir()
            removed = [*self._uploads.get(key, ())]
            for upload_id in removed:
                self._end_upload(key, upload_id)
            if previous is not None and (unused := self._unless_read(previous)):
                removed.append(unused)
        for directory in removed:
            self._remove(directory)

    def acquire(self, key: str) -> StoredObject:
        """Return an object and keep its parts until `release`; raise `RecordNotFoundError` if it does not exist."""
        with self._lock:
            found = self._find(key)
            if found is None:
                raise RecordNotFoundError(f"the bytes of {key}")
            self._readers[found.id] = self._readers.get(found.id, 0) + 1
            return found

    def release(self, stored: StoredObject) -> None:
        """Release an acquired object; remove its parts if it was replaced and this was its last reader."""
        with self._lock:
            self._readers[stored.id] -= 1
            unused = None
            if not self._readers[stored.id]:
                del self._readers[stored.id]
                if stored.id in self._replaced:
                    self._replaced.remove(stored.id)
                    unused = stored.id
        self._remove(unused)

    def read(self, stored: StoredObject, offset: int, size: int) -> bytes:
        """Read `size` bytes of an acquired object; raise `OSError` if a part was truncated."""
        data = bytearray()
        index = bisect_right(stored.offsets, offset) - 1
        while len(data) < size:
            offset_in_part = offset + len(data) - stored.offsets[index]
            wanted = min(size - len(data), stored.sizes[index] - offset_in_part)
            with (self._data / stored.id / stored.parts[index]).open("rb", buffering=0) as part:
                chunk = os.pread(part.fileno(), wanted, offset_in_part)
            if not chunk and wanted:
                raise OSError(errno.EIO, "a part of the object is truncated")
            data += chunk
            index += len(chunk) == wanted
        return bytes(data)

    def _find(self, key: str) -> StoredObject | None:
        try:
            return _load(self._pointer(key))
        except FileNotFoundError:
            return None

    def _find_intact(self, key: str) -> StoredObject | None:
        """Return an object; None also if its file is damaged, so that it can be deleted."""
        try:
            return self._find(key)
        except OSError:
            return None

    def _pointer(self, key: str) -> Path:
        return self._objects / f"{key}.json"

    def _publish(self, key: str, stored: StoredObject) -> str | None:
        """Replace the object of a key; return the id of the old object if it has no readers."""
        previous = self._find(key)
        pointer = self._pointer(key)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temp_path = pointer.with_name(f".{pointer.name}")  # `recover` removes hidden files
        atomic_write(pointer, stored.model_dump_json(), mode=0o666, durable=True, temp_path=temp_path)
        for directory in (self._data / stored.id, self._data, pointer.parent):
            fsync_path(directory)
        return None if previous is None else self._unless_read(previous)

    def _unless_read(self, stored: StoredObject) -> str | None:
        """Return the id of an object that is no longer published, unless it has readers: `release` removes it then."""
        if stored.id in self._readers:
            self._replaced.add(stored.id)
            return None
        return stored.id

    def _end_upload(self, key: str, upload_id: str) -> None:
        """Accept no further part of an upload."""
        (self._data / upload_id / _UPLOAD).unlink(missing_ok=True)
        uploads = self._uploads.get(key, set())
        uploads.discard(upload_id)
        if not uploads:
            self._uploads.pop(key, None)

    def _remove(self, unused: str | None) -> None:
        if unused is not None:
            shutil.rmtree(self._data / unused, ignore_errors=True)


def _part_name(number: int, md5: str) -> str:
    return f"{number:05d}.{md5}"


def _load(pointer: Path) -> StoredObject:
    try:
        return StoredObject.model_validate_json(pointer.read_bytes())
    except ValidationError as error:
        raise OSError(errno.EIO, f"{pointer.name} is damaged") from error


def _contains(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except FileNotFoundError:
        return False

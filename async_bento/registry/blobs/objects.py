"""Where the bytes lie: objects made of the very files their parts arrived in.

    data/<id>/00001.<md5>       a part, or a whole body, under the MD5 of its bytes; `<id>` is the upload's id
    data/<id>/upload            the key it is for, as long as parts may come
    data/<id>/.<random>         a part that is still arriving
    objects/<key>.json          what `<key>` is: an id, its parts and sizes, its ETag

Completing an upload writes nothing but the small file in `objects`, and that with one `os.replace`: no byte is copied
to assemble an object, whatever its size, and readers see the old object or the new one. The price is that reading has
to step from file to file, and that the old parts must outlive whoever still reads them; one process owns the
directory, so a count in memory is enough to know.

Everything here blocks: it belongs into a thread.
"""

from __future__ import annotations

import contextlib
import errno
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
    from collections.abc import Sequence
    from pathlib import Path

    from async_bento.registry.blobs.base import ClaimedPart
    from async_bento.registry.blobs.spool import Spool

_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_PART = re.compile(r"\d{5}\.[0-9a-f]{32}")
_UPLOAD = "upload"


class StoredObject(BaseModel):
    """What a key stands for.

    Attributes:
        id: The directory of its parts.
        etag: Its ETag, quotes and all.
        parts: The names of its parts, in order.
        sizes: Their sizes in bytes.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    etag: str
    parts: tuple[str, ...]
    sizes: tuple[int, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each part begins, and where the last one ends."""
        return tuple(accumulate(self.sizes, initial=0))

    @property
    def size(self) -> int:
        """The size of the whole, in bytes."""
        return self.starts[-1]


class Disk:
    """Objects and uploads in one directory.

    Args:
        root: The directory.
        min_part_size: How small a part may be that is not the last, in bytes.
    """

    def __init__(self, root: Path, *, min_part_size: int) -> None:
        self._data = root / "data"
        self._objects = root / "objects"
        self._min_part_size = min_part_size
        # Around every step from "what does this key stand for" to what follows from it.
        self._lock = threading.Lock()
        self._readers: dict[str, int] = {}
        self._replaced: set[str] = set()

    def open(self) -> None:
        """Make the directories, and sweep out what no upload or object needs any more."""
        self._data.mkdir(parents=True, exist_ok=True)
        self._objects.mkdir(exist_ok=True)
        alive = {_load(pointer).id for pointer in self._objects.rglob("*.json")}
        oldest = time.time() - UPLOAD_LIFETIME
        for directory in self._data.iterdir():
            if directory.name in alive:
                # Killed between the two steps of completing it.
                (directory / _UPLOAD).unlink(missing_ok=True)
            elif not (directory / _UPLOAD).exists() or directory.stat().st_mtime < oldest:
                shutil.rmtree(directory, ignore_errors=True)
                continue
            for unfinished in directory.glob(".*"):
                unfinished.unlink(missing_ok=True)
        for unfinished in self._objects.rglob(".*"):
            unfinished.unlink(missing_ok=True)

    def start_upload(self, key: str) -> str:
        """Begin a multipart upload.

        Args:
            key: What it is for.

        Returns:
            Its id.
        """
        directory = self.new_directory()
        directory.mkdir()
        try:
            (directory / _UPLOAD).write_text(key)
        except OSError:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return directory.name

    def new_directory(self) -> Path:
        """A place for the parts of an object to come; it is still to be made."""
        return self._data / secrets.token_hex(16)

    def upload_directory(self, key: str, upload_id: str) -> Path:
        """Where the parts of an upload go.

        Args:
            key: What the upload is for.
            upload_id: Its id.

        Returns:
            The directory.

        Raises:
            StorageError: There is no such upload, or not for this key.
        """
        directory = self._data / upload_id
        if not _UPLOAD_ID.fullmatch(upload_id) or not _says(directory / _UPLOAD, key):
            raise NoSuchUploadError
        return directory

    def keep_part(self, key: str, upload_id: str, number: int, spool: Spool) -> None:
        """Make a part that has arrived one of its upload's.

        An older one of the same number stays beside it until the upload is completed, which names the one it means.

        Args:
            key: What the upload is for.
            upload_id: Its id.
            number: Which part.
            spool: The part.

        Raises:
            StorageError: There is no such upload any more.
        """
        with self._lock:
            directory = self.upload_directory(key, upload_id)
            spool.path.replace(directory / _part_name(number, spool.md5))

    def complete_upload(self, key: str, upload_id: str, claimed: Sequence[ClaimedPart]) -> None:
        """Make the parts of an upload the object; doing so twice is no error, since the first answer may be lost.

        Args:
            key: What the upload is for.
            upload_id: Its id.
            claimed: Its parts, ascending; parts that are not named are dropped.

        Raises:
            StorageError: There is no such upload, or the parts are not what has arrived.
        """
        etag = etag_of_parts([part.etag for part in claimed])
        with self._lock:
            current = self._find(key)
            if current is not None and (current.id, current.etag) == (upload_id, etag):
                return
            directory = self.upload_directory(key, upload_id)
            sizes = {file.name: file.stat().st_size for file in directory.iterdir()}
            parts = {(int(name[:5]), name[6:]): name for name in sizes if _PART.fullmatch(name)}
            check_parts(claimed, {part: sizes[name] for part, name in parts.items()}, self._min_part_size)
            assert etag is not None, "all that has arrived has an MD5 for its ETag"
            names = tuple(parts[part.number, bare_etag(part.etag)] for part in claimed)
            for unclaimed in sizes.keys() - {*names, _UPLOAD}:
                (directory / unclaimed).unlink(missing_ok=True)
            stored = StoredObject(id=upload_id, etag=etag, parts=names, sizes=tuple(sizes[name] for name in names))
            unused = self._publish(key, stored)
            (directory / _UPLOAD).unlink()
        self._remove(unused)

    def publish(self, key: str, spool: Spool) -> None:
        """Make a whole body the object.

        Args:
            key: Which object.
            spool: The body, in a directory of its own.
        """
        with self._lock:
            kept = spool.path.replace(spool.path.with_name(_part_name(1, spool.md5)))
            unused = self._publish(
                key,
                StoredObject(id=kept.parent.name, etag=f'"{spool.md5}"', parts=(kept.name,), sizes=(spool.size,)),
            )
        self._remove(unused)

    def abandon(self, directory: Path) -> None:
        """Remove a new directory, unless it has become an object.

        Args:
            directory: The directory.
        """
        with contextlib.suppress(OSError):
            directory.rmdir()

    def acquire(self, key: str) -> StoredObject:
        """Find an object, and keep its parts until it is released.

        Args:
            key: Which object.

        Returns:
            The object.

        Raises:
            RecordNotFoundError: There is none.
        """
        with self._lock:
            found = self._find(key)
            if found is None:
                raise RecordNotFoundError(f"the bytes of {key}")
            self._readers[found.id] = self._readers.get(found.id, 0) + 1
            return found

    def release(self, stored: StoredObject) -> None:
        """Let go of an object.

        Args:
            stored: What was acquired.
        """
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
        """Read a range of an object that has been acquired.

        Args:
            stored: The object.
            offset: Where the range begins.
            size: Its length; both lie within the object.

        Returns:
            Its bytes.

        Raises:
            OSError: A part is shorter than it was.
        """
        found = bytearray()
        index = bisect_right(stored.starts, offset) - 1
        while len(found) < size:
            within = offset + len(found) - stored.starts[index]
            wanted = min(size - len(found), stored.sizes[index] - within)
            with (self._data / stored.id / stored.parts[index]).open("rb", buffering=0) as part:
                piece = os.pread(part.fileno(), wanted, within)
            if not piece and wanted:
                raise OSError(errno.EIO, "a part is shorter than it was")
            found += piece
            index += len(piece) == wanted
        return bytes(found)

    def _find(self, key: str) -> StoredObject | None:
        try:
            return _load(self._pointer(key))
        except FileNotFoundError:
            return None

    def _pointer(self, key: str) -> Path:
        return self._objects / f"{key}.json"

    def _publish(self, key: str, stored: StoredObject) -> str | None:
        """Let a key stand for something else; returns the id of what nobody needs any more."""
        previous = self._find(key)
        pointer = self._pointer(key)
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temp_path = pointer.with_name(f".{pointer.name}")  # `open` removes hidden files
        atomic_write(pointer, stored.model_dump_json(), mode=0o666, durable=True, temp_path=temp_path)
        for directory in (self._data / stored.id, self._data, pointer.parent):
            fsync_path(directory)
        if previous is None:
            return None
        if previous.id in self._readers:
            self._replaced.add(previous.id)
            return None
        return previous.id

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


def _says(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except FileNotFoundError:
        return False

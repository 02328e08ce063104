"""The journal of a multipart upload: which parts have arrived, readable after a crash.

One file per upload, one JSON object per line: the upload first, then each part as it arrives. A line is written by one
`write`, so a crash can cut short only the last line, which is dropped on reading. The file holds no secret: an upload
id is useless without a presigned URL.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from async_bento._core import platform
from async_bento._core.files import atomic_write

if TYPE_CHECKING:
    from pathlib import Path

_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | platform.OPEN

_append_lock = threading.Lock()  # on Windows, two writes with O_APPEND may overwrite each other


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(_Line):
    """The tar that is uploaded, in which parts, and where to; a later push resumes only an upload of the same tar."""

    endpoint: str
    kind: str
    tag: str
    part_size: int
    fingerprint: str

    def difference(self, other: Source) -> str:
        """Why an upload of `other` cannot be resumed as one of this source; empty where it can."""
        if self.fingerprint != other.fingerprint:
            return "the files have changed"
        # The part size may differ: it depends on settings, and a resumed push uses the one of the journal.
        is_same = self == other.model_copy(update={"part_size": self.part_size})
        return "" if is_same else "its parts are in another registry"


class _Upload(Source):
    upload_id: str


class _Part(_Line):
    part_number: int
    etag: str


@dataclass(frozen=True)
class JournalEntries:
    """The content of a journal; `etags` has the ETag of each part that has arrived, by part number."""

    source: Source
    upload_id: str
    etags: dict[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True)
class Journal:
    """The journal of one upload. Every method blocks and may raise OSError; threads may add parts concurrently."""

    path: Path

    def read(self) -> JournalEntries | None:
        """Read what an earlier push recorded; None where there is no journal, or no valid one."""
        try:
            first, *others = self.path.read_bytes().splitlines(keepends=True) or [b""]
        except FileNotFoundError:
            return None
        try:
            upload = _Upload.model_validate_json(first)
        except ValidationError:  # empty, cut short, or of another release
            return None
        etags: dict[int, str] = {}
        with suppress(ValidationError):  # cut short by a crash, so the last line
            for line in others:
                if line.endswith(b"\n"):
                    part = _Part.model_validate_json(line)
                    etags[part.part_number] = part.etag
        return JournalEntries(Source.model_validate(upload.model_dump(exclude={"upload_id"})), upload.upload_id, etags)

    def create(self, entries: JournalEntries) -> None:
        """Replace the journal by these entries, atomically."""
        upload = _Upload(**entries.source.model_dump(), upload_id=entries.upload_id)
        parts = (_Part(part_number=number, etag=etag) for number, etag in sorted(entries.etags.items()))
        atomic_write(self.path, b"".join(map(_encode, [upload, *parts])), durable=True)

    def add(self, part_number: int, etag: str) -> None:
        """Record a part that has arrived, with its ETag as the storage sent it."""
        line = _encode(_Part(part_number=part_number, etag=etag))
        with _append_lock:
            # Without a sync: the next push sends a part again whose line was lost.
            descriptor = os.open(self.path, _OPEN_FLAGS)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        """Remove the journal, if there is one."""
        platform.remove(self.path, missing_ok=True)


def _encode(entry: _Line) -> bytes:
    return f"{entry.model_dump_json()}\n".encode()

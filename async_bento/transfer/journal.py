"""What survives a crash of a push: which parts of a multipart upload have arrived.

One file per upload, of one JSON object a line: first what the upload is, then each part as it has arrived. A line is
written in one go, and one that a crash has cut short is the last and is left out when the file is read. It holds no
secret: without a presigned URL an upload's id opens nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from async_bento._core.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Source(_Line):
    """What is uploaded, and where to; a later push goes on only where all of it is the same.

    Attributes:
        endpoint: The registry's URL.
        kind: `bento` or `model`.
        tag: The item's tag.
        part_size: The size of each part but the last, in bytes.
        fingerprint: What the tar is made of, see `TarPlan.fingerprint`.
    """

    endpoint: str
    kind: str
    tag: str
    part_size: int
    fingerprint: str

    def difference(self, other: Source) -> str:
        """Say why an upload of another source is of no use to this one.

        Args:
            other: The source of the upload.

        Returns:
            The reason, for a person; empty where it is the same.
        """
        if self.part_size != other.part_size:
            return f"its parts are of {other.part_size} bytes and would now be of {self.part_size}"
        if self.fingerprint != other.fingerprint:
            return "its files have changed since"
        return "" if self == other else "it was for another registry"


class _Upload(Source):
    upload_id: str


class _Part(_Line):
    part_number: int
    etag: str


@dataclass(frozen=True)
class Recorded:
    """What a journal says.

    Attributes:
        source: What was uploaded.
        upload_id: The multipart upload.
        etags: The ETags of the parts that have arrived, by their numbers.
    """

    source: Source
    upload_id: str
    etags: dict[int, str] = field(default_factory=dict[int, str])


@dataclass(frozen=True)
class Journal:
    """The journal of one upload. Every method blocks; parts may be noted by several threads at once.

    Args:
        path: Its file, in a directory that is there.
    """

    path: Path

    def read(self) -> Recorded | None:
        """Read what an earlier push has left.

        Returns:
            What it says; None where there is nothing, or nothing that can be made sense of.

        Raises:
            OSError: The file cannot be read.
        """
        try:
            first, *others = self.path.read_bytes().splitlines(keepends=True) or [b""]
        except FileNotFoundError:
            return None
        try:
            upload = _Upload.model_validate_json(first)
        except ValidationError:
            return None
        etags: dict[int, str] = {}
        with suppress(ValidationError):  # a crash cut it short, and nothing follows
            for line in others:
                if line.endswith(b"\n"):
                    part = _Part.model_validate_json(line)
                    etags[part.part_number] = part.etag
        return Recorded(Source.model_validate(upload.model_dump(exclude={"upload_id"})), upload.upload_id, etags)

    def begin(self, recorded: Recorded) -> None:
        """Write it anew, in one step.

        Args:
            recorded: What it says from now on.

        Raises:
            OSError: It cannot be written.
        """
        upload = _Upload(**recorded.source.model_dump(), upload_id=recorded.upload_id)
        parts = (_Part(part_number=number, etag=etag) for number, etag in sorted(recorded.etags.items()))
        atomic_write(self.path, b"".join(_lines([upload, *parts])), durable=True)

    def note(self, part_number: int, etag: str) -> None:
        """Add a part that has arrived.

        Args:
            part_number: Its number, from 1.
            etag: Its ETag, as the storage gave it.

        Raises:
            OSError: It cannot be written.
        """
        (line,) = _lines([_Part(part_number=part_number, etag=etag)])
        descriptor = os.open(self.path, _OPEN_FLAGS)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove it; nothing happens where there is none.

        Raises:
            OSError: It cannot be removed.
        """
        self.path.unlink(missing_ok=True)


def _lines(entries: Iterable[_Line]) -> Iterable[bytes]:
    return (f"{entry.model_dump_json()}\n".encode() for entry in entries)

"""The state of an extraction in a form that outlives its process; `ResumableExtract` writes it to a file.

File contents are on the disk and need no state. A checkpoint holds the rest: the position in the tar, and the symlinks
and directory times, which are applied last.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Symlink(NamedTuple):
    """Target and time of a symlink that is made at the end."""

    target: str
    mtime_ns: int


class PartialFile(NamedTuple):
    """A file of which some bytes are written; `path` is normalised by `member_path`."""

    path: str
    mtime_ns: int
    written: int
    left: int


class Checkpoint(NamedTuple):
    """A position where another extractor of the same tar can resume, with the counts up to there.

    Fields:
        position: Byte of the tar to resume at: within a file, or after a member.
        covered: The byte of the tar up to which the extractor may have written after this checkpoint. A member that
            starts before that byte may be on the disk, in part or whole; the resumed extractor overwrites the member.
        directories: Times of the directories made so far, in nanoseconds; None for mere parents of a member.
        symlinks: Symlinks to make at the end, by their paths.
        file: The file to resume, if any.
    """

    position: int = 0
    covered: int = 0
    members: int = 0
    files: int = 0
    bytes_written: int = 0
    directories: Mapping[str, int | None] = MappingProxyType({})
    symlinks: Mapping[str, Symlink] = MappingProxyType({})
    file: PartialFile | None = None

    def to_json(self) -> dict[str, Any]:
        """Convert to what `json` can write; names that are not UTF-8 survive as surrogates."""
        return self._asdict()

    @classmethod
    def from_json(cls, data: Any) -> Checkpoint:
        """Parse the result of `to_json` after a trip through `json`; ValueError for anything else."""
        try:
            directories = {str(path): None if time is None else int(time) for path, time in data["directories"].items()}
            symlinks = {str(path): Symlink(str(target), int(time)) for path, (target, time) in data["symlinks"].items()}
            counts = {name: int(data[name]) for name in ("position", "covered", "members", "files", "bytes_written")}
            file = data["file"]
            if file is not None:
                path, *numbers = file
                file = PartialFile(str(path), *map(int, numbers))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"not a checkpoint: {error!r}") from error
        return cls(**counts, directories=directories, symlinks=symlinks, file=file)

"""How far an extraction has come, in a form that outlives its process.

Bytes that were written to files need not be remembered: they are on the disk. What is not there yet is: the modes of
directories and the symbolic links, which come last, and where in the tar to go on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Attributes(NamedTuple):
    """What a directory gets in the end.

    Attributes:
        mode: Its mode.
        mtime_ns: Its time, in nanoseconds.
    """

    mode: int
    mtime_ns: int


class Link(NamedTuple):
    """A symbolic link that is made in the end.

    Attributes:
        target: What it points at.
        mtime_ns: Its time, in nanoseconds.
    """

    target: str
    mtime_ns: int


class OpenFile(NamedTuple):
    """A file that is being written.

    Attributes:
        name: Its name, as `member_name` returns it.
        mode: The mode it gets.
        mtime_ns: The time it gets, in nanoseconds.
        written: The bytes that are there.
        left: The bytes that are missing.
    """

    name: str
    mode: int
    mtime_ns: int
    written: int
    left: int


@dataclass(frozen=True)
class Checkpoint:
    """How far an extraction has come.

    Attributes:
        position: The byte of the tar to go on with: within a file, or behind a member.
        reach: The byte of the tar before which members may begin that are on the disk already, in part or whole.
        members: The members before it.
        files: The files before it.
        bytes_written: The content before it, in bytes.
        directories: The directories that are there, with what they get in the end.
        links: The links to make in the end, by their names.
        file: The file to go on with, if any.
    """

    position: int = 0
    reach: int = 0
    members: int = 0
    files: int = 0
    bytes_written: int = 0
    directories: Mapping[str, Attributes | None] = field(default_factory=dict[str, "Attributes | None"])
    links: Mapping[str, Link] = field(default_factory=dict[str, Link])
    file: OpenFile | None = None

    def to_json(self) -> dict[str, Any]:
        """Make what `json` writes. Names that are no UTF-8 come back as they are.

        Returns:
            A dictionary.
        """
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def from_json(cls, said: Any) -> Checkpoint:
        """Read what `to_json` made.

        Args:
            said: What `json` read.

        Returns:
            The checkpoint.

        Raises:
            ValueError: It is none.
        """
        try:
            directories = {
                str(name): value and Attributes(*map(int, value)) for name, value in said["directories"].items()
            }
            links = {str(name): Link(str(target), int(time)) for name, (target, time) in said["links"].items()}
            numbers = {name: int(said[name]) for name in ("position", "reach", "members", "files", "bytes_written")}
            file = said["file"]
            if file is not None:
                name, *rest = file
                file = OpenFile(str(name), *map(int, rest))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no checkpoint: {error!r}") from error
        return cls(**numbers, directories=directories, links=links, file=file)

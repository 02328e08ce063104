"""The index of a tar, built from its headers alone: the bytes of large files are skipped.

`RemoteTar` builds it by ranges, and `StreamSink` from all bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from async_bento.errors import NotFoundError, UnsafeArchiveError
from async_bento.transfer.tar.members import BLOCK, LIMIT_REMEDY, REMEDY, MemberParser
from async_bento.transfer.tar.plan import padded
from async_bento.transfer.tar.safety import MAX_FOLLOWED, LimitExceededError, names_memory, over_limit, refused

if TYPE_CHECKING:
    from async_bento.config import Limits
    from async_bento.transfer.tar.headers import Member


class IndexEntry(NamedTuple):
    """A member, and where the tar has it: its headers from `start`, its content from `content`, in bytes."""

    member: Member
    start: int
    content: int

    @property
    def stop(self) -> int:
        """The end of the content, without padding."""
        return self.content + self.member.size

    @property
    def end(self) -> int:
        """The end of the member, where the next one starts."""
        return self.content + padded(self.member.size)


class TarIndex:
    """The members of a tar by path, from bytes that are fed in order; `next_byte` is the next one that is needed.

    The index of a tar that is being read holds the members before `next_byte`. Memory is bounded by `Limits.members`
    and `Limits.names`.
    """

    def __init__(self, limits: Limits) -> None:
        self.entries: dict[str, IndexEntry] = {}
        self._limits = limits
        self._parser = MemberParser(limits)
        self._carry = b""  # the start of a block or of a payload
        self._position = 0  # of the carry, or of the next header
        self._start = 0  # of the headers of the next member
        self._names_size = 0
        self._found: list[IndexEntry] = []  # by the current call of `feed`

    @property
    def is_complete(self) -> bool:
        """Whether the end of the tar was reached."""
        return self._parser.is_ended

    @property
    def next_byte(self) -> int:
        """The byte of the tar with which the data of the next `feed` starts."""
        return self._position + len(self._carry)

    def feed(self, data: bytes | memoryview) -> list[IndexEntry]:
        """Parse the headers in the next bytes of the tar, and return the members that they complete."""
        self._found = []
        try:
            self._feed(data)
        except UnsafeArchiveError as error:
            remedy = LIMIT_REMEDY if isinstance(error, LimitExceededError) else REMEDY
            raise UnsafeArchiveError(f"{error}. {remedy}", member=error.member or self._parser.last_name) from error
        return self._found

    def check_end(self) -> None:
        """Raise UnsafeArchiveError for a tar that has ended too early."""
        if not self.is_complete:
            raise UnsafeArchiveError(f"the tar is truncated. {REMEDY}", member=self._parser.last_name)

    def _feed(self, data: bytes | memoryview) -> None:
        buffer = memoryview(self._carry + data if self._carry else data)
        offset, needed = 0, self._needed
        while not self.is_complete and offset + needed <= len(buffer):
            taken = bytes(buffer[offset : offset + needed])
            offset += needed
            offset += self._take(taken, self._position + offset)
            needed = self._needed
        self._carry = bytes(buffer[offset:]) if not self.is_complete else b""
        self._position += offset

    @property
    def _needed(self) -> int:
        size = self._parser.extension_size
        return BLOCK if size is None else padded(size)

    def _take(self, taken: bytes, position: int) -> int:
        """Parse a header block, or the payload of an extended header; return the bytes of content to skip."""
        if self._parser.extension_size is not None:
            self._parser.add_extension(taken[: self._parser.extension_size])
            return 0
        member = self._parser.add_block(taken)
        if member is None:
            return 0
        self._add(IndexEntry(member, self._start, position))
        self._start = position + padded(member.size)
        return padded(member.size)

    def _add(self, entry: IndexEntry) -> None:
        path, type_ = entry.member.path, entry.member.type
        # As in the extractor, only a directory may come again.
        if (earlier := self.entries.get(path)) and not type_ == earlier.member.type == "directory":
            raise refused(entry.member.name, "an earlier member has the same name")
        if type_ == "hard link" and not self._is_file(entry.member.target):
            raise refused(entry.member.name, "its hard link target is not an earlier file of the tar")
        self._names_size += names_memory(path, entry.member.target)
        if self._names_size > self._limits.names:
            limit = f"{self._limits.names} bytes of memory"
            raise over_limit(entry.member.name, f"the names of the members take more than {limit}", "names")
        self.entries.pop(path, None)  # in the order of the tar, also where a directory comes again
        self.entries[path] = entry
        self._found.append(entry)

    def _is_file(self, path: str) -> bool:
        target = self.entries.get(path)
        return target is not None and target.member.type in {"file", "hard link"}

    def origin(self, entry: IndexEntry) -> IndexEntry:
        """The file that a hard link repeats; any other member is its own origin."""
        while entry.member.type == "hard link":  # always to an earlier member
            entry = self.entries[entry.member.target]
        return entry

    def resolve(self, path: str) -> IndexEntry:
        """Find the file that a path leads to, by way of links; raise NotFoundError for a directory, and for none."""
        return self._file(path, self.follow(path))

    def follow(self, path: str) -> str:
        """The path that a path leads to, by way of links; raise NotFoundError for too many links."""
        # Component by component, as a kernel does: the parent of a link is not the parent of its target.
        resolved, rest, followed = "", [*reversed(path.split("/"))], 0
        while rest:
            part = rest.pop()
            if part in {"", "."}:
                continue
            if part == "..":
                resolved = resolved.rpartition("/")[0]
                continue
            resolved = f"{resolved}/{part}" if resolved else part
            entry = self.entries.get(resolved)
            if entry is None or entry.member.type != "symlink":
                continue
            followed += 1
            if followed > MAX_FOLLOWED:
                raise NotFoundError(f"{path} leads through more than {MAX_FOLLOWED} links")
            resolved = resolved.rpartition("/")[0]
            rest += reversed(entry.member.target.split("/"))
        return resolved

    def _file(self, path: str, resolved: str) -> IndexEntry:
        leads = "" if path.strip("/") == resolved else f", to which {path} leads"
        entry = self.entries.get(resolved)
        if entry is not None:
            entry = self.origin(entry)
        if entry is not None and entry.member.type == "file":
            return entry
        is_directory = entry is not None or any(name.startswith(f"{resolved}/") for name in self.entries)
        raise NotFoundError(f"{resolved or '.'} is a directory{leads}" if is_directory else f"no {resolved}{leads}")

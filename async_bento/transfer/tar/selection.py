"""A part of a tar, as a tar of its own: which members to keep, and the bytes that make it.

`RemoteTar` and `StreamSink` copy these bytes.
"""

from __future__ import annotations

import tarfile
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple, Protocol

from async_bento.transfer.tar.plan import header
from async_bento.transfer.tar.scan import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from async_bento.transfer.tar.headers import Member
    from async_bento.transfer.tar.index import IndexEntry, TarIndex

END = bytes(2 * tarfile.BLOCKSIZE)
"""The end of a tar."""


class Selector(Protocol):
    """Chooses pieces of a tar that arrives as a stream, in the order of the tar."""

    @property
    def is_done(self) -> bool:
        """Whether no member that is still to come matters."""
        ...

    def start(self, index: TarIndex) -> Iterable[Piece]:
        """The pieces that are known before the first byte; the index gets the members of the stream."""
        ...

    def add(self, entry: IndexEntry) -> Iterable[Piece]:
        """The pieces that the next member needs."""
        ...


class Piece(NamedTuple):
    """Bytes of a tar, `[start, stop)`, after a header that takes the place of the tar's own; `entry` is its member."""

    prefix: bytes
    start: int
    stop: int
    entry: IndexEntry


def is_selected(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a path matches a pattern of `include` and none of `exclude`; `src/` means all below `src`."""
    return _matches(path, include) and not _matches(path, exclude)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    # `fnmatch` would ignore case on Windows. Its `*` matches slashes, too.
    return any(fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern) for pattern in patterns)


def select(index: TarIndex, include: Sequence[str], exclude: Sequence[str]) -> list[IndexEntry]:
    """The members whose path is selected, without the root, in the order of the tar."""
    return [entry for path, entry in index.entries.items() if path and is_selected(path, include, exclude)]


def pieces_of(index: TarIndex, selected: Iterable[IndexEntry]) -> list[Piece]:
    """The pieces of a tar that has the selected members and the directories above them, without its end.

    The first selected hard link to a file that is not selected becomes that file.
    """
    kept = {entry.member.path for entry in selected}
    for path in [*kept]:
        kept.update(parent for parent in parents(path) if parent in index.entries)
    if "" in index.entries:
        kept.add("")
    names: dict[str, str] = {}  # of files, by the path in the tar
    for path in kept:
        if (entry := index.entries[path]).member.type == "hard link":
            target = index.origin(entry).member.path
            if target not in kept:
                names[target] = min(path, names.get(target, path), key=lambda name: index.entries[name].start)
    return [*_pieces(index, kept, names)]


def _pieces(index: TarIndex, kept: set[str], names: dict[str, str]) -> Iterator[Piece]:
    for path, entry in index.entries.items():
        if path in names:
            yield Piece(_header(entry.member, names[path], tarfile.REGTYPE), entry.content, entry.end, entry)
        elif path not in kept:
            continue
        elif entry.member.type != "hard link":
            yield Piece(b"", entry.start, entry.end, entry)
        else:
            origin = index.origin(entry).member.path
            target = names.get(origin, origin)
            if target != path:
                yield Piece(_header(entry.member, path, tarfile.LNKTYPE, target), entry.end, entry.end, entry)


def parents(path: str) -> Iterator[str]:
    """The directories above a path of a tar, the closest first, without the root."""
    while path := path.rpartition("/")[0]:
        yield path


class KnownPieces:
    """Pieces that were chosen by an index of the same tar."""

    is_done = True

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces

    def start(self, index: TarIndex) -> Iterable[Piece]:
        """All pieces."""
        return self._pieces

    def add(self, entry: IndexEntry) -> Iterable[Piece]:
        """Nothing more."""
        return ()


class OneFile:
    """The content of the file `path`; `is_found` is False where the path is no file, or there is a link to it."""

    is_done: bool
    is_found: bool

    def __init__(self, path: str) -> None:
        self._path = path

    def start(self, index: TarIndex) -> Iterable[Piece]:
        """Nothing yet."""
        self.is_done = self.is_found = False
        return ()

    def add(self, entry: IndexEntry) -> Iterable[Piece]:
        """The content, if this is the file."""
        if entry.member.path != self._path:
            return ()
        self.is_done, self.is_found = True, entry.member.type == "file"
        return (Piece(b"", entry.content, entry.stop, entry),) if self.is_found else ()


class MatchingFiles:
    """What `pieces_of` chooses by patterns, before the whole index is known.

    `is_possible` is False once that needs bytes that have passed: those of a file that only a selected hard link
    leads to.
    """

    is_done = False
    is_possible: bool

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._patterns = include, exclude

    def start(self, index: TarIndex) -> Iterable[Piece]:
        """Nothing yet."""
        self._index = index
        self._kept: set[str] = {""}  # paths that were passed on, and those above them
        self.is_possible = True
        return ()

    def add(self, entry: IndexEntry) -> Iterable[Piece]:
        """The member, if it is selected or above one that is, after the directories above it."""
        path, is_above = entry.member.path, entry.member.path in self._kept
        if not (self.is_possible and (is_above or is_selected(path, *self._patterns))):
            return ()
        added = [parent for parent in parents(path) if parent not in self._kept]
        above = [self._index.entries[parent] for parent in reversed(added) if parent in self._index.entries]
        self._kept.update(added, (path,))
        origin = self._index.origin(entry).member.path
        self.is_possible = origin in self._kept and all(one.member.type in _WITHOUT_CONTENT for one in above)
        return [_whole(one, origin) for one in (*above, entry)] if self.is_possible else ()


_WITHOUT_CONTENT = {"directory": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}


def _whole(entry: IndexEntry, origin: str) -> Piece:
    """A member with a header of its own, since the tar's may have passed; `origin` is the target of a hard link."""
    member = entry.member
    if member.type == "hard link":
        return Piece(_header(member, member.path, tarfile.LNKTYPE, origin), entry.end, entry.end, entry)
    type_ = _WITHOUT_CONTENT.get(member.type, tarfile.REGTYPE)
    return Piece(_header(member, member.path, type_, member.target), entry.content, entry.end, entry)


def _header(member: Member, name: str, type_: bytes, link: str = "") -> bytes:
    size = member.size if type_ == tarfile.REGTYPE else 0
    return header(Entry(name, type_, member.mode & 0o7777, size, member.mtime_ns, link, 0, 0))

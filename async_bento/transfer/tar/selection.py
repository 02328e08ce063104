"""A part of a tar, as a tar of its own: which members to keep, and the bytes that make it."""

from __future__ import annotations

import tarfile
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from async_bento.transfer.tar.plan import header
from async_bento.transfer.tar.scan import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from async_bento.transfer.tar.headers import Member
    from async_bento.transfer.tar.index import IndexEntry, TarIndex

END = bytes(2 * tarfile.BLOCKSIZE)
"""The end of a tar."""


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
        kept.update(parent for parent in _parents(path) if parent in index.entries)
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


def _parents(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _header(member: Member, name: str, type_: bytes, link: str = "") -> bytes:
    size = member.size if type_ == tarfile.REGTYPE else 0
    return header(Entry(name, type_, member.mode & 0o7777, size, member.mtime_ns, link, 0, 0))

"""A directory's members, in the order and with the attributes they have in its tar."""

from __future__ import annotations

import os
import stat
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from async_bento.errors import ArchiveError, UnsafeArchiveError
from async_bento.transfer.tar.safety import check_links, check_target, member_name

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_BY_EFFECTIVE_USER = os.access in os.supports_effective_ids


class Entry(NamedTuple):
    """One member of the tar.

    Attributes:
        name: The path below the root, with slashes and without a leading one; empty for the root.
        type: The type as tar has it: REGTYPE, DIRTYPE, SYMTYPE or LNKTYPE.
        mode: The permission bits.
        size: The content's size in bytes; 0 for what is no file.
        mtime_ns: The time of the last change, in nanoseconds.
        link: The target of a symbolic link, or the name of the member a hard link repeats; else empty.
    """

    name: str
    type: bytes
    mode: int
    size: int
    mtime_ns: int
    link: str


def walk(root: Path, exclude: Collection[str] = ()) -> list[Entry]:
    """List a directory, parents first and each directory sorted, as `tarfile.add` does.

    Args:
        root: The directory.
        exclude: Names directly in it that are left out.

    Returns:
        The entries, the root's first.

    Raises:
        ArchiveError: Something is missing, unreadable, of a kind no tar should hold, or could not be pulled again; the
            message names it.
    """
    return _Walk(root).run(exclude)


class _Walk:
    """One walk through a directory, remembering what links refer to."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._prefix = len(os.fspath(root))
        self._entries: list[Entry] = []
        self._seen: dict[tuple[int, int], str] = {}

    def run(self, exclude: Collection[str]) -> list[Entry]:
        path = os.fspath(self._root)
        try:
            status = self._root.stat()
            if not stat.S_ISDIR(status.st_mode):
                raise ArchiveError(f"{path} is not a directory")
            self._add("", tarfile.DIRTYPE, status)
            stack = [entry for entry in _listed(path) if entry.name not in exclude]
            while stack:
                found = stack.pop()
                path = found.path
                self._take(found)
                if found.is_dir(follow_symlinks=False):
                    stack.extend(_listed(path))
            self._check_links()
        except OSError as error:
            raise ArchiveError(f"cannot pack {path}: {error.strerror}") from error
        except UnsafeArchiveError as error:
            raise ArchiveError(f"cannot pack {self._root}: {error}; it could not be pulled again") from error
        return self._entries

    def _take(self, found: os.DirEntry[str]) -> None:
        path = found.path
        name = path[self._prefix :].lstrip("/")
        status = found.stat(follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        member_name(name)
        if kind == stat.S_IFREG:
            self._take_file(name, path, status)
        elif kind == stat.S_IFDIR:
            self._add(name, tarfile.DIRTYPE, status)
        elif kind == stat.S_IFLNK:
            target = os.readlink(path)  # noqa: PTH115 - Path would tidy the target, and it must come back as it is
            check_target(name, target)
            self._add(name, tarfile.SYMTYPE, status, link=target)
        else:
            raise ArchiveError(f"cannot pack {path}: it is neither a file nor a directory nor a link")

    def _take_file(self, name: str, path: str, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            first = self._seen.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                self._add(name, tarfile.LNKTYPE, status, link=first)
                return
        if not os.access(path, os.R_OK, effective_ids=_BY_EFFECTIVE_USER):
            raise ArchiveError(f"cannot pack {path}: permission denied")
        self._add(name, tarfile.REGTYPE, status, size=status.st_size)

    def _add(self, name: str, type_: bytes, status: os.stat_result, *, size: int = 0, link: str = "") -> None:
        self._entries.append(Entry(name, type_, stat.S_IMODE(status.st_mode), size, status.st_mtime_ns, link))

    def _check_links(self) -> None:
        links = {entry.name: entry.link for entry in self._entries if entry.type == tarfile.SYMTYPE}
        if links:
            check_links(links, {entry.name for entry in self._entries if entry.type == tarfile.DIRTYPE})


def _listed(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as found:
        return sorted(found, key=lambda entry: entry.name, reverse=True)  # the first is popped last

"""Listing of a directory's members in the order and with the attributes of its tar, for `TarPlan`."""

from __future__ import annotations

import os
import stat
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from async_bento._core import platform
from async_bento._core.concurrency import check_cancelled
from async_bento.errors import ArchiveError, UnsafeArchiveError
from async_bento.transfer.tar.safety import DEFAULT_LIMITS, check_links, check_name, check_target, names_memory

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

DS_STORE = ".DS_Store"
"""A file that macOS adds to directories, and that no tar has. BentoML leaves it out when it builds a bento."""

_BY_EFFECTIVE_USER = os.access in os.supports_effective_ids


class Entry(NamedTuple):
    """One member of the tar.

    Fields:
        name: Path below the root, with slashes and without a leading one; empty for the root.
        type: REGTYPE, DIRTYPE, SYMTYPE or LNKTYPE of `tarfile`.
        size: Content in bytes; 0 for all but files.
        link: A symlink's target, or the name of the member that a hard link repeats; else empty.
        ctime_ns: Not in the tar: with the inode, it distinguishes a file from another one of the same size and mtime.
        inode: Not in the tar.
    """

    name: str
    type: bytes
    mode: int
    size: int
    mtime_ns: int
    link: str
    ctime_ns: int
    inode: int


def list_entries(root: Path, exclude: Collection[str] = ()) -> list[Entry]:
    """List a directory as `tarfile.add` does: parents first, each directory sorted; without any `.DS_Store`.

    `exclude` holds names directly below the root. An ArchiveError names whatever cannot be read or would not be pulled.
    """
    return _Scanner(root).run(exclude)


class _Scanner:
    """One walk through a directory; it remembers inodes to find hard links."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._user = platform.user_id()
        self._prefix = os.fspath(root)
        self._entries: list[Entry] = []
        self._names_memory = 0
        self._first_names: dict[tuple[int, int], str] = {}  # by device and inode

    def run(self, exclude: Collection[str]) -> list[Entry]:
        path = os.fspath(self._root)
        try:
            status = self._root.stat()  # the root may be a link to a directory, unlike what is below it
            if not stat.S_ISDIR(status.st_mode):
                raise ArchiveError(f"cannot pack {path}: it is not a directory")
            self._append("", tarfile.DIRTYPE, status)
            stack = [entry for entry in _listed(path) if entry.name not in exclude]
            while stack:
                check_cancelled()
                found = stack.pop()
                path = found.path
                if self._add(found):
                    stack.extend(_listed(path))
            self._check_links()
        except OSError as error:
            raise ArchiveError(f"cannot pack {path}: {error.strerror}") from error
        except UnsafeArchiveError as error:
            is_link = (self._root / (error.member or "")).is_symlink()
            remedy = "Replace the link by a copy of its target (`cp -L`)" if is_link else "Rename or remove it"
            raise ArchiveError(f"cannot pack {self._root}: {error}. {remedy}: a pull would refuse the tar.") from error
        return self._entries

    def _add(self, found: os.DirEntry[str]) -> bool:
        """Add a member; return whether it is a directory."""
        path = found.path
        name = platform.name_below(self._prefix, path)
        status = platform.entry_status(found)
        file_type = stat.S_IFMT(status.st_mode)
        check_name(name)
        if file_type == stat.S_IFREG:
            self._add_file(name, path, status)
        elif file_type == stat.S_IFDIR and not platform.is_junction(status):
            self._append(name, tarfile.DIRTYPE, status)
        elif file_type == stat.S_IFLNK:
            target = platform.read_link(path)
            check_target(name, target)
            self._append(name, tarfile.SYMTYPE, status, link=target)
        else:
            raise ArchiveError(f"cannot pack {path}: it is not a file, a directory or a link. Remove it.")
        return file_type == stat.S_IFDIR

    def _add_file(self, name: str, path: str, status: os.stat_result) -> None:
        if status.st_nlink > 1:  # only these can have another name; the others need no memory
            first = self._first_names.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                self._append(name, tarfile.LNKTYPE, status, link=first)
                return
        is_readable = status.st_uid == self._user and status.st_mode & stat.S_IRUSR  # which spares a system call
        if not is_readable and not os.access(path, os.R_OK, effective_ids=_BY_EFFECTIVE_USER):
            raise ArchiveError(f"cannot pack {path}: permission denied. Make it readable.")
        self._append(name, tarfile.REGTYPE, status, size=status.st_size)

    def _append(self, name: str, type_: bytes, status: os.stat_result, *, size: int = 0, link: str = "") -> None:
        mode, mtime, ctime = platform.mode_in_tar(status), status.st_mtime_ns, status.st_ctime_ns
        self._entries.append(Entry(name, type_, mode, size, mtime, link, ctime, status.st_ino))
        if len(self._entries) > DEFAULT_LIMITS.members:
            raise self._too_many(f"{DEFAULT_LIMITS.members:,} files, directories and links", "members")
        if name and type_ in {tarfile.DIRTYPE, tarfile.SYMTYPE}:
            self._names_memory += names_memory(name, link) if link else names_memory(name)
            if self._names_memory > DEFAULT_LIMITS.names:
                raise self._too_many(f"{DEFAULT_LIMITS.names:,} bytes of names of directories and links", "names")

    def _too_many(self, limit: str, setting: str) -> ArchiveError:
        return ArchiveError(
            f"cannot pack {self._root}: it has more than {limit}, and a pull would refuse the tar (Limits.{setting}). "
            "Put them into an archive file."
        )

    def _check_links(self) -> None:
        links = {entry.name: entry.link for entry in self._entries if entry.type == tarfile.SYMTYPE}
        if links:
            check_links(links, {entry.name for entry in self._entries if entry.type == tarfile.DIRTYPE})


def _listed(path: str) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        found = [entry for entry in entries if entry.name != DS_STORE]
    return sorted(found, key=lambda entry: entry.name, reverse=True)  # reversed: the caller pops from the end

"""Writing of members to disk so that none leaves its directory.

Symlinks are made after the last byte has arrived, so no member is written through one. Directories get their times
last. As with `git clone`, modes follow the umask, and only the executable bit of a file is taken from the tar: an item
must be readable for the users of its store, whatever the modes were where it was built.
"""

from __future__ import annotations

import errno
import logging
import os
import posixpath
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento._core.files import UNSUPPORTED, copy_file, copy_tree, new_file_mode, set_times
from async_bento.config import MiB
from async_bento.errors import StoreError, UnsafeArchiveError
from async_bento.transfer.tar.checkpoint import Symlink
from async_bento.transfer.tar.safety import DEFAULT_LIMITS, check_links, names_memory, over_limit, quoted, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from async_bento.config import Limits
    from async_bento.transfer.tar.checkpoint import Checkpoint, PartialFile

logger = logging.getLogger(__package__)

# O_EXCL: a path that exists is an error, and a link at the path is not followed (open(2)).
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | platform.NOFOLLOW | platform.OPEN
_REOPEN_FLAGS = os.O_WRONLY | platform.NOFOLLOW | platform.OPEN
# What link(2) fails with where the filesystem, or its settings, allow no hard link.
_NO_HARD_LINKS = UNSUPPORTED | {errno.EMLINK, errno.EXDEV}
_NO_SYMLINKS = UNSUPPORTED - {errno.EACCES} | {errno.EIO}  # EIO: `rclone mount`; on a failing disk, copies fail, too
_SETS_SYMLINK_TIMES = os.utime in os.supports_follow_symlinks
_SETS_TIMES_OF_OPEN_FILES = os.utime in os.supports_fd
_LINK_REMEDY = (
    "Turn on the developer mode of Windows." if platform.IS_WINDOWS else "Move the store to another filesystem."
)
_WRITE_BACK_SIZE = 32 * MiB  # content of a file between two requests to write it back


class TreeWriter:
    """Fills an empty directory, or one that a checkpoint describes; paths are those of `member_path`.

    It holds the paths of directories and symlinks in memory, bounded by `Limits.names`, and none of files. `current` is
    the path being written, for messages. With `overwrite`, a file that exists is a leftover of an interrupted run and
    is replaced; without, it is a duplicate member and refused.
    """

    def __init__(self, root: Path, limits: Limits = DEFAULT_LIMITS, checkpoint: Checkpoint | None = None) -> None:
        self.current = ""
        self.overwrite = False
        self.directories: dict[str, int | None] = {"": None}  # times in nanoseconds; None for a mere parent
        self.symlinks: dict[str, Symlink] = {}
        self._root = root
        self._base = platform.long_path(root)
        self._prefix = os.fspath(self._base)
        self._limits = limits
        self._names_size = 0
        self._descriptor: int | None = None
        self._not_written_back = 0
        self._copied = 0
        try:
            if checkpoint is not None:
                self._restore(checkpoint)
            else:
                self._check_empty()
        except OSError as error:
            raise StoreError(f"cannot extract into {root}: {error.strerror}") from error

    def _check_empty(self) -> None:
        with os.scandir(self._base) as entries:
            if next(entries, None) is not None:
                raise StoreError(f"cannot extract into {self._root}: the directory is not empty")

    def _restore(self, checkpoint: Checkpoint) -> None:
        for path in checkpoint.directories.keys() - self.directories:
            self._count_names(path)
        for path, link in checkpoint.symlinks.items():
            self._count_names(path, link.target)
        self.directories.update(checkpoint.directories)
        self.symlinks.update(checkpoint.symlinks)
        if checkpoint.file is not None:
            self._reopen(checkpoint.file)

    def _reopen(self, file: PartialFile) -> None:
        self.current = file.path
        self._descriptor = os.open(self._absolute(file.path), _REOPEN_FLAGS)
        if os.fstat(self._descriptor).st_size < file.written:
            self.abort()
            raise StoreError(f"cannot resume {file.path}: the file is shorter than its checkpoint")
        # What was written after the checkpoint comes again.
        os.ftruncate(self._descriptor, file.written)
        os.lseek(self._descriptor, file.written, os.SEEK_SET)

    def add_directory(self, path: str, mtime_ns: int) -> None:
        """Make a directory; a directory that exists only gets the new time at the end."""
        self.current = path
        if path not in self.directories:
            self._make_parents(path)
            self._make_directory(path)
        self.directories[path] = mtime_ns

    def open_file(self, path: str, mode: int) -> None:
        """Create a file for `write` and `close_file`; of its mode, the executable bit counts."""
        self._make_parents(path)
        self._remove_leftover(path)
        self._not_written_back = 0
        try:
            self._descriptor = os.open(self._absolute(path), _CREATE_FLAGS, new_file_mode(mode))
        except FileExistsError as error:
            raise self._duplicate(path) from error

    def write(self, data: memoryview) -> None:
        """Write the next bytes of the open file."""
        assert self._descriptor is not None
        self._not_written_back += len(data)
        while data:
            data = data[os.write(self._descriptor, data) :]
        if self._not_written_back >= _WRITE_BACK_SIZE:
            self._not_written_back = 0
            platform.start_write_back(self._descriptor)

    def close_file(self, mtime_ns: int) -> None:
        """Set the time of the open file, and close it."""
        assert self._descriptor is not None
        if _SETS_TIMES_OF_OPEN_FILES:
            set_times(self._descriptor, mtime_ns)
        descriptor, self._descriptor = self._descriptor, None  # first: close(2) frees it even if it fails
        os.close(descriptor)
        if not _SETS_TIMES_OF_OPEN_FILES:
            set_times(self._absolute(self.current), mtime_ns)

    def add_hard_link(self, path: str, source: str, before_copy: Callable[[int], None]) -> int:
        """Link to a file written before, or copy it where the filesystem has no hard links; return the bytes copied.

        `before_copy` gets the size of a copy in bytes, and raises where the copy is too large.
        """
        self._make_parents(path)
        self._check_storable(path, source)
        link, original = self._base / path, self._base / source
        try:
            status = original.lstat()
        except (FileNotFoundError, NotADirectoryError):
            status = None
        # Only to files of the tar: a hard link to a symlink moves its relative target elsewhere (CVE-2025-4330).
        if status is None or not stat.S_ISREG(status.st_mode):
            raise refused(path, f"its hard link target {quoted(source)} is not an earlier file of the tar")
        self._remove_leftover(path)
        try:
            link.hardlink_to(original)
        except FileExistsError as error:
            raise self._duplicate(path) from error
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
        else:
            return 0
        before_copy(status.st_size)
        try:
            copy_file(original, link)
        except FileExistsError as error:
            raise self._duplicate(path) from error
        return status.st_size

    def add_symlink(self, path: str, target: str, mtime_ns: int) -> None:
        """Record a symlink for `finish`; its target has passed `check_target`."""
        self._make_parents(path)
        self._check_storable(path, target)
        if os.path.lexists(self._absolute(path)):
            raise self._duplicate(path)
        self._count_names(path, target)
        self.symlinks[path] = Symlink(target, mtime_ns)

    def finish(self, before_copy: Callable[[int], None]) -> None:
        """Make the symlinks, all or none, and set the directories' times.

        Where the filesystem has no symlinks, or this user may make none, each is replaced by a copy of the file or the
        directory that it leads to; `before_copy` is that of `add_hard_link`.
        """
        check_links({path: link.target for path, link in self.symlinks.items()}, self.directories, self._limits)
        pending = {**self.symlinks}
        for path, link in self.symlinks.items():
            self.current = path
            try:
                self._make_link(path, link.target)
            except FileExistsError as error:
                raise self._duplicate(path) from error
            except OSError as error:
                if error.errno not in _NO_SYMLINKS:
                    raise
                self._copy_targets(pending, before_copy)  # this link and all after it
                break
            del pending[path]
            if _SETS_SYMLINK_TIMES:
                set_times(self._absolute(path), link.mtime_ns, follow_symlinks=False)
        for path, mtime_ns in self.directories.items():  # last, since each new entry changes the time
            self.current = path
            if mtime_ns is not None:
                set_times(self._absolute(path), mtime_ns)

    def _make_link(self, path: str, target: str) -> None:
        platform.make_link(self._base / path, target, is_directory=_target_path(path, target) in self.directories)

    def _copy_targets(self, links: dict[str, Symlink], before_copy: Callable[[int], None]) -> None:
        """Copy what symlinks lead to, each after the links on its way and in its target."""
        logger.warning(
            "no symbolic links can be made in %s: %d links are replaced by copies of their targets",
            self._root,
            len(links),
        )
        while links:
            ready = _copied_next(links)
            for path in ready or links:
                self.current = path
                source = self._base / _target_path(path, links[path].target)
                if not ready or not source.exists():
                    raise StoreError(
                        f"cannot extract {path}: no symbolic links can be made in {self._root}, and the target "
                        f"{links[path].target} cannot be copied. {_LINK_REMEDY}"
                    )
                self._copy(source, path, before_copy)
                del links[path]

    def _copy(self, source: Path, path: str, before_copy: Callable[[int], None]) -> None:
        copied = [source, *source.rglob("*")]
        self._copied += len(copied)
        if self._copied > self._limits.members:  # directories of links to directories grow exponentially
            raise over_limit(path, f"the copies of link targets have more than {self._limits.members} files", "members")
        before_copy(sum(each.stat().st_size for each in copied if each.is_file()))
        try:
            (copy_tree if source.is_dir() else copy_file)(source, self._base / path)
        except FileExistsError as error:
            raise self._duplicate(path) from error

    def abort(self) -> None:
        """Close the open file, if any."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # the error that caused the abort is the one to raise
                os.close(descriptor)

    def _make_parents(self, path: str) -> None:
        """Make the missing parents of a member, and refuse a symlink among them or of the same path."""
        self.current = path
        self._check_storable(path, path)
        if path in self.symlinks:
            raise self._duplicate(path)
        if path.rpartition("/")[0] in self.directories:
            return
        for ancestor in _parents(path):
            if ancestor in self.symlinks:
                raise refused(path, f"its parent {quoted(ancestor)} is a symlink")
            if ancestor not in self.directories:
                self._make_directory(ancestor)

    @staticmethod
    def _check_storable(member: str, path: str) -> None:
        """Refuse a path that this system would store under another name, or not at all."""
        if reason := platform.refusal_of_name(path):
            raise refused(member, reason)

    def _make_directory(self, path: str) -> None:
        self._count_names(path)
        self._remove_leftover(path)
        absolute = self._base / path
        try:
            absolute.mkdir()
        except FileExistsError as error:
            # A directory that an interrupted run made after its last checkpoint is not in `directories`.
            if not (self.overwrite and absolute.is_dir()):
                raise self._duplicate(path) from error
        self.directories[path] = None

    def _remove_leftover(self, path: str) -> None:
        """Remove a file that an interrupted run left; unlink keeps the target of a link, and directories stay."""
        if self.overwrite:
            absolute = self._base / path
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(absolute.lstat().st_mode):
                    platform.remove(absolute)

    def _duplicate(self, path: str) -> UnsafeArchiveError:
        """Make the error for a path that is taken, by an equal name or by one that the disk takes for equal."""
        parent, _, name = path.rpartition("/")
        is_present = name in os.listdir(self._absolute(parent))  # noqa: PTH208 - a text
        if is_present or path in self.symlinks:
            return refused(path, "an earlier member has the same name")
        return refused(path, "the name of an earlier member differs only in case or in its Unicode form on this disk")

    def _count_names(self, *names: str) -> None:
        self._names_size += names_memory(*names)
        if self._names_size > self._limits.names:
            limit = f"{self._limits.names} bytes of memory"
            raise over_limit(names[0], f"the names of directories and links take more than {limit}", "names")

    def _absolute(self, path: str) -> str:
        return platform.path_below(self._prefix, path)  # to make a Path costs as much as to write a small file


def _copied_next(links: Mapping[str, Symlink]) -> list[str]:
    """The symlinks whose targets contain no link of `links`, and are not reached through one."""
    holders = {parent for path in links for parent in _parents(path)}  # copied once the links in them are
    return [
        path
        for path, link in links.items()
        if (leads_to := _target_path(path, link.target)) not in holders
        and not any(each in links for each in (leads_to, *_parents(leads_to)))
    ]


def _parents(path: str) -> list[str]:
    """The directories above a path, from the root on."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts))]


def _target_path(path: str, target: str) -> str:
    """Where a symlink leads, by its text."""
    return posixpath.normpath(f"/{posixpath.dirname(path)}/{target}").lstrip("/")

"""Members, written to disk so that none reaches outside its directory.

No link is made before the last byte has arrived, so nothing is ever written through one; and directories get their
modes last, so that none is in the way of what belongs into it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from async_bento.config import MiB
from async_bento.errors import StoreError, UnsafeArchiveError
from async_bento.transfer.tar.checkpoint import Attributes, Link
from async_bento.transfer.tar.safety import DEFAULT_LIMITS, check_links, check_target, quoted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from async_bento.config import Limits
    from async_bento.transfer.tar.checkpoint import Checkpoint, OpenFile

KEPT_MODE = 0o775
"""The bits of a mode that are restored: not set-uid, set-gid and sticky, and no writing for everyone."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_LINK_TIMES = os.utime in os.supports_follow_symlinks
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h, for sync_file_range(2)
_WRITE_BACK = 32 * MiB  # of a file's content: what is asked to go to the disk while more of it comes
_ENTRY = 512  # what a directory or a link takes at most beside its names: entries of dicts, attributes, where it leads


class Tree:
    """A directory that is being filled. Names are as `member_name` returns them.

    It holds the names of directories and symbolic links, and none of files.

    Args:
        root: The directory; it must be there, be empty and be no one else's business.
        limits: How long links may be, and how much memory all those names may take.
        checkpoint: How far another had come with the same directory, which then need not be empty.

    Attributes:
        current: The member being written, for messages.
        overwrites: Whether a file that is there already is what is left of an interrupted run, and is written anew.
            Else it is another member with the same name.
        directories: The directories that are there, with what they get in the end.
        links: The links to make in the end, by their names.

    Raises:
        StoreError: The directory is not empty, or not as the checkpoint has it.
    """

    def __init__(self, root: Path, limits: Limits = DEFAULT_LIMITS, checkpoint: Checkpoint | None = None) -> None:
        self.current = ""
        self.overwrites = False
        self._limits = limits
        self._held = 0
        self._root = root
        self._prefix = os.fspath(root)
        self.directories: dict[str, Attributes | None] = {"": None}
        self.links: dict[str, Link] = {}
        self._descriptor: int | None = None
        self._in_memory = 0
        try:
            if checkpoint is not None:
                self._restore(checkpoint)
                return
            with os.scandir(root) as found:
                if next(found, None) is not None:
                    raise StoreError(f"cannot extract into {root}: it is not empty")
        except OSError as error:
            raise StoreError(f"cannot extract into {root}: {error.strerror}") from error

    def _restore(self, checkpoint: Checkpoint) -> None:
        for name in checkpoint.directories:
            self._hold(name)
        for name, link in checkpoint.links.items():
            self._hold(name, link.target)
        self.directories.update(checkpoint.directories)
        self.links.update(checkpoint.links)
        if checkpoint.file is not None:
            self._reopen(checkpoint.file)

    def _reopen(self, file: OpenFile) -> None:
        self.current = file.name
        self._descriptor = os.open(self._path(file.name), _REOPEN)
        if os.fstat(self._descriptor).st_size < file.written:
            self.abort()
            raise StoreError(f"cannot go on with {file.name}: it is shorter than it was")
        os.ftruncate(self._descriptor, file.written)
        os.lseek(self._descriptor, file.written, os.SEEK_SET)

    def add_directory(self, name: str, mode: int, mtime_ns: int) -> None:
        """Make a directory; one that is there already only gets the new attributes.

        Args:
            name: Its name; empty for the root.
            mode: The mode it gets in the end.
            mtime_ns: The time it gets in the end, in nanoseconds.
        """
        self.current = name
        if name not in self.directories:
            self._make_room(name)
            self._make_directory(name, 0o700)
        self.directories[name] = Attributes(mode & KEPT_MODE, mtime_ns)

    def open_file(self, name: str) -> None:
        """Begin a file; what is written from now on is its content.

        Args:
            name: Its name.
        """
        self._make_room(name)
        self._clear(name)
        self._in_memory = 0
        try:
            self._descriptor = os.open(self._path(name), _CREATE, 0o600)
        except FileExistsError as error:
            raise _in_the_way(name) from error

    def write(self, data: memoryview) -> None:
        """Write to the file that is open.

        Args:
            data: Some more of its content.
        """
        assert self._descriptor is not None
        self._in_memory += len(data)
        while data:
            data = data[os.write(self._descriptor, data) :]
        if self._in_memory >= _WRITE_BACK:
            self._in_memory = 0
            _start_writing_back(self._descriptor)

    def close_file(self, mode: int, mtime_ns: int) -> None:
        """End the file that is open.

        Args:
            mode: Its mode.
            mtime_ns: Its time, in nanoseconds.
        """
        assert self._descriptor is not None
        os.fchmod(self._descriptor, mode & KEPT_MODE)
        os.utime(self._descriptor, ns=(mtime_ns, mtime_ns))
        descriptor, self._descriptor = self._descriptor, None
        os.close(descriptor)

    def add_hard_link(self, name: str, source: str, before_copy: Callable[[int], None]) -> int:
        """Give a file another name, or copy it where the file system knows no hard links.

        Args:
            name: The new name.
            source: The name of a file that has been written.
            before_copy: Told how many bytes a copy will take, and raises where that is too much.

        Returns:
            The bytes that were copied.
        """
        self._make_room(name)
        path, original = self._root / name, self._root / source
        try:
            status = original.lstat()
        except (FileNotFoundError, NotADirectoryError):
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise UnsafeArchiveError(
                f"{quoted(name)} is refused: a hard link to {quoted(source)}, which is no file before it in the tar",
                member=name,
            )
        self._clear(name)
        try:
            path.hardlink_to(original)
        except FileExistsError as error:
            raise _in_the_way(name) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return 0
        before_copy(status.st_size)
        try:
            with original.open("rb") as read, path.open("xb") as written:
                shutil.copyfileobj(read, written)
        except FileExistsError as error:
            raise _in_the_way(name) from error
        shutil.copystat(original, path)
        return status.st_size

    def add_symlink(self, name: str, target: str, mtime_ns: int) -> None:
        """Note a symbolic link, to be made in the end.

        Args:
            name: Its name.
            target: What it points at.
            mtime_ns: Its time, in nanoseconds.
        """
        check_target(name, target, self._limits)
        self._make_room(name)
        self._clear(name)
        if os.path.lexists(self._path(name)):
            raise _in_the_way(name)
        self._hold(name, target)
        self.links[name] = Link(target, mtime_ns)

    def finish(self) -> None:
        """Make the links, all or none, and give the directories their modes and times, deepest first."""
        check_links({name: link.target for name, link in self.links.items()}, self.directories, self._limits)
        for name, link in self.links.items():
            self.current = name
            path = self._root / name
            try:
                path.symlink_to(link.target)
            except FileExistsError as error:
                raise _in_the_way(name) from error
            if _LINK_TIMES:
                os.utime(path, ns=(link.mtime_ns, link.mtime_ns), follow_symlinks=False)
        for name in sorted(self.directories, reverse=True):
            self.current = name
            attributes = self.directories[name]
            if attributes is not None:
                path = self._root / name
                os.utime(path, ns=(attributes.mtime_ns, attributes.mtime_ns))
                path.chmod(attributes.mode)

    def abort(self) -> None:
        """Close the file that is open, if one is."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):  # whoever gives up has a better reason to tell
                os.close(descriptor)

    def _make_room(self, name: str) -> None:
        """Make the directories a member lies in, and see that no link will have its name."""
        self.current = name
        if name in self.links:
            raise _in_the_way(name)
        parent = name.rpartition("/")[0]
        if parent in self.directories:
            return
        parts = parent.split("/")
        for count in range(1, len(parts) + 1):
            ancestor = "/".join(parts[:count])
            if ancestor in self.links:
                raise UnsafeArchiveError(f"{quoted(name)} is refused: {quoted(ancestor)} is a link", member=name)
            if ancestor not in self.directories:
                self._make_directory(ancestor, 0o755)

    def _make_directory(self, name: str, mode: int) -> None:
        self._hold(name)
        self._clear(name)
        try:
            (self._root / name).mkdir(mode)
        except FileExistsError as error:
            # One that an interrupted run has made is not among those that are known.
            if not (self.overwrites and (self._root / name).is_dir()):
                raise _in_the_way(name) from error
        self.directories[name] = None

    def _clear(self, name: str) -> None:
        """Remove the file that an interrupted run has left, never what a link points to, nor a directory."""
        if self.overwrites:
            path = self._root / name
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(path.lstat().st_mode):
                    path.unlink()

    def _hold(self, *names: str) -> None:
        self._held += _ENTRY + sum(map(sys.getsizeof, names))
        if self._held > self._limits.names:
            raise UnsafeArchiveError(
                f"{quoted(names[0])} is refused: the names of the directories and links until it take more than "
                f"{self._limits.names} bytes of memory (Limits.names)",
                member=names[0],
            )

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"  # a Path for each of many files costs as much as writing them


def _start_writing_back(descriptor: int) -> None:
    """Let the system begin to bring a file to its disk, so that little is left for who syncs it in the end.

    Nothing is waited for, and nothing is lost where it cannot be had: it is Linux's, and not of all its filesystems.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).sync_file_range(descriptor, ctypes.c_int64(), ctypes.c_int64(), _SYNC_FILE_RANGE_WRITE)


def _in_the_way(name: str) -> UnsafeArchiveError:
    return UnsafeArchiveError(f"{quoted(name)} is refused: another member is there already", member=name)

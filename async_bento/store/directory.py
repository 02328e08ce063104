"""A directory outside the store that a pull fills with one item.

<parent>/.<name>.async-bento/       staging next to the directory, from where one rename moves the item
<directory>/.async-bento/           staging within it, where the directory cannot be replaced: see `_stays`
"""

from __future__ import annotations

import dataclasses
import os
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from async_bento._core import platform
from async_bento._core.files import fsync_path
from async_bento.errors import PathExistsError
from async_bento.store.errors import as_store_error
from async_bento.store.filesystem import make_movable, share_like, sync_tree
from async_bento.store.layout import ItemT, Layout
from async_bento.store.moves import ITEM, Move, replace_directory
from async_bento.store.places import PROBE, rename_reaches
from async_bento.store.staging import StagingArea

if TYPE_CHECKING:
    from collections.abc import Generator

    from async_bento._core.tag import Tag

_STAGING = ".async-bento"

TEMPORARY_NAMES = frozenset({_STAGING, PROBE})
"""Names in a directory that are not part of its item: a pull that was killed may have left them."""

_OLD = "old"  # in a temporary directory: what a commit replaces


class TargetDirectory(Generic[ItemT]):
    """The directory of a pull: absent or empty, or with an item to replace. Every method blocks."""

    def __init__(self, item_type: type[ItemT], path: str | os.PathLike[str]) -> None:
        self.item_type = item_type
        self._path = path

    @cached_property
    def path(self) -> Path:
        """The directory, absolute; found by the first method that runs."""
        return Path(self._path).absolute()

    def check(self, *, force: bool) -> None:
        """Raise PathExistsError unless the directory is absent or empty, or `force` may replace the item in it."""
        metadata, action = self.item_type.METADATA_FILE, f"pull to {self.path}"
        with as_store_error(action):
            # Windows reports what is below a file as missing.
            existing = next((path for path in (self.path, *self.path.parents) if path.exists()), None)
            if existing is not None and not existing.is_dir():
                raise PathExistsError(f"cannot {action}: {existing} is a file. Choose another directory.")
            try:
                names = {entry.name for entry in self.path.iterdir()} - {PROBE}
            except FileNotFoundError:
                return
        if not names - {_STAGING}:
            return
        if not names & {metadata, _STAGING}:  # a pull that was killed may leave staging and a part of the item
            raise PathExistsError(
                f"cannot {action}: the directory is not empty and has no {metadata}. Choose another directory."
            )
        if not force:
            raise PathExistsError(
                f"cannot {action}: the directory already has a {self.item_type.TYPE_NAME}. "
                "Pull with force (`--force`) to replace it, or choose another directory."
            )

    @contextmanager
    def stage(self) -> Generator[Path]:
        """Make an empty directory for `commit` on the filesystem of the target, and remove what is not committed."""
        target = self._target()
        with as_store_error(f"write to {self.path}"):
            is_within = target.is_dir() and _stays(target)
            # The staging area makes the missing parents. Those that stay empty are removed, from the nearest on.
            absent = [parent for parent in target.parents if not parent.exists()]
        root = target / _STAGING if is_within else target.with_name(f".{target.name}{_STAGING}")
        area = StagingArea(target, root)
        try:
            area.recover()
            with area.directory() as temporary:
                # `temporary` is closed to other users, and an item must not be: hence one level deeper.
                staged = temporary / ITEM
                with as_store_error(f"write to {self.path}"):
                    staged.mkdir()
                yield staged
        finally:
            for directory in (root, *absent):  # a parent of the committed item is not empty, and stays
                with suppress(OSError):
                    directory.rmdir()

    def commit(self, staged: Path, tag: Tag, *, force: bool) -> ItemT:
        """Move a staged item to its place; an item that `force` replaces is complete until then."""
        item = Layout(self.item_type, self.path).load(tag, staged)
        self.place(staged, str(tag), force=force)
        return dataclasses.replace(item, path=self.path)

    def place(self, staged: Path, name: str, *, force: bool) -> None:
        """Move staged files to their place; `name` is for messages."""
        target = self._target()
        with as_store_error(f"write {name} to {self.path}"):
            sync_tree(staged)
            self.check(force=force)  # another process may have filled the directory
            if staged.is_relative_to(target):
                _fill(target, staged, self.item_type.METADATA_FILE)
                fsync_path(target)
            else:
                _move(staged, target, force=force)
                fsync_path(target.parent)

    def _target(self) -> Path:
        """The directory without links: a link to it stays."""
        return Path(os.path.realpath(self.path))


def _stays(target: Path) -> bool:
    """Whether a directory cannot be replaced by a rename: a mount, in a read-only directory, or a working directory."""
    # After a rename, this process and the shell that started it would be in a directory that is removed.
    with suppress(FileNotFoundError):  # the working directory was removed
        if target.samefile(Path.cwd()):
            return True
    try:
        # Tried in the parent directory, where the staging would be; what refuses the probe would refuse the staging.
        return not rename_reaches(target.with_name(f".{target.name}{PROBE}"), target)
    except OSError:
        return True


def _move(staged: Path, target: Path, *, force: bool) -> None:
    """Move an item to its place by one rename; without `force`, only to a place that is absent or empty."""
    if target.is_dir():  # the item takes the place of a directory that the user made
        share_like(staged, target)
    make_movable(staged)
    if force:
        # Where no exchange is possible, a kill between two renames leaves the staged item to the recovery.
        Move(str(target), "move", None, None).record(staged.parent)
        replace_directory(staged, target, staged.with_name(_OLD))
    else:
        platform.rename(staged, target)


def _fill(target: Path, staged: Path, metadata: str) -> None:
    """Move the entries of an item into a directory; its YAML file is the first to leave and the last to arrive."""
    old, new = staged.with_name(_OLD), sorted(staged.iterdir(), key=lambda entry: entry.name == metadata)
    old.mkdir()
    present = [entry for entry in target.iterdir() if entry.name != _STAGING]
    moves = [(entry, old / entry.name) for entry in sorted(present, key=lambda entry: entry.name != metadata)]
    moves += [(entry, target / entry.name) for entry in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, destination in moves:
            if not source.is_symlink() and source.is_dir():
                make_movable(source)
            platform.rename(source, destination)
            done.append((source, destination))
    except BaseException:
        for source, destination in reversed(done):
            platform.rename(destination, source)
        raise

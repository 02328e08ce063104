"""`$BENTOML_HOME/tmp`: directories that do not outlive their use, and locks.

BentoML takes every directory in a store for an item, so nothing unfinished may lie there. Scratch lies beside it, where
one rename takes it into the store.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from async_bento._core.files import fsync_path
from async_bento.errors import StoreError
from async_bento.store.filesystem import as_store_error, exchange, make_movable, move_aside, remove_tree
from async_bento.store.locks import Lock, hold_directory
from async_bento.store.tag import LATEST

if TYPE_CHECKING:
    from collections.abc import Generator


logger = logging.getLogger(__name__)

PREFIX = "async-bento-"
"""What is ours in a directory that BentoML uses too."""

LOCKS = f"{PREFIX}locks"
KEPT = f"{PREFIX}kept-"

ITEM = "item"
"""In a scratch directory: what is staged, or what was moved aside."""

_PLACE = "place"

STATE = "state.json"
"""What says, in a directory that is kept, how to go on with it."""

_LONGEST_SWEEP = 1.0  # of one directory, in seconds
_BETWEEN_TRIES = 0.01  # in seconds

KEEP_FOR = 7 * 24 * 3600.0
"""How long a kept directory waits to be gone on with, in seconds. A week outlasts a long weekend."""


class Scratch:
    """The scratch beside a store.

    A directory in use is locked, so that one whose process was killed is known by its lock being free, and goes when
    the next one is made.

    Args:
        root: Where it lies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def lock(self, name: str) -> Lock:
        """Make a lock.

        Args:
            name: What is locked; a file name.

        Returns:
            The lock, not yet taken.
        """
        return Lock(self.root / LOCKS / f"{name}.lock")

    def kept_file(self, name: str) -> Path:
        """Name a file that outlives its process, for `KEEP_FOR` seconds since it was last written.

        Args:
            name: What distinguishes it.

        Returns:
            Its path, in a directory that is there.

        Raises:
            StoreError: The directory cannot be made.
        """
        with as_store_error(f"make {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            self.sweep()
        return self.root / f"{KEPT}{name}"

    @contextmanager
    def directory(self, keep: str | None = None) -> Generator[Path]:
        """Make a directory that is removed at the block's end.

        Args:
            keep: A file name. When the block fails and leaves a file `STATE` in the directory, which says how to go on,
                the directory is kept for `KEEP_FOR` seconds, and given to the next block that asks for it by this name.

        Yields:
            The directory; only its owner may look into it.

        Raises:
            StoreError: It cannot be made, or another process has it.
        """
        with as_store_error(f"make a directory in {self.root}"):
            self.root.mkdir(parents=True, exist_ok=True)
            self.sweep()
            path, descriptor = self._take_new() if keep is None else self._take_kept(keep)
        finished = False
        try:
            yield path
            finished = True
        finally:
            try:
                if finished or keep is None or not (path / STATE).exists():
                    remove_tree(path)
            except OSError:
                logger.warning("could not remove %s, and will try again later", path, exc_info=True)
            finally:
                os.close(descriptor)

    def sweep(self) -> None:
        """Remove what killed processes left here, and what was kept for too long.

        A change of an item that was half-way is settled first: see `remember_change`.
        """
        for path in self.root.glob(f"{PREFIX}*"):
            with suppress(OSError):
                if path.name == LOCKS:
                    continue
                if path.name.startswith(KEPT) and _is_wanted(path):
                    continue
                if not path.is_dir():
                    if path.name.startswith(KEPT):
                        path.unlink()
                    continue
                descriptor = hold_directory(path, surely=True)
                try:
                    _settle(path)
                    remove_tree(path)
                finally:
                    os.close(descriptor)

    def _take_new(self) -> tuple[Path, int]:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self.root))
            # A sweep may take it for dead in the moment between its making and its locking.
            with suppress(BlockingIOError, FileNotFoundError):
                return path, hold_directory(path)

    def _take_kept(self, name: str) -> tuple[Path, int]:
        path = self.root / f"{KEPT}{name}"
        given_up = time.monotonic() + _LONGEST_SWEEP
        while True:
            path.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                try:
                    descriptor = hold_directory(path)
                except BlockingIOError as error:
                    if time.monotonic() > given_up:
                        raise StoreError(f"{path} is in use by another process") from error
                    time.sleep(_BETWEEN_TRIES)  # a sweep looks at it
                    continue
                os.utime(path)
                return path, descriptor


def _is_wanted(kept: Path) -> bool:
    """Whether something may still be gone on with: it is not too old, and says how."""
    return time.time() - kept.stat().st_mtime < KEEP_FOR and (not kept.is_dir() or (kept / STATE).exists())


def remember_change(aside: Path, place: Path) -> None:
    """Let a sweep know what a scratch directory is for, in case this process is killed before the change is done.

    Args:
        aside: The scratch directory. Its `ITEM` is what was in the place before, if that was moved there.
        place: The directory of the item that is about to change.
    """
    (aside / _PLACE).write_bytes(os.fsencode(place))


def _settle(aside: Path) -> None:
    """Come to an end with a change whose process was killed in it."""
    try:
        place = Path(os.fsdecode((aside / _PLACE).read_bytes()))
    except FileNotFoundError:
        return
    if (aside / ITEM).is_dir() and not os.path.lexists(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        (aside / ITEM).rename(place)
    if place.is_dir():
        # The new item may be there and not yet the latest; who reads next finds the latest anew.
        (place.parent / LATEST).unlink(missing_ok=True)


_PROBE = f".{PREFIX}probe"
"""Always the same, so that one which a killed process left is taken along by the next. A file: those are no items, to
BentoML neither."""


def check_reach(base: Path, outer: Path) -> None:
    """Fail before a download rather than after it, where the store is a mount of its own.

    Args:
        base: The store's directory; it is made where there is none.
        outer: A scratch directory.

    Raises:
        StoreError: Nothing can be renamed from there into the store.
        OSError: The store cannot be written to.
    """
    base.mkdir(parents=True, exist_ok=True)
    probe = outer / "probe"
    probe.touch()
    arrived = base / _PROBE
    try:
        probe.rename(arrived)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise StoreError(
            f"{base} is on another filesystem than {outer.parent}, and nothing can be moved into it in one step: mount "
            "their parent directory instead"
        ) from error
    arrived.unlink(missing_ok=True)  # another process may have been faster


def place(staged: Path, target: Path, aside: Path) -> None:
    """Move a staged directory to where it belongs, in one step. Whoever calls holds the name's lock.

    Where the filesystem cannot let two directories change places, replacing takes two renames, and between them a
    reader finds nothing; when the process is killed there, the next sweep brings the old one back.

    Args:
        staged: The directory; afterwards what it replaced is here, or nothing.
        target: The item's place; what is there is replaced.
        aside: A scratch directory of the caller's, without an item in it.

    Raises:
        OSError: It cannot be moved; what was there is there still.
    """
    remember_change(aside, target)
    make_movable(staged)
    if not os.path.lexists(target):
        if not target.parent.exists():
            target.parent.mkdir(parents=True)
            fsync_path(target.parent.parent)
        staged.rename(target)
        return
    make_movable(target)
    if exchange(staged, target):
        return
    old = aside / ITEM
    move_aside(target, old)
    try:
        staged.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise

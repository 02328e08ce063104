"""The move of a staged item into its place in the store, and the recovery of moves that crashed.

A record in a temporary directory names the item that is about to change. It is written under the lock of the name, and
the process that finds the temporary directory of a killed one recovers from it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from async_bento._core import platform
from async_bento._core.files import atomic_write, copy_tree, fsync_path
from async_bento._core.tag import LATEST
from async_bento.store.filesystem import make_movable, move_aside, remove_tree, sync_tree
from async_bento.store.latest import read_latest, write_latest
from async_bento.store.places import rename_reaches

ITEM = "item"
"""The staged item in a temporary directory, or the old one that a commit or a delete moved aside."""

_RECORD = "commit.json"

# In a name's directory that is a mount of its own. BentoML cannot list the name meanwhile, as during its own pull.
_COPY = ".async-bento-copy-"
_OLD = ".async-bento-old-"


@dataclass(frozen=True)
class Move:
    """A move of an item to its place: the lock of its name, and the contents of `latest` before and after the move."""

    target: str
    lock: str
    before: str | None
    after: str | None
    inode: int = 0

    def record(self, aside: Path, moved: Path | None = None) -> None:
        """Write the move into a temporary directory, for the recovery if this process is killed."""
        # A rename keeps the inode, by which the recovery knows whether the move took place.
        move = self if moved is None else replace(self, inode=moved.stat().st_ino)
        # Without it, a power failure between the renames of a replacement would leave the old item without a place.
        is_replaced = os.path.lexists(self.target)
        atomic_write(aside / _RECORD, json.dumps(asdict(move)), durable=is_replaced)
        if is_replaced:
            fsync_path(aside)

    def recover(self, aside: Path) -> None:
        """Restore the old item if the new one is missing, and update `latest` if the new one is in its place.

        The caller holds the lock of the name.
        """
        target = Path(self.target)
        _recover_copies(target.parent)
        if (aside / ITEM).is_dir() and not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            platform.rename(aside / ITEM, target)
        with suppress(FileNotFoundError):
            is_moved = target.stat().st_ino == self.inode
            if is_moved and read_latest(target.parent) == self.before:  # nobody has updated `latest` since
                write_latest(target.parent, self.after, aside / LATEST)


def recorded_move(aside: Path) -> Move | None:
    """Read what a killed process recorded in a temporary directory."""
    try:
        return Move(**json.loads((aside / _RECORD).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # no commit had started, or another release wrote the record
        return None


def move_into_store(staged: Path, aside: Path, move: Move) -> None:
    """Move a staged item to its place in one step; an item that it replaces ends up in `staged` or in `aside`.

    The caller holds the lock of the name. If the move fails, the old item is in its place again.
    """
    target = Path(move.target)
    make_movable(staged)
    if not target.parent.exists():
        target.parent.mkdir(parents=True)
        fsync_path(target.parent.parent)  # a power failure must not take the name from a committed item
    _recover_copies(target.parent)
    if rename_reaches(aside / "probe", target.parent):
        move.record(aside, staged)
        replace_directory(staged, target, aside / ITEM)
    else:
        _copy_into_store(staged, aside, move)


def _copy_into_store(staged: Path, aside: Path, move: Move) -> None:
    """Copy a staged item from another filesystem to a hidden directory next to its place, and move that."""
    target = Path(move.target)
    move.record(aside)  # with no inode yet: the recovery only removes a copy that was cut short
    copy, old = target.with_name(f"{_COPY}{target.name}"), target.with_name(f"{_OLD}{target.name}")
    try:
        copy_tree(staged, copy)
        sync_tree(copy)
        move.record(aside, copy)
        replace_directory(copy, target, old)
        remove_tree(staged)
    finally:
        _recover_copies(target.parent)


def _recover_copies(directory: Path) -> None:
    for old in directory.glob(f"{_OLD}*"):
        target = old.with_name(old.name.removeprefix(_OLD))
        if os.path.lexists(target):
            remove_tree(old)
        else:
            platform.rename(old, target)
    for copy in directory.glob(f"{_COPY}*"):
        remove_tree(copy)


def replace_directory(staged: Path, target: Path, old: Path) -> None:
    """Move a directory to its place; what it replaces ends up in `staged` or in `old`."""
    if not os.path.lexists(target):
        platform.rename(staged, target)
        return
    make_movable(target)
    if platform.exchange(staged, target):
        return
    # Two renames. A reader between them finds no item; after a kill between them, the recovery restores the old item.
    move_aside(target, old)
    try:
        platform.rename(staged, target)
    except BaseException:
        if old.exists():
            platform.rename(old, target)
        raise

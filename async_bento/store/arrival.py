"""How a staged directory becomes an item of a store: in one step, and to stay."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from async_bento.errors import StoreError
from async_bento.store.disk import exchange, make_movable, move_aside, sync_directory
from async_bento.store.scratch import ITEM, PREFIX, remember_change

if TYPE_CHECKING:
    from pathlib import Path

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
            sync_directory(target.parent.parent)
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

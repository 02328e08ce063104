"""The commit of a staged item in steps, so that a caller on an event loop waits for the lock without a thread.

`Store.commit` runs the steps at once, and pulls run them one by one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Generic

from async_bento._core.files import fsync_path
from async_bento._core.tag import LATEST
from async_bento.store.errors import as_store_error
from async_bento.store.filesystem import remove_tree, sync_tree
from async_bento.store.latest import read_latest, write_latest
from async_bento.store.layout import ItemT
from async_bento.store.moves import Move, move_into_store

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento._core.tag import Tag
    from async_bento.store.latest import LatestFiles
    from async_bento.store.locks import Lock

logger = logging.getLogger(__package__)


class Commit(Generic[ItemT]):
    """The commit of one staged item: `prepare` it, `run` it while `lock` is held, `finish` it. The methods block."""

    def __init__(self, latest: LatestFiles[ItemT], staged: Path, tag: Tag, *, replace: bool) -> None:
        self.action = f"write {tag} to {latest.layout.base}"
        self._latest = latest
        self._staging = latest.staging
        self._layout = latest.layout
        self._staged = staged
        self._tag = tag
        self._replace = replace
        self._target = latest.layout.path(tag)

    def prepare(self) -> None:
        """Check that the directory is an item with the tag, and flush it: no other process should wait for that."""
        self._item = self._layout.load(self._tag, self._staged)
        self.lock: Lock = self._staging.name_lock(self._tag.name)
        with as_store_error(self.action):
            sync_tree(self._staged)

    def run(self) -> ItemT:
        """Move the item to its place, or leave the one that is there and not to be replaced; return what is there."""
        directory = self._target.parent
        # `aside` holds the old item, the record of the move and the next `latest`, and is removed with the block.
        with as_store_error(self.action), self._staging.directory() as aside:
            keeps = os.path.lexists(self._target) and not self._replace
            item = self._layout.load(self._tag) if keeps else dataclasses.replace(self._item, path=self._target)
            # Decided before the move, whose record has both for the recovery.
            before, after = read_latest(directory), self._latest.after_commit(item)
            if not keeps:
                lock = self._staging.name_lock_name(self._tag.name)
                move_into_store(self._staged, aside, Move(str(self._target), lock, before, after))
            if after != before:  # after the move: `latest` never names a version that is missing
                write_latest(directory, after, aside / LATEST)
            fsync_path(directory)  # the new names of the item and of `latest`, at once
        return item

    def finish(self) -> None:
        """Do what needs no lock: find the latest version if the commit left that open, and remove the old item."""
        name = self._tag.name
        if self._latest.read(name) is None:
            self._latest.repair(name)
        if self._replace:
            try:
                remove_tree(self._staged)  # where an exchange left the old item
            except OSError:
                logger.warning("cannot remove %s, which holds the replaced %s.", self._staged, self._tag, exc_info=True)

"""The file `<base>/<name>/latest`, from which BentoML reads the version with the newest creation time.

BentoML reads the file without a lock and does not repair it, so it is replaced in one step, after every change.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Generic

from async_bento._core import platform
from async_bento._core.files import FILE_MODE, atomic_write, open_regular
from async_bento._core.tag import LATEST, Tag
from async_bento.errors import NotFoundError, StoreError
from async_bento.store.layout import ItemT, is_tag_part
from async_bento.store.locks import hold

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from async_bento.store.layout import Layout
    from async_bento.store.staging import StagingArea

_REPAIR_TIMEOUT = 1.0  # in seconds; a caller that cannot write `latest` knows the newest version all the same
_REPAIRS = 3  # attempts, since another process may delete the version that was found


def read_latest(directory: Path) -> str | None:
    """Read the `latest` file of a name; None where it is missing, or is not a text."""
    try:
        with open_regular(directory / LATEST) as file:
            return file.read().decode().strip()
    except (OSError, UnicodeDecodeError):  # also a directory or a FIFO; `repair` replaces what it can
        return None


def write_latest(directory: Path, version: str | None, temp_path: Path) -> None:
    """Write the `latest` file of a name, or remove it; the caller holds the lock of the name.

    `temp_path` names a new file, if possible on the filesystem of the name.
    """
    latest = directory / LATEST
    if version is None:
        platform.remove(latest, missing_ok=True)
        return
    # BentoML of another user may read the file: its mode follows the umask.
    try:
        atomic_write(latest, version, mode=FILE_MODE, durable=True, temp_path=temp_path)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the directory is a mount of its own
            raise
        atomic_write(latest, version, mode=FILE_MODE, durable=True)


class LatestFiles(Generic[ItemT]):
    """The `latest` files of a store.

    Reading every version of a name takes time, so it is done without the lock of the name, by `newest`. What is done
    under the lock takes the same time for any number of versions.
    """

    def __init__(self, layout: Layout[ItemT], staging: StagingArea) -> None:
        self.layout = layout
        self.staging = staging

    def read(self, name: str) -> str | None:
        """Read the latest version; None where the file is missing or broken, or names a version that is not there."""
        directory = self.layout.directory(name)
        version = read_latest(directory)
        return version if version and is_tag_part(version) and (directory / version).is_dir() else None

    def newest(self, name: str) -> ItemT | None:
        """Find the version with the newest creation time; of equals, the highest."""

        def age(item: ItemT) -> tuple[datetime, str]:
            return item.creation_time, item.tag.version or ""

        return max(self.layout.load_versions(name), key=age, default=None)

    def after_commit(self, item: ItemT) -> str | None:
        """Decide which version is the latest when an item is in its place; None where all versions must be read."""
        name, version = item.tag.name, item.tag.version
        current = self.read(name)
        if current is None:
            return None if self.layout.has_other_versions(item.tag) else version
        with suppress(NotFoundError, StoreError):
            if self.layout.load(Tag(name, current)).creation_time <= item.creation_time:
                return version
            if current != version:
                return current
        return None  # the latest is broken, or replaced by an older one

    def repair(self, name: str) -> str | None:
        """Find the latest version, and write it into its file if possible; None where the name has no version."""
        for _ in range(_REPAIRS):
            newest = self.newest(name)
            if newest is None:
                return None
            try:
                lock = self.staging.name_lock(name)
                with (  # the lock last, so that it is held for the write alone
                    self.staging.directory() as aside,
                    hold(lock, _REPAIR_TIMEOUT, f"update the latest version of {name}"),
                ):
                    version = self._promote(newest, aside / LATEST)
            except (OSError, StoreError):  # such as in a store that cannot be written
                return newest.tag.version
            if version is not None:
                return version
        return None

    def _promote(self, item: ItemT, temp_path: Path) -> str | None:
        """Write an item's version unless the latest is newer; return the latest, None if the item is gone."""
        name, version = item.tag.name, item.tag.version
        current = self.read(name)
        if current is not None:
            with suppress(NotFoundError, StoreError):
                if self.layout.load(Tag(name, current)).creation_time >= item.creation_time:
                    return current
        if not self.layout.path(item.tag).is_dir():  # deleted since it was read
            return None
        write_latest(self.layout.directory(name), version, temp_path)
        return version

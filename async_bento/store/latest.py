"""The file `<base>/<name>/latest`, from which BentoML reads the version with the newest creation time.

BentoML reads the file without a lock and does not repair it, so it is replaced in one step, after every change.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Generic

from async_bento._core.files import atomic_write
from async_bento.errors import NotFoundError, StoreError
from async_bento.store.layout import ItemT, is_tag_part
from async_bento.store.tag import LATEST, Tag

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from async_bento.store.layout import Layout


class LatestFiles(Generic[ItemT]):
    """The `latest` files of a store. The caller of a method that writes holds the lock of the name.

    Each `temp_path` names a new file on the store's filesystem.
    """

    def __init__(self, layout: Layout[ItemT]) -> None:
        self._layout = layout

    def read(self, name: str) -> str | None:
        """Read the latest version; None where the file is missing or broken, or names a version that is not there."""
        directory = self._layout.directory(name)
        try:
            version = (directory / LATEST).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return version if is_tag_part(version) and (directory / version).is_dir() else None

    def newest(self, name: str, last_committed: str | None = None) -> str | None:
        """Find the version with the newest creation time; of several, the last committed or else the highest."""

        def age(item: ItemT) -> tuple[datetime, bool, str]:
            version = item.tag.version or ""
            return item.creation_time, version == last_committed, version

        newest = max(self._layout.load_versions(name), key=age, default=None)
        return None if newest is None else newest.tag.version

    def repair(self, name: str, temp_path: Path) -> str | None:
        """Write the newest version where the file does not name a version; return the latest version."""
        version = self.read(name) or self.newest(name)
        self._write(name, version, temp_path)
        return version

    def update_after_commit(self, item: ItemT, temp_path: Path) -> None:
        """Write the committed version where it is at least as new as the latest one."""
        name, version = item.tag.name, item.tag.version
        current = self.read(name)
        if current is not None and current != version:
            with suppress(NotFoundError, StoreError):
                if self._layout.load(Tag(name, current)).creation_time <= item.creation_time:
                    self._write(name, version, temp_path)
                return
        newest = self.newest(name, version)
        if newest != current:
            self._write(name, newest, temp_path)

    def update_after_delete(self, name: str, temp_path: Path) -> None:
        """Write the newest remaining version where the deleted one was the latest."""
        if self.read(name) is None:
            self._write(name, self.newest(name), temp_path)

    def _write(self, name: str, version: str | None, temp_path: Path) -> None:
        latest = self._layout.directory(name) / LATEST
        if version is None:
            latest.unlink(missing_ok=True)
            return
        # BentoML of another user may read the file: its mode follows the umask.
        atomic_write(latest, version, mode=0o666, durable=True, temp_path=temp_path)

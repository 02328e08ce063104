"""Where a store has its items, and how they are read: `<base>/<name>/<version>/bento.yaml`."""

from __future__ import annotations

import difflib
import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from async_bento._core import platform
from async_bento._core.tag import Tag
from async_bento.errors import InvalidTagError, NotFoundError, StoreError
from async_bento.store.errors import as_store_error
from async_bento.store.items import Item

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

logger = logging.getLogger(__package__)

ItemT = TypeVar("ItemT", bound=Item)

_SHOWN = 5  # names or versions that a message lists


class Layout(Generic[ItemT]):
    """The items below one directory, read without locks: an item may be replaced or deleted at any time."""

    def __init__(self, item_type: type[ItemT], base: Path) -> None:
        self.item_type = item_type
        self.base = base

    def directory(self, name: str) -> Path:
        """Return the directory of a name, which holds its versions and `latest`."""
        return self.base / name

    def path(self, tag: Tag) -> Path:
        """Return the directory of an item."""
        return self.base / tag.name / (tag.version or "")

    def versions(self, name: str) -> list[str]:
        """List the versions of a name, sorted; none where there is no such name."""
        return list_tag_parts(self.base / name)

    def has_other_versions(self, tag: Tag) -> bool:
        """Whether a name has versions besides that of a tag; as quick for a thousand versions as for two."""
        with suppress(FileNotFoundError), platform.patiently(os.scandir, self.base / tag.name) as entries:
            return any(entry.is_dir() and entry.name != tag.version and is_tag_part(entry.name) for entry in entries)
        return False

    def load(self, tag: Tag, path: Path | None = None) -> ItemT:
        """Read an item from its place or from another path, and check that it has the tag."""
        item = self.item_type.from_path(path or self.path(tag))
        if item.tag != tag:
            raise StoreError(f"cannot read {item.path / item.METADATA_FILE}: the file describes {item.tag}, not {tag}")
        return item

    def load_versions(self, name: str) -> Sequence[ItemT]:
        """Read all versions of a name; skip a broken one with a warning."""
        items: list[ItemT] = []
        for version in self.versions(name):
            try:
                items.append(self.load(Tag(name, version)))
            except NotFoundError:
                pass  # deleted since it was listed
            except StoreError as error:
                logger.warning("skipped a broken %s: %s", self.item_type.TYPE_NAME, error)
        return items

    def not_found(self, tag: Tag, *, download: bool = True) -> NotFoundError:
        """Build the error for a missing item: what the store has instead, and how to `download` the item."""
        if versions := self.versions(tag.name):
            present = f"{tag.name} has {abbreviate(_closest_first(tag.version or '', versions))}"
        elif names := list_tag_parts(self.base):
            present = f"the store has {abbreviate(_closest_first(tag.name, names))}"
        else:
            present = "the store is empty"
        item_type = self.item_type
        hint = f" To download the {item_type.TYPE_NAME}, run `{item_type.PULL_COMMAND} {tag}`." if download else ""
        return NotFoundError(f"no {item_type.TYPE_NAME} {tag} in {self.base}: {present}.{hint}")


def list_tag_parts(path: Path) -> list[str]:
    """List the directories that can be part of a tag, sorted: the names in a store, or the versions of a name."""
    with (
        as_store_error(f"list {path}"),
        suppress(FileNotFoundError, NotADirectoryError),
        platform.patiently(os.scandir, path) as entries,
    ):
        return sorted(entry.name for entry in entries if entry.is_dir() and is_tag_part(entry.name))
    return []


def is_tag_part(name: str) -> bool:
    """Whether a text can be a name or a version as it is; upper case would be lowered."""
    try:
        # The comparison comes first: `Tag` logs a warning when it lowers a name.
        return name == name.lower() and Tag(name).name == name
    except InvalidTagError:
        return False


def _closest_first(wanted: str, names: Sequence[str]) -> list[str]:
    close = difflib.get_close_matches(wanted, names, n=_SHOWN)
    return [*close, *(name for name in names if name not in close)]


def abbreviate(names: Sequence[str]) -> str:
    """Join names and count the rest, like `a, b, c, d, e and 37 more`."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")

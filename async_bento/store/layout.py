"""What a store's directories and `latest` files say, and how a message tells of it."""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from async_bento._core.files import atomic_write
from async_bento.errors import InvalidTagError
from async_bento.store.filesystem import as_store_error
from async_bento.store.tag import LATEST, Tag

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SHOWN = 5
"""Names or versions a message lists; the rest it counts."""


def directories(path: Path) -> list[str]:
    """List the names in a store, or the versions of a name.

    Args:
        path: The store, or the name's directory in it.

    Returns:
        The directories that can be part of a tag, sorted; none where there is no such path.

    Raises:
        StoreError: It cannot be read.
    """
    with as_store_error(f"list {path}"), suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and _is_tag_part(entry.name))
    return []


def _is_tag_part(name: str) -> bool:
    try:
        return name == name.lower() and Tag(name).name == name
    except InvalidTagError:
        return False


def read_latest(directory: Path) -> str | None:
    """Read which version is the latest.

    Args:
        directory: A name's directory.

    Returns:
        The version; None where `latest` is missing, says nothing sensible, or names what is not there.
    """
    try:
        version = (directory / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return version if _is_tag_part(version) and (directory / version).is_dir() else None


def write_latest(directory: Path, version: str | None, *, temp_path: Path) -> None:
    """Write which version is the latest, in one step: BentoML reads this file without a lock.

    Args:
        directory: A name's directory.
        version: The version; None for none any more.
        temp_path: A file that is not there yet and nobody else's, on the same filesystem.
    """
    latest = directory / LATEST
    if version is None:
        latest.unlink(missing_ok=True)
        return
    # BentoML of another user may read the file: its mode follows the umask.
    atomic_write(latest, version, mode=0o666, durable=True, temp_path=temp_path)


def closest(wanted: str, names: Sequence[str]) -> list[str]:
    """Sort names by how well they fit.

    Args:
        wanted: What somebody wrote.
        names: What there is.

    Returns:
        The names: what looks like `wanted` first, the rest as it was.
    """
    close = difflib.get_close_matches(wanted, names, n=SHOWN)
    return [*close, *(name for name in names if name not in close)]


def abbreviate(names: Sequence[str]) -> str:
    """Tell of names, but not of hundreds.

    Args:
        names: The names.

    Returns:
        Like `a, b, c, d, e and 37 more`.
    """
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")

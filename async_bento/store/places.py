"""Find the staging directory of a store.

1. In `tmp` next to the store, as BentoML's temporary files: if everyone who may write to the store may write there, and
   one rename moves a directory from there into the store.
2. Otherwise within the store: where the store is a mount of its own, or its parent directory is another user's.
3. Otherwise in a directory on another filesystem, from where a commit copies: exFAT, for example, has no colons.
"""

from __future__ import annotations

import errno
import secrets
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from async_bento._core import platform
from async_bento.errors import StoreError
from async_bento.store.filesystem import is_writable, share_like
from async_bento.store.locks import Lock

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "async-bento-"
"""Marks our entries in a directory that BentoML uses too."""

LOCK = f"{PREFIX}lock-"

_SIBLING = "tmp"

# Every directory in a store is an item for BentoML, but not this one: BentoML (1.2 to 1.4) takes the name for a tag,
# finds no such version, and goes to the next directory. Other names would be listed as items, or break its listing.
_WITHIN = "async-bento:tmp"

# Always the same name, so that the next probe replaces one that a killed process left. A file: neither BentoML nor this
# package takes a file for an item.
PROBE = f".{PREFIX}probe"

_SHARE_SECONDS = 0.1
"""How long another process may take between making a staging directory and sharing it."""

# What a directory that cannot be used for staging answers. A full or a failing disk is an error instead.
_UNSUITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EINVAL, errno.EXDEV, errno.ENOENT}
)


def staging_root(base: Path) -> Path:
    """Choose and make the staging directory of a store, and make the store; raise OSError where it is not writable."""
    base.mkdir(parents=True, exist_ok=True)
    for root in _on_filesystem_of(base):
        try:
            _make(root, base)
            if _is_shared(root, base) and is_writable(root) and _is_on_filesystem_of(root, base):
                return root
        except OSError as error:  # the next place may do
            if error.errno not in _UNSUITABLE:
                raise
    _touch_probe(base)  # fails where the store is not writable, before a download rather than after it
    return _elsewhere(base)


def _make(root: Path, base: Path) -> None:
    """Make a staging directory with the mode and the group of its store."""
    if root.is_dir():
        return
    try:
        root.mkdir()
    except FileExistsError:
        if not root.is_dir():
            raise
        if not _is_shared(root, base):
            time.sleep(_SHARE_SECONDS)
    else:
        share_like(root, base)


def existing_roots(base: Path) -> Iterator[Path]:
    """The staging directories that other processes may use for a store."""
    for root in _on_filesystem_of(base):
        with suppress(OSError):
            if root.is_dir() and _is_shared(root, base):
                yield root


def rename_reaches(probe: Path, directory: Path) -> bool:
    """Whether one rename moves a new file into a directory of the store; raise OSError where it may not."""
    # Tried: a bind mount of the same filesystem has the same device number, but no rename crosses its border.
    probe.touch()
    try:
        platform.replace(probe, directory / PROBE)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    finally:
        platform.remove(probe, missing_ok=True)
    platform.remove(directory / PROBE, missing_ok=True)  # another process with the same probe may have been faster
    return True


def _is_on_filesystem_of(root: Path, base: Path) -> bool:
    probe = root / f"{PREFIX}{secrets.token_hex(8)}"
    with Lock(root / f"{LOCK}{probe.name}"):  # so that a recovery removes only the probe of a killed process
        return rename_reaches(probe, base)


def _on_filesystem_of(base: Path) -> tuple[Path, ...]:
    sibling, within = base.parent / _SIBLING, base / _WITHIN
    if platform.refusal_of_name(_WITHIN):
        return (sibling,)
    # Where one user of a store had to stage within it, the others do too, or they would not share locks.
    return (within, sibling) if within.is_dir() else (sibling, within)


def _is_shared(root: Path, base: Path) -> bool:
    """Whether everyone who may write to a store may write to a staging directory; not in a sticky one like `/tmp`."""
    ours = root.stat()
    if ours.st_mode & stat.S_ISVTX:
        return False
    if ours.st_mode & stat.S_IWOTH or not base.exists():
        return True
    theirs = base.stat()
    if theirs.st_mode & stat.S_IWOTH:
        return False
    if theirs.st_mode & stat.S_IWGRP:
        return bool(ours.st_mode & stat.S_IWGRP) and ours.st_gid == theirs.st_gid
    return ours.st_uid == theirs.st_uid


def _touch_probe(base: Path) -> None:
    (base / PROBE).touch()
    platform.remove(base / PROBE, missing_ok=True)


def _elsewhere(base: Path) -> Path:
    sibling = base.parent / _SIBLING
    with suppress(OSError):
        sibling.mkdir(exist_ok=True)
        if not sibling.stat().st_mode & stat.S_ISVTX and is_writable(sibling):
            return sibling
    try:
        directory = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise StoreError(
            f"cannot stage items for {base}: no temporary directory is writable. Set TMPDIR to a directory that is."
        ) from error
    # Others may write to the temporary directory, so a directory or a link of this name may be theirs.
    own = Path(directory, f"bento-staging-{platform.user_id()}")
    with suppress(FileExistsError):
        own.mkdir(mode=platform.PRIVATE_DIRECTORY)
    status = own.lstat()  # not that of a link's target
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == platform.user_id()
    if not is_own or (platform.HAS_MODES and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
        raise StoreError(f"cannot stage items in {own}: the directory is another user's. Set TMPDIR to your own.")
    return own

"""Backup and restore of a registry that keeps everything in a directory.

A backup is a directory in the same layout, so that a registry can also run on it:

    <backup>/registry.sqlite3   the records, as of one moment
    <backup>/blobs/<key>/       the bytes of every bento and model
    <backup>/api_token, <backup>/signing_key

The bytes under a key never change, so a second backup into the same directory copies only what is new.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from async_bento._core import platform
from async_bento._core.concurrency import Threads, check_cancelled, run_in_new_thread
from async_bento._core.files import fsync_path
from async_bento.errors import BentoError, ConfigError
from async_bento.registry.blobs.disk_files import KEY_PATTERN, part_name
from async_bento.registry.directory import BLOBS, DATABASE, SECRETS
from async_bento.registry.records.blobs import BlobRecords
from async_bento.registry.records.database import Database, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_bento.registry.records.blobs import Blob

_ATTEMPTS = 3
"""Snapshots, if bytes are deleted between a snapshot and the copy."""

# Records per query, also held in memory.
_PER_PAGE = 100


class Copied(NamedTuple):
    """The items of a backup, the bytes that were copied into it now, and the keys whose bytes are missing."""

    n_items: int
    n_bytes: int
    missing: list[str]


async def back_up(root: Path, target: Path, database: Database, copied: Callable[[int], object]) -> Copied:
    """Copy a registry, which may run meanwhile, into a directory; `copied` gets the bytes of each item.

    An earlier backup in the directory is brought up to date; killed on the way, it still is one. Raise `ConfigError` if
    the directory holds something else, and `BentoError` if the disk fails.
    """
    threads = Threads(1)
    snapshot = target / f".{DATABASE}"
    keys: set[str] = set()
    missing: list[str] = []
    n_bytes = 0
    try:
        for _ in range(_ATTEMPTS):
            await threads.run(_prepare, root, target)
            await database.snapshot(snapshot)
            keys, missing, size = await _copy_blobs(root, target, snapshot, threads, copied)
            n_bytes += size
            if not missing:  # else these were deleted after the snapshot, or are damaged
                break
        # In this order: the database of the earlier backup names bytes that are removed next.
        await threads.run(_finish, root, target, snapshot)
        await threads.run(_remove_others, target / BLOBS, keys)
    except OSError as error:
        raise BentoError(f"cannot back up into {target}: {error.strerror or error}") from error
    finally:
        threads.close()
    return Copied(len(keys), n_bytes, missing)


async def restore(backup: Path, root: Path) -> None:
    """Copy a backup into a directory that is empty or does not exist, or where an earlier copy was interrupted.

    Raise `ConfigError` for another one, and `BentoError` if the disk fails.
    """
    try:
        await run_in_new_thread(_restore, backup, root)
    except OSError as error:
        raise BentoError(f"cannot restore into {root}: {error.strerror or error}") from error


async def _copy_blobs(
    root: Path, target: Path, snapshot: Path, threads: Threads, copied: Callable[[int], object]
) -> tuple[set[str], list[str], int]:
    """Copy the bytes that a snapshot names; return their keys, those whose bytes are missing, and the bytes copied."""
    database = Database(sqlite_url(snapshot))
    await database.open()
    try:
        records = BlobRecords(database)
        last_id = n_bytes = 0
        keys: set[str] = set()
        missing: list[str] = []
        while page := await records.page_of_current(last_id, _PER_PAGE):
            for blob in page:
                keys.add(blob.key)
                size = await threads.run(_copy_blob, root / BLOBS, target / BLOBS, blob)
                if size is None:
                    missing.append(blob.key)
                n_bytes += size or 0
                copied(size or 0)
            last_id = page[-1].id
    finally:
        await database.close()
    return keys, missing, n_bytes


def _prepare(root: Path, target: Path) -> None:
    if target.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"cannot back up into {target}: it is in the directory of the registry. Choose another one.")
    if target.exists() and any(target.iterdir()) and not (target / BLOBS).is_dir():
        raise ConfigError(f"cannot back up into {target}: it holds something else. Choose an empty directory.")
    (target / BLOBS).mkdir(mode=0o700, parents=True, exist_ok=True)
    target.chmod(0o700)
    platform.remove(target / f".{DATABASE}", missing_ok=True)


def _copy_blob(source: Path, target: Path, blob: Blob) -> int | None:
    """Copy the parts that the target lacks; return their bytes, None if one is missing."""
    assert blob.content is not None, "the bytes of an item are complete"
    copied = 0
    (target / blob.key).mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(blob.content.parts, start=1):
        check_cancelled()
        name = part_name(number, part.md5)
        new = target / blob.key / name
        # Its name has the MD5, and an incomplete copy has another name.
        if new.exists() and new.stat().st_size == part.size:
            continue
        unfinished = new.with_name(f".{name}")
        try:
            shutil.copyfile(source / blob.key / name, unfinished)
        except FileNotFoundError:
            return None
        fsync_path(unfinished)  # the next backup takes a part of this name and size as complete
        platform.replace(unfinished, new)
        copied += part.size
    return copied


def _remove_others(blobs: Path, kept: set[str]) -> None:
    """Remove the bytes of an earlier backup that the registry no longer has."""
    for directory in blobs.glob(KEY_PATTERN):
        if directory.relative_to(blobs).as_posix() not in kept:
            shutil.rmtree(directory)


def _finish(root: Path, target: Path, snapshot: Path) -> None:
    for name in SECRETS:
        with suppress(FileNotFoundError):
            shutil.copyfile(root / name, target / name)
            (target / name).chmod(0o600)
    snapshot.chmod(0o600)
    fsync_path(snapshot)
    platform.replace(snapshot, target / DATABASE)


def _restore(backup: Path, root: Path) -> None:
    if not (backup / DATABASE).exists():
        raise ConfigError(f"cannot restore {backup}: it holds no complete backup. Pass the directory of one.")
    unfinished = root / f".restoring-{DATABASE}"
    # Unless an interrupted restore has left what it holds.
    if root.exists() and any(root.iterdir()) and not unfinished.exists():
        raise ConfigError(f"cannot restore into {root}: it is not empty. Choose an empty directory.")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished.touch(mode=0o600)
    shutil.copytree(backup / BLOBS, root / BLOBS, copy_function=_copy_durably, dirs_exist_ok=True)
    (root / BLOBS).chmod(0o700)
    for name in SECRETS:
        with suppress(FileNotFoundError):
            shutil.copyfile(backup / name, root / name)
            (root / name).chmod(0o600)
    # The database last: a directory without one is no registry.
    _copy_durably(backup / DATABASE, unfinished)
    platform.replace(unfinished, root / DATABASE)


def _copy_durably(source: str | Path, target: str | Path) -> None:
    shutil.copyfile(source, target)
    fsync_path(Path(target))

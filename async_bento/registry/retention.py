"""Retention: find and delete old versions."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING

from async_bento._core.concurrency import Threads, for_each
from async_bento.errors import ConfigError
from async_bento.registry.directory import try_lock
from async_bento.registry.item_types import ITEM_TYPES
from async_bento.registry.records.base import utc_now
from async_bento.registry.tokens import Actor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from datetime import datetime
    from pathlib import Path

    from async_bento.registry.item_types import ItemType
    from async_bento.registry.records.blobs import Blob
    from async_bento.registry.records.retention import RetentionRecords, Version
    from async_bento.registry.uploads import Uploads

MAX_AGE = 100 * 365 * 24 * 3600.0
"""Seconds. Databases have no time before the year 1."""

_BATCH = 100
"""Versions that one transaction deletes, since other writers of SQLite wait for it; repositories of one query."""

_CONCURRENT = 4

_POLICY = Actor("retention")
"""Deletes what the registry's policy does not keep."""


@dataclass(frozen=True)
class RetentionPolicy:
    """The versions to delete: of repositories that match a pattern, those that every given condition allows.

    Fields:
        keep: The newest complete versions of each repository that stay, and all versions registered after them.
        older_than: Versions that were registered or pushed within this time stay, in seconds.
        repositories: The pattern of names.
        item_types: Whether bentos, models or both are deleted; bentos come first, since they name models.
    """

    keep: int | None = None
    older_than: float | None = None
    repositories: str = "*"
    item_types: Sequence[ItemType] = ITEM_TYPES

    def __post_init__(self) -> None:
        if self.keep is None and self.older_than is None:
            raise ConfigError("a retention policy needs a condition. Pass a number of versions, an age or both.")
        if self.keep is not None and self.keep < 1:
            raise ConfigError(f"invalid number of versions to keep: {self.keep} is below 1. Keep at least one.")
        if self.older_than is not None and not 0 < self.older_than <= MAX_AGE:
            raise ConfigError("invalid age of versions to delete: use more than 0 seconds and at most 100 years.")


class Pruner:
    """Deletes the versions that a policy does not keep, as of the time of its creation."""

    def __init__(
        self, records: RetentionRecords, policy: RetentionPolicy, now: datetime | None = None, *, by: Actor = _POLICY
    ) -> None:
        self._by = by
        self._records = records
        self._policy = policy
        self._now = now or utc_now()
        self.n_repositories = 0
        """Repositories that match the pattern; known after `plan`."""

    async def plan(self) -> list[Version]:
        """Find what the policy does not keep: bentos first, each repository's oldest versions first."""
        planned: list[Version] = []
        bentos: set[int] = set()
        for item_type in ITEM_TYPES:
            if item_type not in self._policy.item_types:
                continue
            found = await self._records.repositories(item_type)
            matching = [each for each, name in found if fnmatchcase(name, self._policy.repositories)]
            self.n_repositories += len(matching)
            for start in range(0, len(matching), _BATCH):
                batch = matching[start : start + _BATCH]
                planned += await self._records.prunable(batch, self._policy, self._now, bentos)
            bentos = {version.item_id for version in planned}
        return planned

    async def delete(self, planned: Sequence[Version]) -> AsyncGenerator[tuple[list[Version], list[Blob]]]:
        """Delete planned versions, unless they are to be kept now; yield those of each transaction, with their bytes.

        The bytes stay in the storage; their records mark them as unused.
        """
        for _, versions in groupby(planned, key=lambda version: version.kind):
            of_kind = [*versions]
            for start in range(0, len(of_kind), _BATCH):
                yield await self._records.delete(of_kind[start : start + _BATCH], self._policy, self._now, self._by)


async def remove_bytes(uploads: Uploads, released: Sequence[Blob], root: Path | None) -> list[Blob]:
    """Remove unused bytes, and return those that stay for the cleanup of a registry.

    All bytes in a directory stay while a registry runs on it: only that process knows which files it reads.
    """
    left: list[Blob] = []

    async def remove(blob: Blob) -> None:
        if not await uploads.remove(blob):
            left.append(blob)

    if root is None:
        await for_each(remove, released, _CONCURRENT)
        return left
    threads = Threads(1)
    try:
        async with try_lock(root, threads) as is_locked:
            if not is_locked:
                return [*released]
            await for_each(remove, released, _CONCURRENT)
    finally:
        threads.close()
    return left

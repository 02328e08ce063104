"""The check of a registry, for `registry check`: does the storage still have the bytes that the records name?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from async_bento._core.concurrency import for_each
from async_bento.registry.item_types import ITEM_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_bento.registry.blobs.base import Blobs
    from async_bento.registry.records.blobs import Blob, BlobRecords

_CONCURRENT = 4
_PER_PAGE = 100


class Damage(NamedTuple):
    """An item whose bytes are not what was pushed: `bento` or `model`, its tag, where they are, and what is wrong."""

    kind: str
    tag: str
    key: str
    reason: str


async def find_damage(records: BlobRecords, blobs: Blobs, checked: Callable[[int], None]) -> list[Damage]:
    """Compare the bytes of all items with their records; `checked` gets the bytes of each item.

    Raise `RegistryError` if the storage cannot be reached.
    """
    damaged: list[Damage] = []

    async def check(blob: Blob) -> None:
        assert blob.content is not None, "the bytes of an item are complete"
        reason = await blobs.find_damage(blob.key, blob.content)
        if reason is not None:
            now = await records.find(blob.key)
            if now is not None and now.state == "current":  # not replaced or deleted meanwhile
                damaged.append(_describe(blob, reason))
        checked(blob.content.size)

    last_id = 0
    while page := await records.page_of_current(last_id, _PER_PAGE):
        await for_each(check, page, _CONCURRENT)
        last_id = page[-1].id
    return sorted(damaged)


def _describe(blob: Blob, reason: str) -> Damage:
    items, name, version = blob.key.split("/")[:3]
    (kind,) = (each.item for each in ITEM_TYPES if each.items == items)
    return Damage(kind, f"{name}:{version}", blob.key, reason)

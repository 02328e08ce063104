"""A walk through a list in the registry, in which records are added and deleted meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from async_bento.rest.schemas import ItemSchema, ListSchema, record_tag

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

RecordT = TypeVar("RecordT", bound=ItemSchema)

PAGE_SIZE = 100
"""Records per request when a list is iterated."""

_MAX_REPEATS = 2


class Fetch(Protocol[RecordT]):
    """Requests a page: `count` records from the position `start` on; None where the registry has no such list."""

    async def __call__(self, *, start: int, count: int) -> ListSchema[RecordT] | None:
        """Request the page."""
        ...


async def walk(fetch: Fetch[RecordT], page_size: int, limit: int | None = None) -> AsyncGenerator[list[RecordT]]:
    """Yield the records of each page that no earlier page had, `limit` of them in all.

    Each page but the first begins at the last record of the page before. Records that were added have moved that record
    to a later position, and records that were deleted to an earlier one. A page that has no known record does not
    continue the walk, so the walk looks for the last known record elsewhere.
    """
    seen: set[str] = set()
    left, start, total, step, repeats = limit, 0, 0, page_size, 0
    page_before: list[str] = []
    while left is None or left > 0:
        overlap = min(start, 1)
        count = (page_size if left is None else min(page_size, left)) + overlap
        page = await fetch(start=start, count=count)
        keys = [_key(record) for record in page.items] if page else []
        if page is None or (not keys and not 0 < page.total <= start):
            return
        if start and seen.isdisjoint(keys):
            shift = page.total - total if page.total and step == page_size else 0  # tried once, where totals are stated
            start = max(0, start + shift if shift else min(start, page.total or start) - step)
            step *= 2
            continue
        new = [record for record, key in zip(page.items, keys, strict=True) if key not in seen][:left]
        seen.update(keys)
        if new:
            left = None if left is None else left - len(new)
            yield new
        end = start + len(keys)
        is_last = end >= page.total if page.total else len(keys) < count and not new  # 0: the server states no total
        # A server that ignores `start` sends one page again and again; after additions, one page may repeat by chance.
        repeats = repeats + 1 if keys == page_before and page.start != start else 0
        if is_last or repeats == _MAX_REPEATS:
            return
        page_before, total, step = keys, page.total, page_size
        start = max(end - 1, start + 1)


def _key(record: ItemSchema) -> str:
    return record.uid or record_tag(record)

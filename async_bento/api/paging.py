"""Read all pages of a list in the registry while other clients add and delete records."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from async_bento.config import MiB
from async_bento.rest.schemas import ItemSchema, ListSchema, record_tag

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

RecordT = TypeVar("RecordT", bound=ItemSchema)

PAGE_SIZE = 100
"""Records of the first page when a list is iterated."""

LARGE_PAGE_SIZE = 1000
"""Records of the pages after it. A Yatai sends ten pages of 100 in four times the time of one of 1,000."""

PAGES_AT_ONCE = 4
"""Large pages requested concurrently, once the first of them has shown how many records there are."""

_PAGE_BYTES = 16 * MiB  # of a large page, where the records of the first page are as long as those of the others
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
    left, start, total, size, step, repeats = limit, 0, 0, page_size, page_size, 0
    page_before: list[str] = []
    pages = _Pages(fetch)
    while left is None or left > 0:
        overlap = min(start, 1)
        count = (size if left is None else min(size, left)) + overlap
        page = await pages.get(start, count, size, left if step == size else 0)
        keys = [_key(record) for record in page.items] if page else []
        # An empty page does not end the walk if deletions have left fewer records than `start`.
        if page is None or (not keys and not 0 < page.total <= start):
            return
        if start and seen.isdisjoint(keys):
            if pages.drop_ahead():  # this page may be older than the one before
                continue
            shift = page.total - total if page.total and step == size else 0  # tried once, where totals are stated
            start = max(0, start + shift if shift else min(start, page.total or start) - step)
            step *= 2  # the record may be any number of pages away
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
        if len(keys) < count:  # the server has a maximum of its own
            size = max(1, len(keys) - overlap)
        elif not page_before:
            size = _large_page_size(page.items, page_size)
        pages.total = page.total if page_before and new else 0
        page_before, total, step = keys, page.total, size
        # Beyond the start in any case, or a page of one record would be requested for ever.
        start = max(end - 1, start + 1)


async def read_first(fetch: Fetch[RecordT], page_size: int, limit: int | None) -> tuple[list[RecordT], int]:
    """Return the first records of a list, `limit` of them, and how many there are by the page that was read last."""
    total = 0

    async def fetch_counted(*, start: int, count: int) -> ListSchema[RecordT] | None:
        nonlocal total
        page = await fetch(start=start, count=count)
        total = page.total if page else 0
        return page

    if limit == 0:  # only the total is wanted
        await fetch_counted(start=0, count=1)
    async with aclosing(walk(fetch_counted, page_size, limit)) as pages:
        records = [record async for page in pages for record in page]
    return records, max(total, len(records))  # 0: the server states no total


class _Pages(Generic[RecordT]):
    """The pages of a walk, some of them requested together with an earlier one.

    Records may move between two requests that run concurrently, but as long as a page has a known record, none is
    missing between the known records and the others of the page, whenever it was made.
    """

    def __init__(self, fetch: Fetch[RecordT]) -> None:
        self.total = 0  # of the records; 0 as long as no page is to be requested ahead
        self._fetch = fetch
        self._ahead: dict[tuple[int, int], ListSchema[RecordT] | None] = {}
        self._was_ahead = False

    async def get(self, start: int, count: int, size: int, left: int | None) -> ListSchema[RecordT] | None:
        """A page, after which `left` records minus those of the page are wanted, `size` at a time."""
        self._was_ahead = (start, count) in self._ahead
        if not self._was_ahead:
            self._ahead = await self._request([(start, count), *self._following(start, count, size, left)])
        return self._ahead.pop((start, count))

    def drop_ahead(self) -> bool:
        """Whether the last page was requested ahead; if so, it is requested again."""
        self._ahead.clear()
        return self._was_ahead

    def _following(self, start: int, count: int, size: int, left: int | None) -> Iterator[tuple[int, int]]:
        for _ in range(PAGES_AT_ONCE - 1):
            left = None if left is None else left - (count - min(start, 1))
            start += count - 1
            if start + 1 >= self.total or (left is not None and left <= 0):
                return
            count = (size if left is None else min(size, left)) + 1
            yield start, count

    async def _request(self, positions: list[tuple[int, int]]) -> dict[tuple[int, int], ListSchema[RecordT] | None]:
        """Request pages concurrently; the first error cancels the other requests and is raised."""
        tasks = [asyncio.ensure_future(self._fetch(start=start, count=count)) for start, count in positions]
        try:
            return dict(zip(positions, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _large_page_size(records: list[RecordT], page_size: int) -> int:
    longest = max(len(record.model_dump_json()) for record in records)
    return max(page_size, min(LARGE_PAGE_SIZE, _PAGE_BYTES // longest))


def _key(record: ItemSchema) -> str:
    return record.uid or record_tag(record)

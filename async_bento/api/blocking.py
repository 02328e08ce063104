"""Steps of the blocking APIs that run on their event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.item_api import ItemAPI
    from async_bento.api.kinds import ItemT, RecordT
    from async_bento.api.loop_thread import LoopThread
    from async_bento.api.push import PushResult
    from async_bento.api.sync_item_api import Push
    from async_bento.rest.client import RestApiClient


def iterate(api: ItemAPI[ItemT, RecordT], loop: LoopThread, search: str | None, query: str | None) -> Iterator[RecordT]:
    """Iterate over records, blocking."""
    # Pages, not records: each way to the loop's thread and back costs more than a record.
    pages = api._pages(search=search, query=query)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its twin
    while True:  # the generator holds nothing between two pages
        try:
            page = loop.run(pages.__anext__)
        except StopAsyncIteration:
            return
        yield from page


async def copy_items(
    copy: Push, target: AsyncBentoAPI, tag: object, *, force: bool, threads: int, **options: bool
) -> PushResult | list[PushResult]:
    """Copy to the registry of an API whose own event loop may be running other calls."""
    async with target._twin() as twin:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its twin
        return await copy(tag, twin, force=force, threads=threads, **options)


async def close_api(api: AsyncBentoAPI, client: RestApiClient | None) -> None:
    """Close an API, and the client that was passed to it."""
    await api.aclose()
    if client is not None:
        await client.aclose()  # its owner has no event loop to close it on

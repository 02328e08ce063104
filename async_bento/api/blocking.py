"""Steps of the blocking APIs that run on their event loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from async_bento._core.concurrency import shielded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_bento.api.async_api import AsyncBentoAPI
    from async_bento.api.item_api import ItemAPI
    from async_bento.api.kinds import ItemT, RecordT
    from async_bento.api.loop_thread import LoopThread, Start
    from async_bento.api.push import PushResult
    from async_bento.api.sync_item_api import Push
    from async_bento.rest.client import RestApiClient

_POLL_INTERVAL = 0.05  # seconds; a loop that has ended runs no further callback, so nothing could set an event


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
    copy: Push, target: AsyncBentoAPI, start: Start, tag: object, *, force: bool, threads: int, **options: bool
) -> PushResult | list[PushResult]:
    """Copy to the registry of `target`, on whose event loop `start` starts calls; closing `target` ends the copy."""
    loop, is_copied = asyncio.get_running_loop(), False
    async with target._twin() as twin:  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - its twin

        async def close_twin() -> None:
            """Keep a call of the target open during the copy; if the target cancels it, close the twin."""
            async with target._resources.call():  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
                try:
                    await asyncio.Event().wait()
                finally:
                    if not is_copied:
                        await shielded(_close_on(loop, twin))

        call = start(close_twin())
        try:
            return await copy(tag, twin, force=force, threads=threads, **options)
        finally:
            is_copied = True
            call.cancel()


async def _close_on(loop: asyncio.AbstractEventLoop, api: AsyncBentoAPI) -> None:
    """Close an API that is used on another event loop, unless that ends before."""
    with suppress(RuntimeError):  # it has ended
        closing = asyncio.run_coroutine_threadsafe(api.aclose(), loop)
        while not (closing.done() or loop.is_closed()):  # noqa: ASYNC110 - see _POLL_INTERVAL
            await asyncio.sleep(_POLL_INTERVAL)


async def close_api(api: AsyncBentoAPI, client: RestApiClient | None) -> None:
    """Close an API, and the client that was passed to it."""
    await api.aclose()
    if client is not None:
        await client.aclose()  # its owner has no event loop to close it on

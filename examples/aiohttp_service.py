"""An aiohttp service that pulls its bento while it starts, and says how far it has come.

    BENTO=iris_classifier python examples/aiohttp_service.py

`GET /ready` answers 503 and the share that has come, until the bento is there: what a load balancer wants to know. It
listens meanwhile, and a process that is stopped in mid-pull goes on where it was when it starts again.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from async_bento import AsyncBentoAPI, BentoError, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Arrival:
    """The bento of this service, which may still be on its way."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.share = 0.0
        self.path: str | None = None
        self.error: str | None = None

    def listen(self, event: ProgressEvent) -> None:
        """Called on the event loop for each step of the pull."""
        if event.kind == "bento" and event.bytes_total:
            self.share = event.bytes_done / event.bytes_total

    async def pull(self) -> None:
        try:
            async with AsyncBentoAPI(progress=self.listen) as api:
                self.path = str((await api.pull(self.tag, with_models=True)).path)
        except BentoError as error:
            self.error = str(error)


ARRIVAL = web.AppKey("arrival", Arrival)


async def ready(request: web.Request) -> web.Response:
    arrival = request.app[ARRIVAL]
    if arrival.error:
        return web.json_response({"error": arrival.error}, status=500)
    if arrival.path is None:
        return web.json_response({"share": round(arrival.share, 3)}, status=503, headers={"Retry-After": "1"})
    return web.json_response({"bento": arrival.path})


async def pulling(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[ARRIVAL].pull())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def make_app(tag: str) -> web.Application:
    app = web.Application()
    app[ARRIVAL] = Arrival(tag)
    app.cleanup_ctx.append(pulling)
    app.router.add_get("/ready", ready)
    return app


if __name__ == "__main__":
    web.run_app(make_app(os.environ["BENTO"]), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))

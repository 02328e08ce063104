"""An aiohttp service that pulls its bento at startup and reports the progress.

    BENTO=iris_classifier python examples/aiohttp_service.py

`GET /ready` answers 503 with the progress until the bento is in the store, so you can use it as a readiness check.
If the process stops during the pull, the next start resumes the pull.
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


class Startup:
    """The state of the pull: running, complete or failed."""

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.path: str | None = None
        self.error: str | None = None
        self._events: dict[int, ProgressEvent] = {}  # the last event of the bento and of each model

    def listen(self, event: ProgressEvent) -> None:
        """Record the progress; called on the event loop."""
        self._events[event.id] = event

    def progress(self) -> dict[str, int]:
        """Return the transferred bytes of the bento and its models, and the total size as far as it is known."""
        events = self._events.values()
        return {
            "bytes_done": sum(event.bytes_done for event in events),
            "bytes_total": sum(event.bytes_total or 0 for event in events),
        }

    async def pull(self) -> None:
        try:
            async with AsyncBentoAPI(progress=self.listen) as api:
                self.path = str((await api.pull(self.tag, with_models=True)).path)
        except BentoError as error:
            self.error = str(error)


STARTUP = web.AppKey("startup", Startup)


async def ready(request: web.Request) -> web.Response:
    startup = request.app[STARTUP]
    if startup.error:
        return web.json_response({"error": startup.error}, status=500)
    if startup.path is None:
        return web.json_response(startup.progress(), status=503, headers={"Retry-After": "1"})
    return web.json_response({"bento": startup.path})


async def pull_in_background(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[STARTUP].pull())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def make_app(tag: str) -> web.Application:
    app = web.Application()
    app[STARTUP] = Startup(tag)
    app.cleanup_ctx.append(pull_in_background)
    app.router.add_get("/ready", ready)
    return app


if __name__ == "__main__":
    web.run_app(make_app(os.environ["BENTO"]), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))

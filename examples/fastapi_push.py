"""A FastAPI endpoint that pushes a bento in the background, with one client for all requests.

    uvicorn --app-dir examples fastapi_push:app

`POST /pushes/iris_classifier:v3` starts the push and answers 202. `GET /pushes/iris_classifier:v3` returns the
progress. Without a version, both use the latest one. The client is closed when the application stops.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from fastapi import FastAPI, HTTPException

from async_bento import AsyncBentoAPI, BentoError, BentoStore, NotFoundError, ProgressEvent

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from anyio.abc import TaskGroup


@dataclass
class Push:
    """The state of one push."""

    tag: str
    state: str = "waiting"
    bytes_done: int = 0
    bytes_total: int | None = None
    error: str | None = None


pushes: dict[str, Push] = {}


def listen(event: ProgressEvent) -> None:
    if event.kind == "bento" and event.tag in pushes:
        push = pushes[event.tag]
        push.state, push.bytes_done, push.bytes_total = event.phase, event.bytes_done, event.bytes_total


async def push_and_record(api: AsyncBentoAPI, tag: str) -> None:
    try:
        await api.push(tag)
    except BentoError as error:
        pushes[tag].state, pushes[tag].error = "failed", str(error)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with AsyncBentoAPI(progress=listen) as api, anyio.create_task_group() as tasks:
        app.state.api, app.state.tasks = api, tasks
        yield
        tasks.cancel_scope.cancel()  # a running push reports to the registry; the next POST resumes it


app = FastAPI(lifespan=lifespan)


async def exact(tag: str) -> str:
    """Return the tag with its version: progress events have the version."""
    try:
        return str((await anyio.to_thread.run_sync(BentoStore().get, tag)).tag)
    except NotFoundError as error:
        raise HTTPException(404, str(error)) from error


@app.post("/pushes/{tag}", status_code=202)
async def start(tag: str) -> Push:
    tag = await exact(tag)
    if tag not in pushes or pushes[tag].state in {"failed", "done", "skipped"}:
        pushes[tag] = Push(tag)
        tasks: TaskGroup = app.state.tasks
        tasks.start_soon(push_and_record, app.state.api, tag)
    return pushes[tag]


@app.get("/pushes/{tag}")
async def status(tag: str) -> Push:
    tag = await exact(tag)
    if tag not in pushes:
        raise HTTPException(404, f"there is no push of {tag}")
    return pushes[tag]

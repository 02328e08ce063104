"""A registry behind a recorder, so that a test can compare the requests."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
from aiohttp import web

from tests.interop.homes import Registry
from tests.servers import close_server


class Recorded(NamedTuple):
    """A registry behind a recorder, with the JSON bodies by request, and the BentoML versions in the headers."""

    endpoint: str
    api_token: str
    bodies: dict[str, list]
    versions: set[str | None]


@asynccontextmanager
async def recorded(root):
    registry = Registry(root)
    await registry.open()
    bodies: dict[str, list] = defaultdict(list)
    versions: set[str | None] = set()

    async def forward(request: web.Request) -> web.Response:
        body = await request.read()
        bodies[f"{request.method} {request.path_qs}"].append(json.loads(body) if body else None)
        versions.add(request.headers.get("X-Bentoml-Version"))
        headers = {name: value for name, value in request.headers.items() if name not in {"Host", "Content-Length"}}
        url = registry.endpoint + request.path_qs
        # Without the Host header, presigned URLs name the registry itself, so that only the API is recorded.
        async with session.request(request.method, url, data=body, headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            host, port = runner.addresses[0][:2]
            yield Recorded(f"http://{host}:{port}", registry.api_token, bodies, versions)
    finally:
        await close_server(runner)
        await registry.close()

"""Operation of a registry: readiness, access log, metrics, and shutdown."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from async_bento.registry.connections import SERVER_NAME
from async_bento.registry.errors import RegistryError, StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_bento.registry.base_url import BaseUrl
    from async_bento.registry.metrics import Metrics

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

REQUEST_ID = web.RequestKey("request_id", str)
ADDRESS = web.RequestKey("address", str)
"""The IP address of the client, as the proxies in front name it."""

_READY_TIMEOUT = 5.0
"""Seconds until database and storage must have answered."""

_OVERTAKEN_TIMEOUT = 5.0
"""Seconds that the report of a failure waits for the requests that it has overtaken."""

_RETRY_AFTER = 5
"""Seconds after which clients try again what a registry that stops has refused."""

# Such an id can be logged and sent back as it is.
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger(__package__)


class Operation:
    """Follows the requests of a registry; `check` raises `RegistryError` while its database or storage is away."""

    def __init__(self, check: Callable[[], Awaitable[None]], metrics: Metrics, base_url: BaseUrl) -> None:
        self._check = check
        self._base_url = base_url
        self._metrics = metrics
        self._running: dict[asyncio.Task[object], web.Request] = {}
        self._is_stopping = False

    def routes(self) -> list[web.RouteDef]:
        """Return the routes that need no token."""
        return [
            web.get("/healthz", self._get_health),
            web.get("/readyz", self._get_readiness),
            web.get("/metrics", self._get_metrics),
        ]

    @web.middleware
    async def follow(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Give a request an id, count it, and refuse new uploads while the registry stops."""
        request[REQUEST_ID] = request_id(request)
        request[ADDRESS] = self._base_url.client_address(request)
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = request
        try:
            with self._metrics.request(request) as observed:
                if self._is_stopping and request.method == "PUT":
                    response: web.StreamResponse = _refuse_upload()
                else:
                    response = await handler(request)
                observed.response = response
                return response
        finally:
            del self._running[task]

    async def drain(self, grace: float) -> None:
        """Wait up to `grace` seconds for running requests, and refuse new uploads meanwhile."""
        self._is_stopping = True
        current = asyncio.current_task()
        if running := self._running.keys() - {current}:
            log.info("waiting for %d requests", len(running))
            await asyncio.wait(running, timeout=grace)

    def running(self, method: str, path: str) -> set[asyncio.Task[object]]:
        """The running requests with a method and a path."""
        return {task for task, each in self._running.items() if (each.method, each.path) == (method, path)}

    async def wait_for(self, requests: set[asyncio.Task[object]]) -> None:
        """Wait for requests that another one has overtaken."""
        if requests:
            await asyncio.wait(requests, timeout=_OVERTAKEN_TIMEOUT)

    async def wait_for_handlers(self) -> None:
        """Wait until every handler has returned, cancelled ones included."""
        while self._running:
            await asyncio.wait(self._running)

    async def _get_health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _get_readiness(self, _request: web.Request) -> web.Response:
        if self._is_stopping:
            return web.json_response({"status": "stopping"}, status=503)
        try:
            await asyncio.wait_for(self._check(), _READY_TIMEOUT)
        except (RegistryError, OSError, asyncio.TimeoutError) as error:
            log.warning("the registry is not ready: %s", str(error) or type(error).__name__)
            reason = error.message if isinstance(error, RegistryError) else "the storage does not answer"
            return web.json_response({"status": "unavailable", "error": reason}, status=503)
        return web.json_response({"status": "ok"})

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        body, content_type = await self._metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})


class AccessLogger(AbstractAccessLogger):
    """Logs a request without its query and headers, which hold secrets; the fields are in `record.access`."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """See `AbstractAccessLogger`."""
        fields = {
            "remote": request.get(ADDRESS, request.remote) or "-",
            "method": request.method,
            "path": request.rel_url.raw_path,
            "status": response.status,
            "bytes": response.body_length,
            "seconds": round(time, 3),
            "request_id": request.get(REQUEST_ID, "-"),
        }
        self.logger.info(
            "%(remote)s %(method)s %(path)s %(status)d %(bytes)d %(seconds).3f %(request_id)s",
            fields,
            extra={"access": fields},
        )


def request_id(request: web.Request) -> str:
    """Return the id that a proxy gave a request in `X-Request-ID`, or a new one."""
    given = request.headers.get("X-Request-ID", "")
    return given if _GIVEN_ID.fullmatch(given) else secrets.token_hex(8)


async def set_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Send the id of the request, and no version of the server."""
    response.headers["Server"] = SERVER_NAME
    if REQUEST_ID in request:
        response.headers["X-Request-ID"] = request[REQUEST_ID]


def _refuse_upload() -> web.Response:
    error = StorageError("ServiceUnavailable", "the registry is stopping. Try again.", status=503)
    headers = {"Retry-After": str(_RETRY_AFTER), "Connection": "close"}
    return web.json_response({"error": error.message}, status=error.status, headers=headers)

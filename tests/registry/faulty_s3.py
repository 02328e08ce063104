"""An S3 server with faults: it loses or cuts responses, and returns errors."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class FaultyS3:
    """Keeps objects in memory, addressed in path style; ignores signatures.

    `fault` chooses the fault of a request: a status and a code, `lost` for a lost response, or `cut` for an incomplete
    one. `requests` records requests such as `GET blobs/bentos/iris/v1.tar`. It never sends `100 Continue`.
    """

    endpoint: str = ""
    fault: Callable[[web.Request], tuple[int, str] | str | None] = lambda _: None
    region: str = "us-east-1"
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Handle a request."""
        key = request.match_info["key"]
        self.requests.append(f"{request.method} {key}")
        body = await request.read()
        fault = self.fault(request)
        if isinstance(fault, tuple):
            return error_response(*fault)
        response = await self.do(request, key, body)
        if fault == "lost":
            assert request.transport is not None
            request.transport.abort()
        if fault == "cut":
            response = web.StreamResponse(headers={"Content-Length": str(len(self.objects[key])), "ETag": etag(b"")})
            await response.prepare(request)
            await response.write(self.objects[key][: len(self.objects[key]) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        return response

    async def do(self, request: web.Request, key: str, body: bytes) -> web.Response:
        """Handle a request without its fault."""
        if request.method == "PUT":
            self.objects[key] = body
            return web.Response(headers={"ETag": etag(body)})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        if not key and "uploads" in request.query:
            return xml("<ListMultipartUploadsResult></ListMultipartUploadsResult>")
        if not key:
            names = sorted(name for name in self.objects if name.startswith(request.query.get("prefix", "")))
            entries = "".join(
                f"<Contents><Key>{name}</Key><ETag>{etag(self.objects[name])}</ETag></Contents>" for name in names
            )
            region = {"x-amz-bucket-region": self.region}
            return xml(
                f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>", headers=region
            )
        if key not in self.objects:
            return error_response(404, "NoSuchKey")
        return web.Response(body=self.objects[key], headers={"ETag": etag(self.objects[key])})


def etag(body: bytes) -> str:
    """Return the ETag of a whole object."""
    return f'"{hashlib.md5(body).hexdigest()}"'


def xml(text: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Build an XML response."""
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)


def error_response(status: int, code: str) -> web.Response:
    """Build an error response."""
    return xml(f"<Error><Code>{code}</Code><Message>injected fault</Message></Error>", status)


async def _send_nothing(_: web.Request) -> None:
    """Wait for the body, like a server or a proxy that knows no `Expect`."""


@asynccontextmanager
async def faulty_s3() -> AsyncIterator[FaultyS3]:
    """Run the server."""
    s3 = FaultyS3()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/bucket{_:/?}{key:.*}", s3.handle, expect_handler=_send_nothing)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    s3.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield s3
    finally:
        await close_server(runner)

"""An S3 that does as it is told: it ignores conditions, loses answers, asks to slow down, breaks off."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class FaultyS3:
    """Objects in memory, in path style; signatures are not looked at.

    Attributes:
        endpoint: Where it listens.
        honours: The conditions that it honours.
        atomic: Whether it writes in the moment in which it has looked at them.
        fault: Given a request, what goes wrong with it: a status and a code, or `lost` for an answer that is not given,
            or `cut` for one that breaks off.
        region: Where it says it is.
        requests: What it was asked for, like `GET items/bentos/iris/v1.json`.
    """

    endpoint: str = ""
    honours: frozenset[str] = frozenset({"If-None-Match", "If-Match"})
    atomic: bool = True
    fault: Callable[[web.Request], tuple[int, str] | str | None] = lambda _: None
    region: str = "us-east-1"
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Any request."""
        key = request.match_info["key"]
        self.requests.append(f"{request.method} {key}")
        body = await request.read()
        fault = self.fault(request)
        if isinstance(fault, tuple):
            return refusal(*fault)
        answer = await self.do(request, key, body)
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
        return answer

    async def do(self, request: web.Request, key: str, body: bytes) -> web.Response:
        """What is asked for."""
        if request.method == "PUT":
            found = self.objects.get(key)
            if "If-None-Match" in self.honours and "If-None-Match" in request.headers and found is not None:
                return refusal(412, "PreconditionFailed")
            wanted = request.headers.get("If-Match")
            if "If-Match" in self.honours and wanted and (found is None or etag(found) != wanted):
                return refusal(412, "PreconditionFailed")
            if not self.atomic:
                await asyncio.sleep(0.1)
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
            return refusal(404, "NoSuchKey")
        return web.Response(body=self.objects[key], headers={"ETag": etag(self.objects[key])})


def etag(body: bytes) -> str:
    """As S3 has it."""
    return f'"{hashlib.md5(body).hexdigest()}"'


def xml(text: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer."""
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)


def refusal(status: int, code: str) -> web.Response:
    """An answer that says no."""
    return xml(f"<Error><Code>{code}</Code><Message>said S3</Message></Error>", status)


@asynccontextmanager
async def faulty_s3() -> AsyncIterator[FaultyS3]:
    """Run one, until the context ends."""
    s3 = FaultyS3()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/bucket{_:/?}{key:.*}", s3.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    s3.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield s3
    finally:
        await runner.cleanup()

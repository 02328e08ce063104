"""A small local Hub, which answers the requests of huggingface_hub with real files."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from tests.servers import close_server

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

COMMIT = "c0ffee" * 6 + "cafe"


@dataclass
class Repo:
    """A model on the Hub."""

    files: Mapping[str, bytes]
    commit: str = COMMIT
    gated: str = ""  # "files", or "all"
    broken: int = 0  # the status of all responses


@dataclass
class Seen:
    """A request."""

    line: str
    token: str | None
    range: str | None


@dataclass
class Hub:
    """The server; it needs its own event loop, since huggingface_hub blocks.

    Attributes:
        repos: The models, by name.
        seen: The received requests.
        pause: Seconds between pieces of a file.
        stall_after: The bytes of a file after which the response stalls.
        together: The number of concurrent file requests before the first response.
        cut: Files whose client has disconnected.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    pause: float = 0
    stall_after: int | None = None
    together: int = 0
    cut: list[str] = field(default_factory=list)
    endpoint: str = ""
    _arrived: set[str] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api/models/{id:[^/]+/[^/]+}", self._info)
        app.router.add_get("/api/models/{id:[^/]+/[^/]+}/revision/{revision}", self._info)
        app.router.add_get("/api/models/{id:[^/]+/[^/]+}/tree/{revision}", self._tree)
        app.router.add_get("/{id:[^/]+/[^/]+}/resolve/{revision}/{name:.+}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.endpoint = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await close_server(self._runner)

    def asked(self, word: str) -> list[Seen]:
        """The requests with a word in their method and path."""
        return [seen for seen in self.seen if word in seen.line]

    def _find(self, request: web.Request, *, file: bool = False) -> Repo:
        authorization = request.headers.get("Authorization")
        self.seen.append(Seen(f"{request.method} {request.path}", authorization, request.headers.get("Range")))
        repo = self.repos.get(request.match_info["id"])
        if repo is None:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RepoNotFound"})
        if repo.broken:
            error = web.HTTPException(text="it is on fire")
            error.set_status(repo.broken)
            raise error
        if repo.gated == "all" or (repo.gated and file):
            raise web.HTTPForbidden(headers={"X-Error-Code": "GatedRepo"})
        if request.match_info.get("revision", "main") not in {"main", repo.commit}:
            raise web.HTTPNotFound(headers={"X-Error-Code": "RevisionNotFound"})
        return repo

    async def _info(self, request: web.Request) -> web.Response:
        repo = self._find(request)
        with_blobs = request.query.get("blobs", "").lower() == "true"
        siblings = [
            {"rfilename": name, **({"size": len(content), "blobId": oid(content)} if with_blobs else {})}
            for name, content in repo.files.items()
        ]
        name = request.match_info["id"]
        return web.json_response({"_id": "1", "id": name, "modelId": name, "sha": repo.commit, "siblings": siblings})

    async def _tree(self, request: web.Request) -> web.Response:
        repo = self._find(request)
        return web.json_response(
            [
                {"type": "file", "path": name, "size": len(content), "oid": oid(content)}
                for name, content in repo.files.items()
            ]
        )

    async def _file(self, request: web.Request) -> web.StreamResponse:
        repo = self._find(request, file=True)
        name = request.match_info["name"]
        content = repo.files[name]
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": f'"{oid(content)}"', "X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        answer = web.StreamResponse(status=206 if start else 200, headers=headers)
        answer.content_length = len(content) - start
        await answer.prepare(request)
        if request.method == "HEAD":
            return answer
        self._arrived.add(request.path)
        try:
            while len(self._arrived) < self.together:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for offset in range(start, len(content), 64 * 1024):
                while self.stall_after is not None and offset >= self.stall_after:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await answer.write(content[offset : offset + 64 * 1024])
                await asyncio.sleep(self.pause)
        except (ConnectionError, asyncio.CancelledError):
            self.cut.append(name)
            raise
        return answer


def oid(content: bytes) -> str:
    """Return a digest in place of that of git."""
    return hashlib.sha1(content).hexdigest()

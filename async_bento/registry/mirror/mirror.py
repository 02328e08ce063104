"""The requests that a mirror answers: records from the upstream, and bytes from its own storage."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from async_bento._core.concurrency import ByteBudget, Threads, shielded
from async_bento.errors import ConfigError
from async_bento.registry.access import ACTOR, TOKEN
from async_bento.registry.blobs.disk import DiskBlobs
from async_bento.registry.downloads import is_first_of_pull, matches_etag, send_blob, send_chunks
from async_bento.registry.errors import ConflictError, NotImplementedHereError, RecordNotFoundError, StorageError
from async_bento.registry.item_types import ITEM_TYPES, ItemRef, check_tag_part
from async_bento.registry.mirror.fetch import Fetch, Steps
from async_bento.registry.mirror.storage import MirrorStorage, Stored
from async_bento.registry.mirror.upstream import Upstream
from async_bento.registry.uploads import new_key
from async_bento.transfer.http import TransferPool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from pydantic import JsonValue, SecretStr

    from async_bento.registry.backend import OpenBackend
    from async_bento.registry.mirror.fetch import Fetched
    from async_bento.registry.mirror.growing import Growing
    from async_bento.registry.mirror.upstream import Answer, Remote

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_FRESH = 10.0
"""Seconds for which a record that a client has just requested decides which bytes its next request gets."""

_MAX_RECORDS = 1_000
"""Records that are remembered for that time."""

_THREADS = 16
"""They write and hash what is fetched, and as many others read it for the clients."""

_ATTEMPTS = 3
"""An item may be evicted, or its fetch end, between the look for it and the first byte."""

_RETRY_AFTER = 5

_CACHE = "async-bento"
"""The name of this cache in the header `Cache-Status` (RFC 9211)."""

_HIT = {"Cache-Status": f"{_CACHE}; hit"}
_STALE = {"Cache-Status": f"{_CACHE}; hit; detail=upstream-down"}
_MISS = {"Cache-Status": f"{_CACHE}; fwd=miss; stored"}
_COLLAPSED = {"Cache-Status": f"{_CACHE}; fwd=miss; stored; collapsed"}
_FORWARDED = {"Cache-Status": f"{_CACHE}; fwd=request"}

log = logging.getLogger(__package__)


class _Seen(NamedTuple):
    answer: Answer
    at: float


class Mirror:
    """Answers the requests of clients before the registry's own handlers do."""

    def __init__(self, upstream: Upstream, storage: MirrorStorage, blobs: DiskBlobs) -> None:
        config = upstream.client.config
        self._upstream = upstream
        self._storage = storage
        self._blobs = blobs
        # Two pools: clients that read must not hold up the fetch for which they wait.
        self._readers = Threads(_THREADS)
        self._writers = Threads(_THREADS)
        slots, window = asyncio.Semaphore(config.transfer.concurrency), ByteBudget(config.transfer.window)
        pool = TransferPool(config, self._writers, slots, window)
        self._steps = Steps(upstream, pool, self._writers, self._make_room, self._publish)
        self._loop = asyncio.get_running_loop()
        self._fetches: dict[ItemRef, Fetch] = {}
        self._n_ended = 0
        self._seen: dict[ItemRef, _Seen] = {}

    async def aclose(self) -> None:
        """Cancel all fetches, and remove what has arrived of them."""
        fetches, self._fetches = self._fetches, {}
        for fetch in fetches.values():
            await fetch.cancel()
        self._readers.close()
        self._writers.close()

    async def answer(self, handler: Handler, request: web.Request) -> web.StreamResponse:
        """Answer a request about repositories and items, or let the handler answer it from the mirror's records."""
        resource = request.match_info.route.resource
        assert resource is not None, "a handler has a route"
        action = resource.canonical.rpartition("/")[2]
        for field, value in request.match_info.items():  # before they become a path of the upstream
            check_tag_part(field, value)
        if request.method == "GET" and action == "download":
            return await self._download(request, _item_ref(request))
        if action == "presign_download_url" or (request.method == "GET" and action == "{version}"):
            return await self._send_record(request, handler, _item_ref(request))
        if request.method == "GET":
            _check_list(request, action)
            path = request.rel_url.raw_path.removeprefix("/api/v1/")
            query = request.rel_url.raw_query_string
            return await self._send_list(
                request, handler, await self._upstream.get(f"{path}?{query}" if query else path)
            )
        if request.method == "DELETE":
            done, place = "delete from", "Delete it in"
        elif request.method == "PATCH" and action == "{version}":
            done, place = "change a record of", "Change it in"
        else:
            done, place = "push to", "Push to"
        raise ConflictError(f"cannot {done} a mirror: it only passes on pulls. {place} {self._upstream.url}.")

    async def _send_record(self, request: web.Request, handler: Handler, ref: ItemRef) -> web.StreamResponse:
        answer = await self._request_item(ref)
        if answer is None or answer.remote is None:
            return await self._send_list(request, handler, answer)
        await self._storage.keep_record(ref, answer.remote)
        fields = answer.remote.fields
        if answer.remote.record.checksums is None:
            # Other registries than ours know no checksums; the mirror does, once it has the bytes.
            fields = fields | {"checksums": await self._storage.checksums(ref, answer.remote)}
        if request[TOKEN].prefix and isinstance(models := fields.get("models"), list):
            fields = fields | {"models": [model for model in models if request[TOKEN].covers(_repository_of(model))]}
        return _respond(answer._replace(body=json.dumps(fields).encode()))

    async def _send_list(self, request: web.Request, handler: Handler, answer: Answer | None) -> web.StreamResponse:
        """Send what the upstream has answered, or, while it is away, what the mirror has."""
        if answer is not None:
            return _respond(answer)
        try:
            response = await handler(request)
        except RecordNotFoundError as error:
            raise self._unavailable() from error
        response.headers.update(_STALE)
        return response

    async def _request_item(self, ref: ItemRef) -> Answer | None:
        answer = await self._upstream.item(ref)
        self._seen.pop(ref, None)
        if answer is not None and answer.remote is not None:
            now = time.monotonic()
            self._seen[ref] = _Seen(answer, now)
            for first in [*islice(self._seen, 2)]:  # in the order of their times
                if now - self._seen[first].at > _FRESH or len(self._seen) > _MAX_RECORDS:
                    del self._seen[first]
        return answer

    def _recent(self, ref: ItemRef) -> Answer | None:
        seen = self._seen.get(ref)
        return None if seen is None or time.monotonic() - seen.at > _FRESH else seen.answer

    async def _download(self, request: web.Request, ref: ItemRef) -> web.StreamResponse:
        for _ in range(_ATTEMPTS):
            if (response := await self._send_known(request, ref)) is not None:
                return response
            answer = self._recent(ref) or await self._request_item(ref)
            if answer is None:
                return await self._send_stale(request, ref)
            if answer.remote is None:
                return _respond(answer)
            if (response := await self._send_current(request, ref, answer.remote)) is not None:
                return response
        raise self._unavailable()

    async def _send_current(self, request: web.Request, ref: ItemRef, remote: Remote) -> web.StreamResponse | None:
        """Send the bytes of a version from the storage or from the upstream; None if they were removed meanwhile."""
        n_ended = -1
        while n_ended != self._n_ended:  # a fetch that ends during the search may have stored the version
            n_ended = self._n_ended
            stored = await self._storage.find(ref)
            if stored is None or not stored.is_of(remote):
                continue
            if (response := await self._send(request, ref, stored, _HIT)) is not None:
                return response
        fetch = await self._start_fetch(ref, remote)
        headers = _COLLAPSED if fetch.is_running else _MISS
        growing = await fetch.opened()
        return await self._follow(request, ref, growing, headers) if growing.is_open else None

    async def _send_known(self, request: web.Request, ref: ItemRef) -> web.StreamResponse | None:
        """Send a further range of the object that a request names by its ETag, without a question to the upstream."""
        wanted = request.headers.get("If-Match")
        if wanted is None or wanted == "*":
            return None
        fetch = self._fetches.get(ref)
        growing = None if fetch is None else fetch.growing
        if growing is not None and growing.is_open and matches_etag(wanted, growing.etag):
            return await self._follow(request, ref, growing, _COLLAPSED)
        stored = await self._storage.find(ref)
        if stored is None or not matches_etag(wanted, stored.content.etag):
            return None
        return await self._send(request, ref, stored, _HIT)

    async def _send_stale(self, request: web.Request, ref: ItemRef) -> web.StreamResponse:
        """Send what the mirror has while the upstream is away."""
        fetch = self._fetches.get(ref)
        growing = None if fetch is None else fetch.growing
        if growing is not None and growing.is_open:
            return await self._follow(request, ref, growing, _COLLAPSED)
        stored = await self._storage.find(ref)
        response = None if stored is None else await self._send(request, ref, stored, _STALE)
        if response is None:
            raise self._unavailable()
        return response

    async def _send(
        self, request: web.Request, ref: ItemRef, stored: Stored, headers: dict[str, str]
    ) -> web.StreamResponse | None:
        """Send stored bytes; None if they were evicted meanwhile."""
        async with AsyncExitStack() as stack:
            try:
                blob = await stack.enter_async_context(self._blobs.open(stored.key, stored.content))
            except RecordNotFoundError:
                return None
            if is_first_of_pull(request):
                await self._storage.audit.record_pull(ref, stored.item, request[ACTOR])
            return await send_blob(request, blob, headers)

    async def _follow(
        self, request: web.Request, ref: ItemRef, growing: Growing, headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send bytes as they arrive."""
        async with growing.reader(self._readers) as blob:
            if is_first_of_pull(request):
                await self._storage.audit.record_pull(ref, None, request[ACTOR])
            if growing.size is not None:
                return await send_blob(request, blob, headers)
            # Like Yatai: neither a length nor ranges.
            fields = {"Content-Type": "application/octet-stream", "ETag": growing.etag, **headers}
            response = web.StreamResponse(headers=fields)
            await send_chunks(request, response, blob.read(0, None))
            return response

    async def _start_fetch(self, ref: ItemRef, remote: Remote) -> Fetch:
        """Return the fetch of a version, the only one."""
        abandoned = [each for each, other in self._fetches.items() if each != ref and other.is_abandoned]
        for each in abandoned:
            await self._fetches.pop(each).cancel()
        while (fetch := self._fetches.get(ref)) is None or fetch.remote.marker != remote.marker:
            if fetch is not None:
                del self._fetches[ref]
                await fetch.cancel()
            else:
                self._fetches[ref] = Fetch(ref, remote, new_key(ref), self._blobs, self._steps)
        return fetch

    async def _publish(self, fetched: Fetched) -> None:
        try:
            await shielded(self._storage.publish(fetched))
        finally:
            fetch = self._fetches.get(fetched.ref)
            if fetch is not None and fetch.key == fetched.key:
                del self._fetches[fetched.ref]
            self._n_ended += 1

    def _make_room(self, size: int) -> None:
        """Evict until an object has room; runs in a worker thread."""
        asyncio.run_coroutine_threadsafe(self._storage.make_room(size), self._loop).result()

    def _unavailable(self) -> StorageError:
        message = (
            f"the upstream {self._upstream.url} does not answer, and this mirror does not have what you ask for. "
            "Try again later."
        )
        return StorageError("ServiceUnavailable", message, status=503, retry_after=_RETRY_AFTER)


def _respond(answer: Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, content_type="application/json", headers=_FORWARDED)


def _repository_of(record: JsonValue) -> str:
    repository = record.get("repository") if isinstance(record, dict) else None
    return str(repository.get("name")) if isinstance(repository, dict) else ""


def _check_list(request: web.Request, action: str) -> None:
    """Raise `NotImplementedHereError` for a list that shows repositories which the token does not cover."""
    if request[TOKEN].prefix and ("name" not in request.match_info or "version" in request.match_info):
        raise NotImplementedHereError(
            f"cannot list all {action} of a mirror: the token {request[TOKEN].name} is for repositories whose names "
            f"begin with {request[TOKEN].prefix}. List one repository by its name."
        )


def _item_ref(request: web.Request) -> ItemRef:
    item_type = next(each for each in ITEM_TYPES if f"/{each.repositories}/" in request.path)
    return ItemRef(item_type, request.match_info["name"], request.match_info["version"])


@asynccontextmanager
async def open_mirror(opened: OpenBackend, url: str, api_token: SecretStr, size: int | None) -> AsyncGenerator[Mirror]:
    """Mirror a registry in a block; `size` is the most bytes to keep, None for no limit."""
    if not isinstance(opened.blobs, DiskBlobs):
        raise ConfigError("a mirror keeps its bytes in a directory. Leave out the bucket.")
    upstream = Upstream(url, api_token, opened.metrics.follow_upstream())
    try:
        storage = MirrorStorage(opened, opened.blobs, size, upstream.url)
        await storage.recover()
        mirror = Mirror(upstream, storage, opened.blobs)
        try:
            yield mirror
        finally:
            await shielded(mirror.aclose())
    finally:
        await shielded(upstream.aclose())

"""The registry's API: the routes of Yatai that BentoML's client and this one use, for bentos and models alike."""

from __future__ import annotations

import asyncio
import hmac
import logging
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from async_bento._core.concurrency import shielded
from async_bento.config import MiB
from async_bento.registry import schemas
from async_bento.registry.blobs.base import CompletedPart
from async_bento.registry.blobs.disk_endpoints import stream_response
from async_bento.registry.errors import BadRequestError, RecordNotFoundError, RegistryError, translate_errors
from async_bento.registry.item_types import BENTO, ITEM_TYPES, MODEL, ItemType, check_tag_part
from async_bento.registry.records.base import Change, NewItem
from async_bento.registry.records.query import parse_list_query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from typing_extensions import Unpack

    from async_bento._core.validation import JsonObject
    from async_bento.registry.backend import OpenBackend
    from async_bento.registry.records.base import Item
    from async_bento.registry.transmission import TransmissionPolicy

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

API_PREFIX = "/api/v1"

MAX_REQUEST_SIZE = 4 * MiB
"""BentoCloud's limit for JSON, in bytes."""

log = logging.getLogger(__package__)


class ItemRef(NamedTuple):
    """The item that a route names."""

    item_type: ItemType
    name: str
    version: str

    @property
    def key(self) -> str:
        """The key of the item's blob."""
        return f"{self.item_type.items}/{self.name}/{self.version}.tar"


class Api:
    """The request handlers.

    Without `public_url`, presigned URLs of the registry itself begin with the address that each request was sent to.
    """

    def __init__(self, backend: OpenBackend, transmission: TransmissionPolicy, public_url: str | None = None) -> None:
        self._records = backend.records
        self._blobs = backend.blobs
        self._backend_routes = backend.routes
        self._api_token = backend.api_token.encode()
        self._transmission = transmission
        self._public_url = public_url
        self._running: set[asyncio.Task[object]] = set()

    def application(self) -> web.Application:
        """Build the application; the backend's own routes need a presigned URL instead of the token."""
        middlewares = [self._track_requests, _send_errors_as_json, self._check_token]
        app = web.Application(client_max_size=MAX_REQUEST_SIZE, middlewares=middlewares)
        app.add_routes([_route("GET", "/auth/current", _get_user), _route("GET", "/current_org", _get_organization)])
        app.add_routes(self._backend_routes)
        for item_type in ITEM_TYPES:
            app.add_routes(self._routes(item_type))
        return app

    async def wait_for_handlers(self) -> None:
        """Wait until every handler has returned, cancelled ones included."""
        while self._running:
            await asyncio.wait(self._running)

    def _routes(self, item_type: ItemType) -> list[web.AbstractRouteDef]:
        repositories = f"/{item_type.repositories}"
        items = f"{repositories}/{{name}}/{item_type.items}"
        routes = [
            ("POST", repositories, self._create_repository),
            ("GET", f"{repositories}/{{name}}", self._get_repository),
            ("GET", f"/{item_type.items}", self._list),
            ("GET", items, self._list),
            ("POST", items, self._create),
            ("GET", f"{items}/{{version}}", self._get),
            ("PATCH", f"{items}/{{version}}", self._update),
            ("PATCH", f"{items}/{{version}}/start_upload", self._start_upload),
            ("PATCH", f"{items}/{{version}}/finish_upload", self._finish_upload),
            ("PATCH", f"{items}/{{version}}/presign_upload_url", self._presign_upload),
            ("PATCH", f"{items}/{{version}}/presign_download_url", self._presign_download),
            ("PATCH", f"{items}/{{version}}/start_multipart_upload", self._start_multipart),
            ("PATCH", f"{items}/{{version}}/presign_multipart_upload_url", self._presign_part),
            ("PATCH", f"{items}/{{version}}/complete_multipart_upload", self._complete_multipart),
            ("PUT", f"{items}/{{version}}/upload", self._upload),
            ("GET", f"{items}/{{version}}/download", self._download),
        ]
        return [_route(method, path, partial(handler, item_type)) for method, path, handler in routes]

    @web.middleware
    async def _track_requests(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await handler(request)
        finally:
            self._running.discard(task)

    @web.middleware
    async def _check_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(API_PREFIX):
            token = request.headers.get("X-YATAI-API-TOKEN", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(token, self._api_token):
                reason = (
                    "is unknown. Check the token." if token else "is missing. Send it in the header X-YATAI-API-TOKEN."
                )
                return web.json_response({"message": f"access denied: the API token {reason}"}, status=403)
        return await handler(request)

    async def _create_repository(self, item_type: ItemType, request: web.Request) -> web.Response:
        body = schemas.parse_request(schemas.RepositoryRequest, await request.read())
        name = check_tag_part("name", body.name)
        repository = await self._records.create_repository(item_type, name, body.description)
        return web.json_response(schemas.repository_response(item_type, repository, self._transmission.strategy(name)))

    async def _get_repository(self, item_type: ItemType, request: web.Request) -> web.Response:
        name = _name(request)
        repositories = await self._load_repositories(item_type, [name])
        if name not in repositories:
            raise RecordNotFoundError(f"get {item_type.repository} {name}")
        return web.json_response(repositories[name])

    async def _list(self, item_type: ItemType, request: web.Request) -> web.Response:
        query = parse_list_query(request.query)
        name = _name(request) if "name" in request.match_info else None
        page = await self._records.list_items(item_type, query, name)
        items = await self._item_responses(item_type, page.items)
        return web.json_response(schemas.list_response(query.start, query.count, page.total, items))

    async def _create(self, item_type: ItemType, request: web.Request) -> web.Response:
        name = _name(request)
        body = schemas.parse_request(schemas.CreateRequest, await request.read())
        new = NewItem(
            version=check_tag_part("version", body.version),
            build_at=body.build_at,
            description=body.description or "",
            manifest=body.manifest,
            labels=body.labels or (),
        )
        return self._respond(item_type, await self._records.create_item(item_type, name, new))

    async def _get(self, item_type: ItemType, request: web.Request) -> web.Response:
        item = await self._get_record(_item_ref(item_type, request))
        (response,) = await self._item_responses(item_type, [item])
        if item_type is BENTO:
            response["models"] = [*await self._load_models(item)]
        return web.json_response(response)

    async def _update(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        body = schemas.parse_request(schemas.UpdateRequest, await request.read())
        change = Change(description=body.description, manifest=body.manifest, labels=body.labels)
        return self._respond(item_type, await self._update_record(ref, change))

    async def _start_upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        change = Change(upload_status="uploading", upload_started_at=_now())
        return self._respond(item_type, await self._update_record(_item_ref(item_type, request), change))

    async def _finish_upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        body = schemas.parse_request(schemas.FinishRequest, await request.read())
        change = Change(upload_status=body.status, upload_finished_at=_now(), upload_finished_reason=body.reason)
        return self._respond(item_type, await self._update_record(ref, change))

    async def _presign_upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        item = await self._get_record(ref)
        url = await self._blobs.presign_put(ref.key) if self._transmission.presign else ""
        return self._respond(item_type, item, presigned_upload_url=self._absolute(request, url))

    async def _presign_download(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        item = await self._get_record(ref)
        url = await self._blobs.presign_get(ref.key) if self._transmission.presign else ""
        return self._respond(item_type, item, presigned_download_url=self._absolute(request, url))

    async def _start_multipart(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        item = await self._get_record(ref)
        return self._respond(item_type, item, upload_id=await self._blobs.start_multipart(ref.key))

    async def _presign_part(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        body = schemas.parse_request(schemas.PresignPartRequest, await request.read())
        item = await self._get_record(ref)
        url = await self._blobs.presign_part(ref.key, body.upload_id, body.part_number)
        return self._respond(item_type, item, presigned_upload_url=self._absolute(request, url))

    async def _complete_multipart(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        body = schemas.parse_request(schemas.CompleteRequest, await request.read())
        item = await self._get_record(ref)
        parts = [CompletedPart(part.part_number, part.etag) for part in body.parts]
        await self._blobs.complete_multipart(ref.key, body.upload_id, parts)
        return self._respond(item_type, item)

    async def _upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        await self._update_record(ref, Change(upload_status="uploading", upload_started_at=_now()))
        try:
            with translate_errors():
                await self._blobs.put(ref.key, request.content.iter_any(), request.content_length)
        except BaseException as error:
            reason = error.message if isinstance(error, RegistryError) else "the upload was interrupted"
            failed = Change(upload_status="failed", upload_finished_at=_now(), upload_finished_reason=reason)
            await shielded(self._update_record(ref, failed))
            raise
        done = Change(upload_status="success", upload_finished_at=_now(), upload_finished_reason="")
        await self._update_record(ref, done)
        return web.Response()

    async def _download(self, item_type: ItemType, request: web.Request) -> web.StreamResponse:
        ref = _item_ref(item_type, request)
        await self._get_record(ref)
        # Yatai sends neither a length nor ranges; neither does this, so that clients are tested without them.
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.enable_chunked_encoding()
        async with self._blobs.open(ref.key) as chunks:
            return await stream_response(request, response, chunks)

    async def _get_record(self, ref: ItemRef) -> Item:
        items = await self._records.items(ref.item_type, [(ref.name, ref.version)])
        if not items:
            raise RecordNotFoundError(f"get {ref.item_type.item} {ref.name}:{ref.version}")
        return items[0]

    async def _update_record(self, ref: ItemRef, change: Change) -> Item:
        return await self._records.update_item(ref.item_type, ref.name, ref.version, change)

    async def _load_models(self, bento: Item) -> list[JsonObject]:
        tags = (bento.manifest or {}).get("models")
        parts = [tag.partition(":") for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        models = await self._records.items(MODEL, [(name, version) for name, _, version in parts])
        return await self._item_responses(MODEL, models)

    async def _item_responses(self, item_type: ItemType, items: Sequence[Item]) -> list[JsonObject]:
        """Build the JSON of items, each with its repository."""
        repositories = await self._load_repositories(item_type, {item.repository for item in items})
        return [
            {
                **schemas.item_response(item_type, item, self._transmission.strategy(item.repository)),
                "repository": repositories[item.repository],
            }
            for item in items
        ]

    async def _load_repositories(self, item_type: ItemType, names: Collection[str]) -> dict[str, JsonObject]:
        found = await self._records.repositories(item_type, names)
        strategy = self._transmission.strategy
        return {name: schemas.repository_response(item_type, record, strategy(name)) for name, record in found.items()}

    def _respond(self, item_type: ItemType, item: Item, **transfer: Unpack[schemas.TransferFields]) -> web.Response:
        strategy = self._transmission.strategy(item.repository)
        return web.json_response(schemas.item_response(item_type, item, strategy, **transfer))

    def _absolute(self, request: web.Request, url: str) -> str:
        if not url.startswith("/"):
            return url
        if self._public_url is not None:
            return self._public_url + url
        host = request.headers.get("Host")  # without this header, request.host would resolve a name on the event loop
        if not host:
            raise BadRequestError("cannot presign a URL: the request has no Host header. Send one.")
        return f"{request.scheme}://{host}{url}"


async def _get_user(_request: web.Request) -> web.Response:
    return web.json_response(schemas.user_response())


async def _get_organization(_request: web.Request) -> web.Response:
    return web.json_response(schemas.organization_response())


@web.middleware
async def _send_errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        with translate_errors():
            return await handler(request)
    except web.HTTPException as error:
        return _error_response(error.status, error.reason)
    except RegistryError as error:
        return _error_response(error.status, error.message, error.retry_after)
    except Exception:
        log.exception("a request failed: %s %s", request.method, request.path)
        return _error_response(500, "the request failed: internal error. The registry's log has the reason.")


def _error_response(status: int, message: str, retry_after: int | None = None) -> web.Response:
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response({"error": message}, status=status, headers=headers)


def _route(method: str, path: str, handler: Handler) -> web.RouteDef:
    return web.route(method, f"{API_PREFIX}{path}", handler)


def _name(request: web.Request) -> str:
    return check_tag_part("name", request.match_info["name"])


def _item_ref(item_type: ItemType, request: web.Request) -> ItemRef:
    return ItemRef(item_type, _name(request), check_tag_part("version", request.match_info["version"]))


def _now() -> datetime:
    return datetime.now(timezone.utc)

"""The registry's API: the routes of Yatai that BentoML's client and ours use, for bentos and models alike."""

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
from async_bento.registry.blobs.base import ClaimedPart
from async_bento.registry.blobs.endpoints import send
from async_bento.registry.errors import BadRequestError, RecordNotFoundError, RegistryError, of_os_error
from async_bento.registry.kinds import BENTO, KINDS, MODEL, Kind, check_tag_part
from async_bento.registry.records.base import Change, NewItem
from async_bento.registry.records.query import parse_list_query
from async_bento.registry.schemas import (
    item_answer,
    list_answer,
    organization_answer,
    repository_answer,
    user_answer,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from async_bento._core.validation import JsonObject
    from async_bento.registry.blobs.base import Blobs
    from async_bento.registry.records.base import Item, Records
    from async_bento.rest.schemas import TransmissionStrategy

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Strategies = Callable[[str], TransmissionStrategy | None]

API = "/api/v1"

MAX_BODY = 4 * MiB
"""What BentoCloud takes as JSON, in bytes."""

log = logging.getLogger("async_bento.registry")


class Target(NamedTuple):
    """What a route is about.

    Attributes:
        kind: Bentos or models.
        name: The repository.
        version: The item's version.
    """

    kind: Kind
    name: str
    version: str

    @property
    def key(self) -> str:
        """Where the item's bytes are."""
        return f"{self.kind.items}/{self.name}/{self.version}.tar"


class Api:
    """The handlers, and what they need.

    Args:
        records: What is known of repositories and items.
        blobs: Their bytes.
        api_token: Whoever sends it may do everything.
        strategy: Which way the bytes of a repository's items go; None where the client has to ask.
        presign: Whether the `presign_` routes answer with a URL. A client that gets none goes through the registry.
        public_url: Where clients reach the registry; None for wherever each of them says it has.
    """

    def __init__(
        self,
        records: Records,
        blobs: Blobs,
        *,
        api_token: str,
        strategy: Strategies,
        presign: bool = True,
        public_url: str | None = None,
    ) -> None:
        self._records = records
        self._blobs = blobs
        self._api_token = api_token.encode()
        self._strategy = strategy
        self._presign = presign
        self._public_url = public_url
        self._running: set[asyncio.Task[object]] = set()

    def application(self, more: Sequence[web.AbstractRouteDef] = ()) -> web.Application:
        """The application.

        Args:
            more: Routes of a storage that needs any; they are open to whoever finds them.

        Returns:
            The application.
        """
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._keep_count, _speak_json, self._check_token])
        app.add_routes([_route("GET", "/auth/current", _who), _route("GET", "/current_org", _whose), *more])
        for kind in KINDS:
            app.add_routes(self._routes(kind))
        return app

    async def drained(self) -> None:
        """Wait for the end of every handler, also of those that were cancelled."""
        while self._running:
            await asyncio.wait(self._running)

    def _routes(self, kind: Kind) -> list[web.AbstractRouteDef]:
        repositories = f"/{kind.repositories}"
        items = f"{repositories}/{{name}}/{kind.items}"
        routes = [
            ("POST", repositories, self._create_repository),
            ("GET", f"{repositories}/{{name}}", self._get_repository),
            ("GET", f"/{kind.items}", self._list),
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
        return [_route(method, path, partial(handler, kind)) for method, path, handler in routes]

    @web.middleware
    async def _keep_count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await handler(request)
        finally:
            self._running.discard(task)

    @web.middleware
    async def _check_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(API):
            token = request.headers.get("X-YATAI-API-TOKEN", "").encode(errors="surrogateescape")
            if not hmac.compare_digest(token, self._api_token):
                said = "is not known" if token else "is missing; it is sent as X-YATAI-API-TOKEN"
                return web.json_response({"message": f"the api token {said}"}, status=403)
        return await handler(request)

    async def _create_repository(self, kind: Kind, request: web.Request) -> web.Response:
        body = schemas.read_body(schemas.RepositoryBody, await request.read())
        name = check_tag_part("name", body.name)
        repository = await self._records.create_repository(kind, name, body.description)
        return web.json_response(repository_answer(kind, repository, self._strategy(name)))

    async def _get_repository(self, kind: Kind, request: web.Request) -> web.Response:
        name = _name(request)
        repositories = await self._repositories(kind, [name])
        if name not in repositories:
            raise RecordNotFoundError(f"get {kind.repository} {name}")
        return web.json_response(repositories[name])

    async def _list(self, kind: Kind, request: web.Request) -> web.Response:
        query = parse_list_query(request.query)
        name = _name(request) if "name" in request.match_info else None
        page = await self._records.list_items(kind, query, name)
        items = await self._with_repositories(kind, page.items)
        return web.json_response(list_answer(query.start, query.count, page.total, items))

    async def _create(self, kind: Kind, request: web.Request) -> web.Response:
        name = _name(request)
        body = schemas.read_body(schemas.CreateBody, await request.read())
        new = NewItem(
            version=check_tag_part("version", body.version),
            build_at=body.build_at,
            description=body.description or "",
            manifest=body.manifest,
            labels=body.labels or (),
        )
        return self._answer(kind, await self._records.create_item(kind, name, new))

    async def _get(self, kind: Kind, request: web.Request) -> web.Response:
        item = await self._item(_target(kind, request))
        (answer,) = await self._with_repositories(kind, [item])
        if kind is BENTO:
            answer["models"] = [*await self._models_of(item)]
        return web.json_response(answer)

    async def _update(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        body = schemas.read_body(schemas.UpdateBody, await request.read())
        change = Change(description=body.description, manifest=body.manifest, labels=body.labels)
        return self._answer(kind, await self._change(target, change))

    async def _start_upload(self, kind: Kind, request: web.Request) -> web.Response:
        change = Change(upload_status="uploading", upload_started_at=_now())
        return self._answer(kind, await self._change(_target(kind, request), change))

    async def _finish_upload(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        body = schemas.read_body(schemas.FinishBody, await request.read())
        change = Change(upload_status=body.status, upload_finished_at=_now(), upload_finished_reason=body.reason)
        return self._answer(kind, await self._change(target, change))

    async def _presign_upload(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        item = await self._item(target)
        url = await self._blobs.presign_put(target.key) if self._presign else ""
        return self._answer(kind, item, presigned_upload_url=self._absolute(request, url))

    async def _presign_download(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        item = await self._item(target)
        url = await self._blobs.presign_get(target.key) if self._presign else ""
        return self._answer(kind, item, presigned_download_url=self._absolute(request, url))

    async def _start_multipart(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        item = await self._item(target)
        return self._answer(kind, item, upload_id=await self._blobs.start_multipart(target.key))

    async def _presign_part(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        body = schemas.read_body(schemas.PresignPartBody, await request.read())
        item = await self._item(target)
        url = await self._blobs.presign_part(target.key, body.upload_id, body.part_number)
        return self._answer(kind, item, presigned_upload_url=self._absolute(request, url))

    async def _complete_multipart(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        body = schemas.read_body(schemas.CompleteBody, await request.read())
        item = await self._item(target)
        parts = [ClaimedPart(part.part_number, part.etag) for part in body.parts]
        await self._blobs.complete_multipart(target.key, body.upload_id, parts)
        return self._answer(kind, item)

    async def _upload(self, kind: Kind, request: web.Request) -> web.Response:
        target = _target(kind, request)
        await self._change(target, Change(upload_status="uploading", upload_started_at=_now()))
        try:
            await self._blobs.put(target.key, request.content.iter_any(), request.content_length)
        except BaseException as error:
            reason = error.message if isinstance(error, RegistryError) else "the upload broke off"
            failed = Change(upload_status="failed", upload_finished_at=_now(), upload_finished_reason=reason)
            await shielded(self._change(target, failed))
            raise
        done = Change(upload_status="success", upload_finished_at=_now(), upload_finished_reason="")
        await self._change(target, done)
        return web.Response()

    async def _download(self, kind: Kind, request: web.Request) -> web.StreamResponse:
        target = _target(kind, request)
        await self._item(target)
        # Without its length, and without ranges: as Yatai streams it, so that clients learn to live with it.
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.enable_chunked_encoding()
        async with self._blobs.open(target.key) as chunks:
            return await send(request, response, chunks)

    async def _item(self, target: Target) -> Item:
        items = await self._records.items(target.kind, [(target.name, target.version)])
        if not items:
            raise RecordNotFoundError(f"get {target.kind.item} {target.name}:{target.version}")
        return items[0]

    async def _change(self, target: Target, change: Change) -> Item:
        return await self._records.update_item(target.kind, target.name, target.version, change)

    async def _models_of(self, bento: Item) -> list[JsonObject]:
        tags = (bento.manifest or {}).get("models")
        named = [tag.partition(":") for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
        models = await self._records.items(MODEL, [(name, version) for name, _, version in named])
        return await self._with_repositories(MODEL, models)

    async def _with_repositories(self, kind: Kind, items: Sequence[Item]) -> list[JsonObject]:
        repositories = await self._repositories(kind, {item.repository for item in items})
        return [
            {
                **item_answer(kind, item, self._strategy(item.repository)),
                "repository": repositories[item.repository],
            }
            for item in items
        ]

    async def _repositories(self, kind: Kind, names: Collection[str]) -> dict[str, JsonObject]:
        found = await self._records.repositories(kind, names)
        return {name: repository_answer(kind, repository, self._strategy(name)) for name, repository in found.items()}

    def _answer(
        self,
        kind: Kind,
        item: Item,
        *,
        presigned_upload_url: str = "",
        presigned_download_url: str = "",
        upload_id: str = "",
    ) -> web.Response:
        return web.json_response(
            item_answer(
                kind,
                item,
                self._strategy(item.repository),
                presigned_upload_url=presigned_upload_url,
                presigned_download_url=presigned_download_url,
                upload_id=upload_id,
            )
        )

    def _absolute(self, request: web.Request, url: str) -> str:
        if not url.startswith("/"):
            return url
        if self._public_url is not None:
            return self._public_url + url
        host = request.headers.get("Host")  # request.host would ask the name service where there is none, on the loop
        if not host:
            raise BadRequestError("without a Host header there is no telling where a URL should lead")
        return f"{request.scheme}://{host}{url}"


async def _who(_request: web.Request) -> web.Response:
    return web.json_response(user_answer())


async def _whose(_request: web.Request) -> web.Response:
    return web.json_response(organization_answer())


@web.middleware
async def _speak_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _refuse(error.status, error.reason)
    except RegistryError as error:
        return _refuse(error.status, error.message, error.retry_after)
    except (ConnectionError, web.RequestPayloadError):
        return _refuse(400, "the connection broke")
    except OSError as error:
        log.exception("the disk failed")
        refusal = of_os_error(error)
        return _refuse(refusal.status, refusal.message)
    except Exception:
        log.exception("a request failed")
        return _refuse(500, "the registry failed; its log says why")


def _refuse(status: int, message: str, retry_after: int | None = None) -> web.Response:
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return web.json_response({"error": message}, status=status, headers=headers)


def _route(method: str, path: str, handler: Handler) -> web.RouteDef:
    return web.route(method, f"{API}{path}", handler)


def _name(request: web.Request) -> str:
    return check_tag_part("name", request.match_info["name"])


def _target(kind: Kind, request: web.Request) -> Target:
    return Target(kind, _name(request), check_tag_part("version", request.match_info["version"]))


def _now() -> datetime:
    return datetime.now(timezone.utc)

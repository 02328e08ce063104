"""The registry's API: the routes of Yatai that BentoML's client and this one use, for bentos and models alike."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from async_bento._core.concurrency import shielded
from async_bento._core.version import __version__
from async_bento.config import MiB
from async_bento.registry import schemas
from async_bento.registry.access import (
    ACTOR,
    TOKEN,
    Access,
    AccessDeniedError,
    check_covered,
    route,
)
from async_bento.registry.base_url import BaseUrl
from async_bento.registry.blobs.base import CompletedPart
from async_bento.registry.downloads import is_first_of_pull, send_blob
from async_bento.registry.errors import (
    ImmutableError,
    RecordNotFoundError,
    RegistryError,
    translate_errors,
)
from async_bento.registry.item_types import BENTO, ITEM_TYPES, MODEL, ItemRef, ItemType, check_tag_part
from async_bento.registry.operation import REQUEST_ID, Operation, set_headers
from async_bento.registry.records.base import Change, NewItem, utc_now
from async_bento.registry.records.query import parse_list_query
from async_bento.registry.unsupported import unsupported_routes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Unpack

    from async_bento._core.validation import JsonObject
    from async_bento.registry.backend import OpenBackend
    from async_bento.registry.mirror.mirror import Mirror
    from async_bento.registry.pages.views import Pages
    from async_bento.registry.records.base import Found, Item, Repository, UploadStatus
    from async_bento.registry.records.query import ListQuery
    from async_bento.registry.tokens import Role
    from async_bento.registry.transmission import TransmissionPolicy

    ItemHandler = Callable[[ItemType, web.Request], Awaitable[web.StreamResponse]]
    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_REQUEST_SIZE = 4 * MiB
"""BentoCloud's limit for JSON, in bytes."""

_CONCURRENT_LISTS = 4
"""Further lists wait, so that other requests are answered meanwhile."""

_ITEMS_PER_STEP = 50
"""Items that are written without a pause."""

log = logging.getLogger(__package__)


class Api:
    """The request handlers."""

    def __init__(
        self,
        backend: OpenBackend,
        transmission: TransmissionPolicy,
        base_url: BaseUrl | None = None,
        mirror: Mirror | None = None,
        pages: type[Pages] | None = None,
    ) -> None:
        self._records = backend.records
        self._uploads = backend.uploads
        self._backend_routes = backend.routes
        self._audit = backend.audit
        self._transmission = transmission
        self._base_url = base_url or BaseUrl()
        self._mirror = mirror
        self.access = Access(backend.tokens)
        self.operation = Operation(backend.check, backend.metrics, self._base_url)
        self._pages = None if pages is None else pages(backend, self.access, self._base_url)
        self._lists = asyncio.Semaphore(_CONCURRENT_LISTS)

    def application(self) -> web.Application:
        """Build the application; the backend's own routes need a presigned URL instead of the token."""
        # The first is the outermost: it counts and logs what the others refuse.
        middlewares = [self.operation.follow, _send_errors_as_json, self.access.authenticate]
        if self._pages is not None:
            middlewares.insert(1, self._pages.show_errors)  # around the JSON of errors, which it replaces
        app = web.Application(client_max_size=MAX_REQUEST_SIZE, middlewares=middlewares)
        app.add_routes([] if self._pages is None else self._pages.routes())
        app.add_routes([route("GET", "/auth/current", "read", _get_user)])
        app.add_routes([route("GET", "/current_org", "read", _get_organization)])
        app.add_routes(self.operation.routes())
        app.on_response_prepare.append(set_headers)
        app.add_routes([route("GET", "/version", "read", _get_version)])
        app.add_routes([route("GET", "/labels", "read", self._mirrored(self._list_labels))])
        app.add_routes(unsupported_routes())
        app.add_routes(self._backend_routes)
        for item_type in ITEM_TYPES:
            app.add_routes(self._routes(item_type))
        users = f"/{MODEL.repositories}/{{name}}/{MODEL.items}/{{version}}/{BENTO.items}"
        app.add_routes([route("GET", users, "read", self._mirrored(self._list_bentos_of))])
        return app

    def _routes(self, item_type: ItemType) -> list[web.AbstractRouteDef]:
        repositories = f"/{item_type.repositories}"
        items = f"{repositories}/{{name}}/{item_type.items}"
        routes: list[tuple[str, str, Role, ItemHandler]] = [
            ("GET", repositories, "read", self._list_repositories),
            ("POST", repositories, "push", self._create_repository),
            ("GET", f"{repositories}/{{name}}", "read", self._get_repository),
            ("PATCH", f"{repositories}/{{name}}", "push", self._update_repository),
            ("DELETE", f"{repositories}/{{name}}", "admin", self._delete_repository),
            ("GET", f"/{item_type.items}", "read", self._list),
            ("GET", items, "read", self._list),
            ("POST", items, "push", self._create),
            ("GET", f"{items}/{{version}}", "read", self._get),
            ("PATCH", f"{items}/{{version}}", "push", self._update),
            ("DELETE", f"{items}/{{version}}", "admin", self._delete),
            ("PATCH", f"{items}/{{version}}/start_upload", "push", self._start_upload),
            ("PATCH", f"{items}/{{version}}/finish_upload", "push", self._finish_upload),
            ("PATCH", f"{items}/{{version}}/presign_upload_url", "push", self._presign_upload),
            ("PATCH", f"{items}/{{version}}/presign_download_url", "read", self._presign_download),
            ("PATCH", f"{items}/{{version}}/start_multipart_upload", "push", self._start_multipart),
            ("PATCH", f"{items}/{{version}}/presign_multipart_upload_url", "push", self._presign_part),
            ("PATCH", f"{items}/{{version}}/complete_multipart_upload", "push", self._complete_multipart),
            ("PUT", f"{items}/{{version}}/upload", "push", self._upload),
            ("GET", f"{items}/{{version}}/download", "read", self._download),
        ]
        return [
            route(method, path, role, self._mirrored(partial(handler, item_type)))
            for method, path, role, handler in routes
        ]

    def _mirrored(self, handler: Handler) -> Handler:
        """Let the mirror, if the registry is one, answer the requests of a handler, which are allowed."""
        return handler if self._mirror is None else partial(self._mirror.answer, handler)

    async def _create_repository(self, item_type: ItemType, request: web.Request) -> web.Response:
        body = schemas.parse_request(schemas.RepositoryRequest, await request.read())
        name, token = check_tag_part("name", body.name), request[TOKEN]
        check_covered(token, name)
        repository = await self._records.create_repository(item_type, name, body.description, creator=token.name)
        return web.json_response(self._repository_fields(item_type, repository))

    async def _get_repository(self, item_type: ItemType, request: web.Request) -> web.Response:
        name = _name(request)
        repository = await self._records.repository(item_type, name)
        return web.json_response(self._repository_fields(item_type, repository))

    async def _list_repositories(self, item_type: ItemType, request: web.Request) -> web.Response:
        query = parse_list_query(request.query, request[TOKEN].prefix)
        found, total = await self._records.list_repositories(item_type, query)
        repositories = [self._repository_fields(item_type, each) for each in found]
        return web.json_response(
            {"start": query.start, "count": query.requested, "total": total, "items": repositories}
        )

    async def _update_repository(self, item_type: ItemType, request: web.Request) -> web.Response:
        body = schemas.parse_request(schemas.RepositoryUpdateRequest, await request.read())
        repository = await self._records.update_repository(item_type, _name(request), body.description)
        return web.json_response(self._repository_fields(item_type, repository))

    async def _delete_repository(self, item_type: ItemType, request: web.Request) -> web.Response:
        repository = await self._records.delete_repository(item_type, _name(request))
        return web.json_response(self._repository_fields(item_type, repository))

    async def _list(self, item_type: ItemType, request: web.Request) -> web.Response:
        query = parse_list_query(request.query, request[TOKEN].prefix)
        name = _name(request) if "name" in request.match_info else None
        return await self._list_page(
            item_type, request, query, lambda: self._records.list_items(item_type, query, name)
        )

    async def _list_bentos_of(self, request: web.Request) -> web.Response:
        query, model = parse_list_query(request.query, request[TOKEN].prefix), _item_ref(MODEL, request)
        find = partial(self._records.list_bentos_of, model.name, model.version, query)
        return await self._list_page(BENTO, request, query, find)

    async def _list_page(
        self, item_type: ItemType, request: web.Request, query: ListQuery, find: Callable[[], Awaitable[Found]]
    ) -> web.Response:
        async with self._lists:
            if request.transport is None:  # the client closed the connection while it waited
                raise ConnectionResetError
            page = await find()
            # Texts, put together below: the manifests of a page are megabytes of JSON that need not be parsed.
            items = await self._write_items(item_type, page)
            fields: JsonObject = {"start": query.start, "count": query.requested, "total": page.total}
            text = schemas.to_json(fields, items=f"[{', '.join(items)}]")
        return _json_response(text)

    async def _list_labels(self, request: web.Request) -> web.Response:
        wanted = request.query.get("resource_type", "")
        prefix = request[TOKEN].prefix
        of_types = [await self._records.labels(each, prefix) for each in ITEM_TYPES if wanted in ("", each.item)]
        keys = sorted({key for values in of_types for key in values})
        merged = {key: sorted({value for values in of_types for value in values.get(key, ())}) for key in keys}
        return web.json_response([{"key": key, "values": values} for key, values in merged.items()])

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
        item = await self._records.create_item(item_type, name, new, creator=request[TOKEN].name)
        return self._respond(item_type, item)

    async def _get(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        whole = await self._records.find(item_type, ref.name, ref.version)
        (text,) = await self._write_items(item_type, whole.item)
        text = f'{text[:-1]}, "checksums": {json.dumps(schemas.checksums(whole.content))}}}'
        if item_type is BENTO:
            covered = [model for model in whole.models.items if request[TOKEN].covers(model.repository)]
            models = await self._write_items(MODEL, replace(whole.models, items=covered))
            text = f'{text[:-1]}, "models": [{", ".join(models)}]}}'
        return _json_response(text)

    async def _update(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        body = schemas.parse_request(schemas.UpdateRequest, await request.read())
        change = Change(description=body.description, manifest=body.manifest, labels=body.labels)
        return self._respond(item_type, await self._update_record(request, ref, change))

    async def _delete(self, item_type: ItemType, request: web.Request) -> web.Response:
        force = request.query.get("force", "").lower() in ("true", "1")
        ref = _item_ref(item_type, request)
        # The bytes are removed after the record: not to be cut off between them.
        found = await shielded(self._uploads.delete(ref, by=request[ACTOR], force=force))
        (text,) = await self._write_items(item_type, found)
        return _json_response(text)

    async def _start_upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        change = Change(upload_status="uploading", upload_started_at=utc_now())
        return self._respond(item_type, await self._update_record(request, _item_ref(item_type, request), change))

    async def _finish_upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        body = schemas.parse_request(schemas.FinishRequest, await request.read())
        change = Change(upload_status=body.status, upload_finished_at=utc_now(), upload_finished_reason=body.reason)
        if body.status == "success":
            item = await self._get_record(ref)
            change = replace(change, publish=await self._uploads.completed(item), uid=item.uid)
        # A client that is cancelled reports its failure at once, which may overtake the start or the creation.
        await self.operation.wait_for(
            self.operation.running("PATCH", f"{request.path.rpartition('/')[0]}/start_upload")
        )
        creations = self.operation.running("POST", request.path.rsplit("/", 2)[0])  # of the repository's items
        try:
            return self._respond(item_type, await self._update_record(request, ref, change))
        except RecordNotFoundError:
            if not creations:
                raise
        await self.operation.wait_for(creations)
        return self._respond(item_type, await self._update_record(request, ref, change))

    async def _presign_upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        item = await self._get_mutable(ref)
        url = await self._uploads.presign_put(ref, item) if self._transmission.presign else ""
        return self._respond(item_type, item, presigned_upload_url=self._absolute(request, url))

    async def _presign_download(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        item = await self._get_record(ref)
        if not self._transmission.presign:
            return self._respond(item_type, item)
        current = await self._uploads.current(item)
        url = await self._uploads.presign_get(current)
        await self._audit.record_pull(ref, item, request[ACTOR])
        fields: schemas.TransferFields = {
            "presigned_download_url": self._absolute(request, url),
            "checksums": schemas.checksums(current.content),
        }
        return self._respond(item_type, item, **fields)

    async def _start_multipart(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        item = await self._get_mutable(ref)
        return self._respond(item_type, item, upload_id=await self._uploads.start_multipart(ref, item))

    async def _presign_part(self, item_type: ItemType, request: web.Request) -> web.Response:
        body = schemas.parse_request(schemas.PresignPartRequest, await request.read())
        item = await self._get_mutable(_item_ref(item_type, request))
        url = await self._uploads.presign_part(item, body.upload_id, body.part_number)
        return self._respond(item_type, item, presigned_upload_url=self._absolute(request, url))

    async def _complete_multipart(self, item_type: ItemType, request: web.Request) -> web.Response:
        body = schemas.parse_request(schemas.CompleteRequest, await request.read())
        item = await self._get_record(_item_ref(item_type, request))
        parts = [CompletedPart(part.part_number, part.etag) for part in body.parts]
        await self._uploads.complete_multipart(item, body.upload_id, parts)
        return self._respond(item_type, item)

    async def _upload(self, item_type: ItemType, request: web.Request) -> web.Response:
        ref = _item_ref(item_type, request)
        item = await self._update_record(request, ref, Change(upload_status="uploading", upload_started_at=utc_now()))
        ended = partial(Change, uid=item.uid)
        try:
            with translate_errors():
                async with self._uploads.received(ref, request.content.iter_any(), request.content_length) as received:
                    done = ended(upload_status="success", upload_finished_at=utc_now(), upload_finished_reason="")
                    await self._update_record(request, ref, replace(done, publish=received))
        except ImmutableError:
            raise  # another upload was faster
        except BaseException as error:
            reason = error.message if isinstance(error, RegistryError) else "the upload was interrupted"
            await shielded(self._report_failure(request, ref, item, reason))
            raise
        return web.Response()

    async def _report_failure(self, request: web.Request, ref: ItemRef, item: Item, reason: str) -> None:
        """Report a failed upload; an item whose bytes it would have replaced still has them."""
        with suppress(RecordNotFoundError):  # it was deleted
            status: UploadStatus = "success" if await self._uploads.is_published(item) else "failed"
            change = Change(upload_status=status, upload_finished_at=utc_now(), upload_finished_reason=reason)
            await self._update_record(request, ref, replace(change, uid=item.uid))

    async def _download(self, item_type: ItemType, request: web.Request) -> web.StreamResponse:
        ref = _item_ref(item_type, request)
        item = await self._get_record(ref)
        async with self._uploads.open(item) as blob:
            if is_first_of_pull(request):
                await self._audit.record_pull(ref, item, request[ACTOR])
            return await send_blob(request, blob)

    async def _get_record(self, ref: ItemRef) -> Item:
        return await self._records.item(ref.item_type, ref.name, ref.version)

    async def _get_mutable(self, ref: ItemRef) -> Item:
        """Return a record; raise `ConflictError` if its bytes must not be replaced."""
        item = await self._get_record(ref)
        if self._records.immutable and item.upload_status == "success":
            raise ImmutableError(item.repository, item.version)
        return item

    async def _update_record(self, request: web.Request, ref: ItemRef, change: Change) -> Item:
        return await self._records.update_item(ref.item_type, ref.name, ref.version, change, by=request[ACTOR])

    async def _write_items(self, item_type: ItemType, found: Found) -> list[str]:
        """Write the JSON of items, each with its repository."""
        repositories = {name: self._repository_fields(item_type, each) for name, each in found.repositories.items()}
        texts: list[str] = []
        for item in found.items:
            if len(texts) % _ITEMS_PER_STEP == _ITEMS_PER_STEP - 1:
                await asyncio.sleep(0)  # other requests go on meanwhile
            strategy = self._transmission.strategy(item.repository)
            texts.append(schemas.item_json(item_type, item, strategy, repository=repositories.get(item.repository)))
        return texts

    def _repository_fields(self, item_type: ItemType, repository: Repository) -> JsonObject:
        return schemas.repository_fields(item_type, repository, self._transmission.strategy(repository.name))

    def _respond(self, item_type: ItemType, item: Item, **transfer: Unpack[schemas.TransferFields]) -> web.Response:
        strategy = self._transmission.strategy(item.repository)
        return _json_response(schemas.item_json(item_type, item, strategy, **transfer))

    def _absolute(self, request: web.Request, url: str) -> str:
        return self._base_url.find(request) + url if url.startswith("/") else url


def _json_response(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


async def _get_user(request: web.Request) -> web.Response:
    token = request[TOKEN]
    return web.json_response(schemas.user_response(token.name, is_admin=token.role == "admin"))


async def _get_version(_request: web.Request) -> web.Response:
    return web.json_response({"version": __version__, "git_commit": "", "build_date": ""})


async def _get_organization(_request: web.Request) -> web.Response:
    return web.json_response(schemas.organization_response())


@web.middleware
async def _send_errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        with translate_errors():
            return await handler(request)
    except web.HTTPException as error:
        allowed = error.headers.get("Allow")
        return _error_response(error.status, error.reason, {"Allow": allowed} if allowed else None)
    except AccessDeniedError as error:  # under the key of Yatai's login
        return web.json_response({"message": error.message}, status=error.status)
    except RegistryError as error:
        return _error_response(error.status, error.message, error.headers)
    except Exception:
        log.exception("a request failed: %s %s (%s)", request.method, request.path, request.get(REQUEST_ID))
        return _error_response(500, "the request failed: internal error. The registry's log has the reason.")


def _error_response(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=headers)


def _name(request: web.Request) -> str:
    return check_tag_part("name", request.match_info["name"])


def _item_ref(item_type: ItemType, request: web.Request) -> ItemRef:
    return ItemRef(item_type, _name(request), check_tag_part("version", request.match_info["version"]))

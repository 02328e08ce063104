"""The routes of the pages: login, lists, items and storage. Nothing here changes a bento or a model."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

from aiohttp import web

from async_bento._core.concurrency import run_in_new_thread
from async_bento.config import KiB
from async_bento.registry.access import API_PREFIX, TOKEN, AccessDeniedError, TooManyGuessesError, check_covered
from async_bento.registry.errors import BadRequestError, ForbiddenError, RecordNotFoundError, RegistryError
from async_bento.registry.item_types import BENTO, ITEM_TYPES, MODEL, ItemRef, check_tag_part
from async_bento.registry.operation import ADDRESS
from async_bento.registry.pages.files import list_files
from async_bento.registry.pages.rendering import STATIC, render, url
from async_bento.registry.pages.session import (
    LIFETIME,
    cookie_name,
    create_session,
    find_session,
    is_same_origin,
    local_path,
)
from async_bento.registry.records.base import model_tags
from async_bento.registry.records.query import ListQuery, parse_list_query
from async_bento.registry.tokens import digest_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from async_bento.registry.access import Access
    from async_bento.registry.backend import OpenBackend
    from async_bento.registry.base_url import BaseUrl
    from async_bento.registry.item_types import ItemType
    from async_bento.registry.pages.files import Listing
    from async_bento.registry.records.base import Found, Item, Whole

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("async_bento.registry")

IS_PAGE = web.RequestKey("is_page", bool)

PAGE_SIZE = 50
"""Items on a page."""

_SHORT_LIST = 20
"""Bentos that use a model, and events, on the page of an item."""

_MAX_REPOSITORIES = 200
"""Rows of the page about storage."""

_MAX_FORM = 8 * KiB
"""Bytes of the form that logs in."""

_CONCURRENT_PAGES = 4
"""Further pages wait, so that other requests are answered meanwhile."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    # With no-referrer, browsers would send forms with the origin `null`.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}

_STATIC_HEADERS = {
    # A new version has another URL: templates add the digest of the file.
    "Cache-Control": "public, max-age=86400",
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


class NamedModel(NamedTuple):
    """A model that a bento names, and whether the registry has it and the token covers it."""

    name: str
    version: str
    is_found: bool


class Pages:
    """The request handlers of the pages."""

    def __init__(self, backend: OpenBackend, access: Access, base_url: BaseUrl) -> None:
        self._backend = backend
        self._access = access
        self._base_url = base_url
        self._rendering = asyncio.Semaphore(_CONCURRENT_PAGES)

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return the routes; all but the login, its files and `robots.txt` need a session."""
        routes: list[web.AbstractRouteDef] = [
            web.get("/", partial(self._private, self._show_start)),
            web.get("/storage", partial(self._private, self._show_storage)),
            web.get("/login", partial(self._public, self._show_login)),
            web.post("/login", partial(self._public, self._log_in)),
            web.post("/logout", partial(self._public, self._log_out)),
            web.get("/static/{file}", _get_static_file),
            web.get("/robots.txt", _get_robots),
        ]
        for item_type in ITEM_TYPES:
            show_list, show_item = partial(self._show_list, item_type), partial(self._show_item, item_type)
            routes += [
                web.get(f"/{item_type.items}", partial(self._private, show_list)),
                web.get(f"/{item_type.items}/{{name}}", partial(self._private, show_list)),
                web.get(f"/{item_type.items}/{{name}}/{{version}}", partial(self._private, show_item)),
            ]
        return routes

    @web.middleware
    async def show_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Show an error of a page, or of a path that does not exist, to a person as a page."""
        response = await handler(request)
        is_error = response.status >= web.HTTPBadRequest.status_code and response.content_type == "application/json"
        if not (is_error and isinstance(response, web.Response) and _is_for_person(request)):
            return response
        fields = json.loads(response.text or "{}")
        headers = {name: response.headers[name] for name in ("Allow", "Retry-After") if name in response.headers}
        message = fields.get("error", fields.get("message", ""))
        status = response.status
        return await self._render(request, "error.html", status=status, headers=headers, message=message, code=status)

    async def _public(self, handler: Handler, request: web.Request) -> web.StreamResponse:
        request[IS_PAGE] = True
        return await handler(request)

    async def _private(self, handler: Handler, request: web.Request) -> web.StreamResponse:
        """Answer a request of somebody who has logged in; send others to the login."""
        request[IS_PAGE] = True
        base_url = self._base_url.find(request)
        token = await find_session(request.cookies.get(cookie_name(base_url), ""), self._backend.tokens)
        if token is None:
            return _redirect(url(_path_of(base_url), "login", next="" if request.path == "/" else str(request.rel_url)))
        request[TOKEN] = token
        if "name" in request.match_info:
            check_covered(token, check_tag_part("name", request.match_info["name"]))
        return await handler(request)

    async def _show_login(self, request: web.Request) -> web.Response:
        return await self._render(request, "login.html", next=local_path(request.query.get("next", "/")), error="")

    async def _log_in(self, request: web.Request) -> web.Response:
        base_url = self._base_url.find(request)
        _check_origin(request, base_url)
        form = await _read_form(request)
        secret, wanted = form.get("token", "").strip(), local_path(form.get("next", "/"))
        retry: dict[str, str] = {}
        try:
            if not secret:
                raise AccessDeniedError("cannot log in: the token is missing. Enter one.")
            token = await self._access.check(secret, request[ADDRESS])
        except (AccessDeniedError, TooManyGuessesError) as error:
            if isinstance(error, TooManyGuessesError):
                retry = {"Retry-After": str(error.retry_after)}
            return await self._render(
                request, "login.html", status=error.status, headers=retry, next=wanted, error=error.message
            )
        response = _redirect(_path_of(base_url) + wanted)
        self._set_cookie(response, base_url, create_session(token, digest_of(secret)), LIFETIME)
        return response

    async def _log_out(self, request: web.Request) -> web.Response:
        base_url = self._base_url.find(request)
        _check_origin(request, base_url)
        response = _redirect(url(_path_of(base_url), "login"))
        self._set_cookie(response, base_url, "", 0)
        return response

    async def _show_start(self, request: web.Request) -> web.Response:
        return _redirect(url(_path_of(self._base_url.find(request)), BENTO.items))

    async def _show_list(self, item_type: ItemType, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        given = {"q": request.query.get("q", ""), "start": request.query.get("start", ""), "count": str(PAGE_SIZE)}
        query = parse_list_query(given, request[TOKEN].prefix)
        async with self._rendering:
            found = await self._backend.records.list_items(item_type, query, name)
            return await self._render(
                request,
                "list.html",
                item_type=item_type,
                name=name,
                repository=None if name is None else await self._backend.records.repository(item_type, name),
                found=found,
                query=given["q"],
                start=query.start,
                page_size=PAGE_SIZE,
            )

    async def _show_item(self, item_type: ItemType, request: web.Request) -> web.Response:
        version = check_tag_part("version", request.match_info["version"])
        ref, token = ItemRef(item_type, request.match_info["name"], version), request[TOKEN]
        async with self._rendering:
            whole = await self._backend.records.find(item_type, ref.name, ref.version)
            events = await self._backend.audit.list_of(ref, count=_SHORT_LIST) if token.allows("admin") else None
            using: Found | None = None
            if item_type is MODEL:
                with suppress(RecordNotFoundError):  # the model was deleted meanwhile
                    query = ListQuery(requested=_SHORT_LIST, prefix=token.prefix)
                    using = await self._backend.records.list_bentos_of(ref.name, ref.version, query)
            (item,) = whole.item.items
            return await self._render(
                request,
                "item.html",
                item_type=item_type,
                item=item,
                tag=f"{ref.name}:{ref.version}",
                content=whole.content,
                models=_named_models(whole, token.prefix),
                using=using,
                events=events,
                listing=await self._list_files(item),
                endpoint=self._base_url.find(request),
            )

    async def _list_files(self, item: Item) -> Listing | None:
        """List the files of an item; None if it has no bytes, or its storage is away."""
        try:
            async with self._backend.uploads.open(item) as blob:
                return await list_files(blob)
        except (RegistryError, OSError) as error:
            if not isinstance(error, RecordNotFoundError):
                log.warning("cannot list the files of %s:%s: %s", item.repository, item.version, error)
            return None

    async def _show_storage(self, request: web.Request) -> web.Response:
        token = request[TOKEN]
        async with self._rendering:
            used = [each for each in await self._backend.retention.usage() if token.covers(each.name)]
            totals = None if token.prefix else await self._backend.blob_records.usage()
            return await self._render(
                request,
                "storage.html",
                used=used[:_MAX_REPOSITORIES],
                n_repositories=len(used),
                n_versions=sum(each.n_versions for each in used),
                size=sum(each.size for each in used),
                unused=None if totals is None else totals.unused,
            )

    async def _render(
        self,
        request: web.Request,
        template: str,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **context: object,
    ) -> web.Response:
        """Render a template in a thread: a long README takes a while."""
        base = ""
        with suppress(BadRequestError):  # a request without a Host header gets this as its error
            base = _path_of(self._base_url.find(request))
        shared = {"url": partial(url, base), "path": request.path, "viewer": request.get(TOKEN)}
        text = await run_in_new_thread(partial(render, template, **shared, **context))
        return web.Response(text=text, status=status, content_type="text/html", headers={**_HEADERS, **(headers or {})})

    def _set_cookie(self, response: web.Response, base_url: str, value: str, lifetime: int) -> None:
        parts = urlsplit(base_url)
        response.set_cookie(
            cookie_name(base_url),
            value,
            max_age=lifetime,
            path=parts.path or "/",
            secure=parts.scheme == "https",
            httponly=True,
            samesite="Lax",  # with Strict, a link in a chat would lead to the login
        )


def _is_for_person(request: web.Request) -> bool:
    if request.match_info.http_exception is None:
        return bool(request.get(IS_PAGE))
    return "text/html" in request.headers.get("Accept", "") and not request.path.startswith(API_PREFIX)


def _named_models(whole: Whole, prefix: str) -> list[NamedModel]:
    """Return the models that a bento names, in its order."""
    (item,) = whole.item.items
    found = {(model.repository, model.version) for model in whole.models.items}
    tags = model_tags(json.loads(item.manifest or "null"))
    return [NamedModel(*tag, is_found=tag in found and tag[0].startswith(prefix)) for tag in tags]


def _check_origin(request: web.Request, base_url: str) -> None:
    if not is_same_origin(request, base_url):
        raise ForbiddenError("the form was refused: another site has sent it. Open the login of the registry instead.")


async def _read_form(request: web.Request) -> dict[str, str]:
    size = request.content_length
    if request.content_type != "application/x-www-form-urlencoded" or size is None or size > _MAX_FORM:
        raise BadRequestError("cannot log in: the request is no form of a few bytes. Use the form of the login page.")
    raw = (await request.read()).decode(errors="replace")
    try:
        return {name: values[0] for name, values in parse_qs(raw, max_num_fields=10).items()}
    except ValueError as error:
        raise BadRequestError("cannot log in: the form has too many fields. Use the form of the login page.") from error


def _path_of(base_url: str) -> str:
    return urlsplit(base_url).path


def _redirect(location: str) -> web.Response:
    return web.Response(status=web.HTTPSeeOther.status_code, headers={**_HEADERS, "Location": location})


async def _get_static_file(request: web.Request) -> web.Response:
    file = STATIC.get(request.match_info["file"])
    if file is None:
        raise web.HTTPNotFound
    return web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=_STATIC_HEADERS)


async def _get_robots(_request: web.Request) -> web.Response:
    return web.Response(text="User-agent: *\nDisallow: /\n")

"""The pages for browsers: login, lists, items, storage, hostile records and access."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import tarfile
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from yarl import URL

from async_bento.registry.errors import StorageError
from async_bento.registry.pages.files import Listing, list_files
from async_bento.registry.pages.rendering import (
    MAX_MANIFEST,
    MAX_README,
    format_manifest,
    label_query,
    render_readme,
    url,
)
from async_bento.registry.pages.session import LIFETIME, cookie_name, create_session, find_session, local_path
from async_bento.registry.tokens import Actor, Token
from async_bento.rest.schemas import LabelItemSchema
from tests.registry.conftest import BUILD_AT, MODELS, Caller, disk_only, records_only
from tests.registry.test_access import PAGES, create_token, records_of
from tests.registry.test_operation import values

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.registry.conftest import Response, Serve

pytestmark = disk_only

HOSTILE = """"'><script>alert(1)</script><img src=x onerror=alert(1)><a href="javascript:alert(1)">x</a>{{ 7 * 7 }}"""


class Element(NamedTuple):
    name: str
    attributes: dict[str, str]


class Html(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("a", "code", "em", "wbr"):
            self.texts.append(" ")
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    @property
    def links(self) -> list[str]:
        return [each.attributes["href"] for each in self.elements if each.name == "a"]

    def all(self, name: str) -> list[dict[str, str]]:
        return [each.attributes for each in self.elements if each.name == name]


class Browser:
    """Sends requests with one cookie and follows no redirects; a form has fields."""

    def __init__(self, caller: Caller, *, headers: dict[str, str] | None = None) -> None:
        self.caller = caller
        self.headers = {"Accept": "text/html,*/*;q=0.8"} | (headers or {})

    async def get(self, path: str, **headers: str) -> Response:
        address = URL(f"{self.caller.registry.endpoint}{path}", encoded=True)
        return await self.caller.bare("GET", address, headers=self.headers | headers, allow_redirects=False)

    async def page(self, path: str) -> Html:
        response = await self.get(path)
        assert response.status == 200, response
        return Html(response.body.decode())

    async def post(self, path: str, *, headers: dict[str, str] | None = None, **fields: str) -> Response:
        address = f"{self.caller.registry.endpoint}{path}"
        sent = self.headers | (headers or {})
        return await self.caller.bare("POST", address, data=fields, headers=sent, allow_redirects=False)

    async def log_in(self, token: str | None = None, **fields: str) -> Response:
        response = await self.post("/login", token=token or self.caller.registry.api_token, **fields)
        assert response.status == 303, response
        self.headers["Cookie"] = response.headers["Set-Cookie"].partition(";")[0]
        return response


async def logged_in(caller: Caller, token: str | None = None, **headers: str) -> Browser:
    caller.session.cookie_jar.clear()
    browser = Browser(caller, headers=headers)
    await browser.log_in(token)
    caller.session.cookie_jar.clear()
    return browser


@pytest.fixture
async def browser(caller: Caller) -> Browser:
    """A browser in which the first token has logged in."""
    return await logged_in(caller)


async def create_items(caller: Caller, count: int, **fields: Any) -> None:
    for number in range(count):
        build_at = f"2024-05-{number // 24 + 1:02} {number % 24:02}:20:30.123456"
        await caller.create("iris", f"v{number}", **({"build_at": build_at} | fields))


# Login


@pytest.mark.parametrize("route", PAGES)
async def test_page_requires_login(caller: Caller, route: str):
    path = route.removeprefix("GET ").format(name="iris", version="v1")
    response = await Browser(caller).get(path)
    wanted = "" if path == "/" else f"?next={path.replace('/', '%2F')}"
    assert (response.status, response.headers["Location"]) == (303, f"/login{wanted}")
    assert response.body == b""


async def test_login_returns_to_page(caller: Caller):
    browser = Browser(caller)
    location = (await browser.get("/bentos?q=label%3Ateam%3Da%26b&start=1")).headers["Location"]
    form = await browser.page(location)
    assert form.all("form") == [{"method": "post", "action": "/login"}]
    fields = {each["name"]: each.get("value", "") for each in form.all("input")}
    response = await browser.log_in(next=fields["next"])
    assert response.headers["Location"] == "/bentos?q=label%3Ateam%3Da%26b&start=1"
    assert (await browser.get(response.headers["Location"])).status == 200


async def test_login_cookie_hides_token(caller: Caller):
    response = await Browser(caller).log_in()
    name = cookie_name(caller.registry.endpoint)
    cookie, *attributes = response.headers["Set-Cookie"].split("; ")
    assert cookie.startswith(f"{name}=")
    assert sorted(attributes) == ["HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Lax"]
    assert caller.registry.api_token not in cookie
    assert response.headers["Cache-Control"] == "no-store"


async def test_login_keeps_url_prefix(serve: Serve):
    caller = await serve(public_url="https://example.com/team/bentos")
    await caller.create(labels=[{"key": "team", "value": "vision"}])
    browser = Browser(caller)
    assert (await browser.get("/models")).headers["Location"] == "/team/bentos/login?next=%2Fmodels"
    response = await browser.log_in(next="/models")
    assert response.headers["Location"] == "/team/bentos/models"
    attributes = response.headers["Set-Cookie"].split("; ")
    assert "Secure" in attributes
    assert "Path=/team/bentos" in attributes
    for path in ("/bentos", "/bentos/iris", "/bentos/iris/v1", "/storage", "/bentos/none/v1"):
        page = Html((await browser.get(path)).body.decode())
        assert all(link.startswith(("/team/bentos", "#")) for link in page.links), path
        for attributes in page.all("form") + page.all("script") + page.all("link"):
            address = attributes.get("action") or attributes.get("src") or attributes["href"]
            assert address.startswith("/team/bentos/"), path
    text = (await browser.page("/bentos/iris/v1")).text
    assert "async-bento pull iris:v1 --endpoint https://example.com/team/bentos" in text


async def test_forwarded_prefix_is_used(serve: Serve):
    caller = await serve(forwarded_allow_ips=["127.0.0.1"])
    headers = {"X-Forwarded-Prefix": "/x", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "example.com"}
    browser = Browser(caller, headers=headers)
    assert (await browser.get("/")).headers["Location"] == "/x/login"
    assert "Secure" in (await browser.log_in()).headers["Set-Cookie"]


async def test_wrong_token_shows_login(caller: Caller):
    response = await Browser(caller).post("/login", token="wr0ng", next="/models")
    page = Html(response.body.decode())
    assert response.status == 403
    assert "Set-Cookie" not in response.headers
    assert "the API token is unknown, was revoked or has expired" in page.text
    assert {"type": "hidden", "name": "next", "value": "/models"} in page.all("input")
    assert b"wr0ng" not in response.body
    assert (await Browser(caller).post("/login", token=" ")).status == 403


async def test_wrong_logins_are_throttled(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.registry.access._FREE_GUESSES", 1)
    monkeypatch.setattr("async_bento.registry.access._MAX_DELAY", 0.5)
    caller = await serve()
    responses = [await Browser(caller).post("/login", token="wrong") for _ in range(2)]
    assert [response.status for response in responses] == [403, 429]
    assert responses[1].headers["Retry-After"] == "1"
    page = Html(responses[1].body.decode())
    assert "too many wrong tokens" in page.text
    assert page.all("input")  # the form, for another try


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "none"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "{origin}"}, 303),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 303),
    ],
)
@pytest.mark.parametrize("path", ["/login", "/logout"])
async def test_cross_site_form_is_refused(caller: Caller, path: str, headers: dict[str, str], status: int):
    sent = {name: value.format(origin=caller.registry.endpoint) for name, value in headers.items()}
    response = await Browser(caller).post(path, token=caller.registry.api_token, headers=sent)
    assert response.status == status
    assert ("Set-Cookie" in response.headers) == (status == 303)
    assert status == 303 or response.headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "wanted",
    ["https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example", "evil", ""],
)
async def test_login_rejects_open_redirect(caller: Caller, wanted: str):
    assert (await Browser(caller).log_in(next=wanted)).headers["Location"] == "/"


@pytest.mark.parametrize("path", ["/", "/bentos?q=a", "/bentos/iris/v1", "/%2f/evil"])
def test_local_path_is_kept(path: str):
    assert local_path(path) == path


async def test_login_rejects_other_bodies(caller: Caller):
    async def chunks() -> AsyncGenerator[bytes]:
        yield f"token={caller.registry.api_token}".encode()

    address = f"{caller.registry.endpoint}/login"
    for options in (
        {"json": {"token": caller.registry.api_token}},
        {"data": {"token": "x" * (8192 - len("token=") + 1)}},
        {"data": [("token", "x")] * 11},
        {"data": chunks(), "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    ):
        response = await caller.bare("POST", address, **options)
        assert response.status == 400, options
        assert b"cannot log in" in response.body
    assert (await caller.bare("POST", address, data={"token": "x" * (8192 - len("token="))})).status == 403


# Sessions


async def test_logout_removes_cookie(browser: Browser):
    response = await browser.post("/logout")
    assert (response.status, response.headers["Location"]) == (303, "/login")
    assert "Max-Age=0" in response.headers["Set-Cookie"]


@records_only
async def test_revoked_token_ends_session(caller: Caller):
    browser = await logged_in(caller, await create_token(caller, "gone", "read"))
    assert (await browser.get("/bentos")).status == 200
    await records_of(caller).revoke("gone", by=Actor("test"))
    assert (await browser.get("/bentos")).status == 303


async def test_expired_token_ends_session(caller: Caller):
    browser = await logged_in(caller, await create_token(caller, "robot", "read"))
    past = datetime.now(timezone.utc) - timedelta(seconds=1)
    await records_of(caller).rotate("robot", old_until=past, expires_at=None, by=Actor("test"))
    assert (await browser.get("/bentos")).status == 303


async def test_session_ends_at_expiry(monkeypatch: pytest.MonkeyPatch):
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    token = Token(1, "robot", "read", "", now, None, None)

    async def find_by_id(_: int) -> tuple[Token, str]:
        return token, "digest"

    monkeypatch.setattr("async_bento.registry.pages.session.utc_now", lambda: now)
    records: Any = SimpleNamespace(find_by_id=find_by_id)
    session = create_session(token, "digest")
    now += timedelta(seconds=LIFETIME - 1)
    assert await find_session(session, records) == token
    now += timedelta(seconds=1)
    assert await find_session(session, records) is None


async def test_session_expires(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.registry.pages.session.LIFETIME", 0)
    assert (await (await logged_in(caller)).get("/bentos")).status == 303


async def test_forged_session_is_refused(browser: Browser):
    name, _, value = browser.headers["Cookie"].partition("=")
    token_id, expires_at, signature = value.split(".")
    for forged in (
        f"{int(token_id) + 1}.{expires_at}.{signature}",
        f"{token_id}.{int(expires_at) + 1}.{signature}",
        f"{token_id}.{expires_at}.{signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
        f"{token_id}.{expires_at}.",
        "x",
        "",
    ):
        assert (await browser.get("/bentos", Cookie=f"{name}={forged}")).status == 303, forged


async def test_session_opens_no_api(browser: Browser):
    cookie = browser.headers["Cookie"]
    path = "/api/v1/bentos"
    assert (await browser.get(path)).status == 403
    assert (await browser.get(path, **{"X-YATAI-API-TOKEN": cookie.partition("=")[2]})).status == 403


# Lists


async def test_paging_shows_newest_first(caller: Caller, browser: Browser):
    await create_items(caller, 51)
    page = await browser.page("/bentos")
    tags = [link for link in page.links if link.startswith("/bentos/iris/")]
    assert tags[:2] == ["/bentos/iris/v50", "/bentos/iris/v49"]
    assert len(tags) == 50
    assert "1\N{EN DASH}50 of 51" in page.text
    assert "/bentos?start=50" in page.links
    page = await browser.page("/bentos?start=50")
    assert [link for link in page.links if link.startswith("/bentos/iris/")] == ["/bentos/iris/v0"]
    assert "51\N{EN DASH}51 of 51" in page.text
    previous = next(each for each in page.all("a") if each.get("rel") == "prev")
    assert previous["href"] == "/bentos"


async def test_list_shows_item_columns(caller: Caller, browser: Browser):
    token = await create_token(caller, "robot", "push")
    labels = [{"key": f"key{number}", "value": f"value{number}"} for number in range(6)]
    await caller.ok("POST", "/model_repositories", json={"name": "weights", "description": "Theirs."}, token=token)
    body = {"version": "v1", "manifest": {"size_bytes": 1536}, "build_at": BUILD_AT, "labels": labels}
    await caller.ok("POST", caller.about(MODELS).items("weights"), json=body, token=token)
    for path in ("/models", "/models/weights"):
        page = await browser.page(path)
        for shown in ("1.5 KiB", "2024-05-01 10:20", "Pending", "robot", "key0", "value3", "+2 more"):
            assert shown in page.text, (path, shown)
        assert {"datetime": "2024-05-01T10:20:30Z"} in page.all("time")
        assert "value4" not in page.text
        assert "/models?q=label%3Akey0%3Dvalue0" in page.links
    assert "Theirs." in page.text


async def test_search_by_words_and_labels(caller: Caller, browser: Browser):
    await caller.create("iris", labels=[{"key": "team", "value": "a&b"}])
    await caller.create("other", labels=[{"key": "team", "value": "them"}])
    for query in ("q=ir", "q=label%3Ateam%3Da%26b", "q=-label%3Ateam%3Dthem"):
        page = await browser.page(f"/bentos?{query}")
        assert ("/bentos/iris/v1" in page.links, "/bentos/other/v1" in page.links) == (True, False), query
    page = await browser.page("/bentos?q=none")
    assert "No bento matches." in page.text
    assert next(each for each in page.all("input") if each["name"] == "q")["value"] == "none"


async def test_empty_registry_has_pages(browser: Browser):
    assert "No bento has been pushed yet." in (await browser.page("/bentos")).text
    assert "No model has been pushed yet." in (await browser.page("/models")).text
    assert "The registry has no repositories yet." in (await browser.page("/storage")).text


async def test_root_redirects_to_bentos(browser: Browser):
    assert (await browser.get("/")).headers["Location"] == "/bentos"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("team", "vision", "label:team=vision"),
        ("team", "", "label:team="),
        ("team", "a b", None),
        ("team", "a,b", None),
        ("a=b", "c", None),
        ("", "c", None),
    ],
)
def test_searchable_label_is_link(key: str, value: str, expected: str | None):
    assert label_query(LabelItemSchema(key=key, value=value)) == expected


def test_cookie_name_has_port():
    assert cookie_name("http://127.0.0.1:3000") == "async_bento_3000"
    assert cookie_name("https://bentos.example/team") == "async_bento_https"


def test_url_escapes_parts():
    assert url("/x", "a/b", "c?", q="d&e", start=0) == "/x/a%2Fb/c%3F?q=d%26e"


# Items


async def test_bento_page_shows_record(caller: Caller, browser: Browser):
    await caller.about(MODELS).create("weights", "w1")
    manifest = {"models": ["weights:w1", "missing:v1"], "service": "service:Iris", "author": "Zoë"}
    readme = "# Iris\n\nClassifies *irises*. See [the docs](https://docs.example).\n"
    await caller.create(description=readme, manifest=manifest, labels=[{"key": "team", "value": "vision"}])
    assert (await caller.upload(b"bytes")).status == 200
    await caller.download()
    page = await browser.page("/bentos/iris/v1")
    assert "Classifies irises." in page.text
    assert {"href": "https://docs.example", "rel": "noopener noreferrer nofollow"} in page.all("a")
    assert "/models/weights/w1" in page.links
    assert "missing:v1" in page.text
    assert "/models/missing/v1" not in page.links
    assert '"service": "service:Iris", "author": "Zoë"' in page.text
    assert f"async-bento pull iris:v1 --endpoint {caller.registry.endpoint}" in page.text
    assert "bentoml pull iris:v1" in page.text
    assert "Complete" in page.text
    assert "5 B" in page.text
    assert "/bentos?q=label%3Ateam%3Dvision" in page.links
    assert "never" not in page.text


def tar_of(*names: str, mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        directory = tarfile.TarInfo("./src")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name in names:
            member = tarfile.TarInfo(f"./{name}")
            member.size = 300_000
            tar.addfile(member, io.BytesIO(bytes(300_000)))
        link = tarfile.TarInfo("./latest")
        link.type, link.linkname = tarfile.SYMTYPE, "src/service.py"
        tar.addfile(link)
    return file.getvalue()


async def files_on_page(caller: Caller, browser: Browser, body: bytes) -> str:
    await caller.create()
    assert (await caller.upload(body)).status == 200
    page = await browser.page("/bentos/iris/v1")
    return page.text.partition("Files")[2].partition("Manifest")[0]


async def test_item_lists_files(caller: Caller, browser: Browser):
    long = "deep/" * 40 + "weights.bin"
    shown = await files_on_page(caller, browser, tar_of("src/service.py", "<script>alert(1)</script>", long))
    assert "4 files" in shown
    for text in ("src/service.py 293.0 KiB", "<script>alert(1)</script> 293.0 KiB", f"{long} 293.0 KiB"):
        assert text in " ".join(shown.split())
    assert "latest → src/service.py link" in " ".join(shown.split())


@pytest.mark.parametrize("body", [tar_of("a", mode="w:gz"), b"no tar", tar_of("a")[:300]])
async def test_invalid_tar_lists_no_files(caller: Caller, browser: Browser, body: bytes):
    shown = await files_on_page(caller, browser, body)
    assert "The files cannot be listed: the tar is compressed or damaged." in shown


async def test_empty_header_keeps_file_list(caller: Caller, browser: Browser):
    empty = tarfile.TarInfo("./header")
    empty.type = tarfile.XHDTYPE
    assert "4 files" in await files_on_page(caller, browser, empty.tobuf() + tar_of("a", "b", "c"))


async def test_many_files_are_truncated(caller: Caller, browser: Browser, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.registry.pages.files._MAX_FILES", 2)
    assert "the first 2 files" in await files_on_page(caller, browser, tar_of("a", "b", "c"))


async def test_file_list_cost_is_bounded(caller: Caller, browser: Browser, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.registry.pages.files._MAX_WINDOWS", 2)
    assert "the first 2 files" in await files_on_page(caller, browser, tar_of("a", "b", "c"))


class StuckBlob:
    """A blob whose bytes never arrive."""

    size = 10_000
    etag = '"0"'
    is_cancelled = False

    async def read(self, start: int, stop: int) -> AsyncGenerator[bytes]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise
        yield b""


async def test_file_list_timeout_cancels_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("async_bento.registry.pages.files._TIMEOUT", 0)
    blob = StuckBlob()
    assert await list_files(blob) == Listing([], is_whole=False)
    assert blob.is_cancelled


async def test_lost_storage_spares_page(
    caller: Caller, browser: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    await caller.create()
    assert "Files" not in (await browser.page("/bentos/iris/v1")).text  # nothing was uploaded
    assert caplog.messages == []
    assert (await caller.upload(b"bytes")).status == 200

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "no disk")

    monkeypatch.setattr("async_bento.registry.blobs.disk_files.DiskFiles.acquire", fail)
    assert "iris" in (await browser.page("/bentos/iris/v1")).text
    assert caplog.messages == ["cannot list the files of iris:v1: [Errno 5] no disk"]


async def test_hostile_tar_size_is_ignored(caller: Caller, browser: Browser):
    header = tarfile.TarInfo("./PaxHeaders/x")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    body = header.tobuf(tarfile.USTAR_FORMAT) + bytes(20_000)
    assert "cannot be listed" in await files_on_page(caller, browser, body)


@pytest.mark.parametrize(
    "error",
    [
        tarfile.TarError("no tar"),
        StorageError("InternalError", "the disk failed"),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        ValueError("a number"),
        OverflowError("a large number"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_unlistable_tar_spares_page(
    caller: Caller, browser: Browser, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(tarfile.TarFile, "next", fail)
    assert "cannot be listed" in await files_on_page(caller, browser, bytes(20_000))


async def test_model_shows_its_bentos(caller: Caller, browser: Browser):
    await caller.about(MODELS).create("weights", "w1")
    for number in range(22):
        await caller.create("iris", f"v{number}", manifest={"models": ["weights:w1"]})
    page = await browser.page("/models/weights/w1")
    assert len([link for link in page.links if link.startswith("/bentos/iris/")]) == 20
    assert "and 2 more" in page.text
    assert "async-bento models pull weights:w1" in page.text
    assert "bentoml models pull weights:w1" in page.text


async def test_failed_upload_shows_reason(caller: Caller, browser: Browser):
    await caller.create()
    await caller.ok("PATCH", f"{caller.items()}/v1/finish_upload", json={"status": "failed", "reason": "disk full"})
    assert "The upload failed: disk full" in (await browser.page("/bentos/iris/v1")).text


@records_only
async def test_only_admins_see_events(caller: Caller, browser: Browser):
    for version in ("v1", "v2"):
        await caller.create(version=version)
        assert (await caller.upload(b"bytes", version)).status == 200
    await caller.download()
    page = await browser.page("/bentos/iris/v1")
    assert page.text.index("pull admin 127.0.0.1") < page.text.index("push admin 127.0.0.1")
    assert page.text.count("admin 127.0.0.1") == 2  # a push and a pull, but not those of v2
    for role in ("read", "push"):
        other = await logged_in(caller, await create_token(caller, role, role))
        assert "Events" not in (await other.page("/bentos/iris/v1")).text


def test_manifest_at_limit_is_indented():
    manifest = json.dumps({"x": "y" * (MAX_MANIFEST - len('{"x": ""}'))})
    assert format_manifest(manifest) == json.dumps(json.loads(manifest), indent=2)
    assert format_manifest(f"{manifest} ") == manifest


async def test_long_manifest_is_cut(caller: Caller, browser: Browser):
    await caller.create(manifest={"first": 1, "long": "x" * 900_000, "last": 2})
    response = await browser.get("/bentos/iris/v1")
    assert response.status == 200
    assert len(response.body) < MAX_MANIFEST + 20_000
    assert "These are the first 200.0 KiB." in Html(response.body.decode()).text


# Hostile records


async def test_hostile_record_is_escaped(caller: Caller, browser: Browser):
    await caller.api("POST", "/bento_repositories", json={"name": "iris", "description": HOSTILE})
    labels = [{"key": HOSTILE, "value": HOSTILE}, {"key": "k", "value": "<script>alert(1)</script>"}]
    manifest = {HOSTILE: HOSTILE, "models": [HOSTILE]}
    await caller.create(description=HOSTILE, manifest=manifest, labels=labels)
    await caller.ok("PATCH", f"{caller.items()}/v1/finish_upload", json={"status": "failed", "reason": HOSTILE})
    quoted = str(URL.build(path="/bentos", query={"q": HOSTILE}))
    for path in ("/bentos", "/bentos/iris", "/bentos/iris/v1", "/storage", quoted):
        page = Html((await browser.get(path)).body.decode())
        assert [each["src"].partition("?")[0] for each in page.all("script")] == ["/static/copy.js"], path
        assert {each["src"].partition("?")[0] for each in page.all("img")} == {"/static/icon.svg"}, path
        for element in page.elements:
            assert not any(name.startswith("on") or name == "style" for name in element.attributes), path
        assert not any(link.startswith("javascript") for link in page.links), path
        assert ("{{ 7 * 7 }}" in page.text) == (path in ("/bentos", "/bentos/iris", "/bentos/iris/v1")), path


async def test_hostile_login_is_escaped(caller: Caller):
    response = await Browser(caller).post("/login", token=HOSTILE, next=f"/{HOSTILE}")
    assert b"alert(1)" not in response.body
    page = await Browser(caller).get("/login?next=/%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert len(Html(page.body.decode()).all("script")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# A\n## B", "<h3>A</h3>\n<h4>B</h4>\n"),
        ("<b onclick=x>bold</b>", "<p>bold</p>\n"),
        ("<p align=center>Hi &amp; <br></p>", "<p>Hi &amp;</p>"),
        ("<script>alert(1)</script>", "<p>alert(1)</p>"),
        ("<!-- comment -->", ""),
        ("![a<b](https://x.example/y.png)", "<p>a&lt;b</p>\n"),
        ("[docs](docs/x.md)", "<p>docs</p>\n"),
        ("[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>\n"),
        ("[x](data:text/html,y)", "<p>[x](data:text/html,y)</p>\n"),
        ("[x](//evil.example)", "<p>x</p>\n"),
        ("&lt;script&gt;", "<p>&lt;script&gt;</p>\n"),
        (
            "[![build](https://ci.example/b.svg)](https://ci.example)",
            '<p><a href="https://ci.example" rel="noopener noreferrer nofollow">build</a></p>\n',
        ),
        ("a" * MAX_README + "<", f"<pre>{'a' * MAX_README}&lt;</pre>"),
        ("a" * MAX_README, f"<p>{'a' * MAX_README}</p>\n"),
        ("[" * 501, f"<pre>{'[' * 501}</pre>"),
        ("[" * 500, f"<p>{'[' * 500}</p>\n"),
    ],
)
def test_readme_drops_hostile_html(text: str, expected: str):
    assert render_readme(text) == expected


# Prefixes


async def test_prefix_limits_every_page(caller: Caller):
    models = caller.about(MODELS)
    for name in ("team-weights", "secret-weights"):
        await models.create(name)
    manifest = {"models": ["team-weights:v1", "secret-weights:v1"]}
    await caller.create("team-a", manifest=manifest)
    await caller.create("secret", manifest=manifest)
    browser = await logged_in(caller, await create_token(caller, "team", "admin", prefix="team-"))
    for path in ("/bentos", "/models", "/bentos?q=secret", "/models/team-weights/v1", "/storage"):
        assert not any("secret" in link for link in (await browser.page(path)).links if "q=" not in link), path
    links = (await browser.page("/bentos/team-a/v1")).links
    assert ("/models/team-weights/v1" in links, "/models/secret-weights/v1" in links) == (True, False)
    assert "To be removed" not in (await browser.page("/storage")).text
    for path in ("/bentos/secret", "/bentos/secret/v1", "/models/secret-weights", "/models/secret-weights/v1"):
        response = await browser.get(path)
        assert response.status == 403, path
        assert "is for repositories whose names begin with team-" in Html(response.body.decode()).text


# Storage


@records_only
async def test_storage_shows_totals(caller: Caller, browser: Browser):
    await caller.create("iris")
    assert (await caller.upload(b"x" * 3072)).status == 200
    models = caller.about(MODELS)
    await models.create("iris")
    assert (await models.upload(b"x" * 1024)).status == 200
    await caller.create("empty")
    page = await browser.page("/storage")
    for shown in ("Stored 4.0 KiB", "To be removed 0 B", "Versions 3", "Repositories 3", "75.0 %", "25.0 %", "0.0 %"):
        assert shown in page.text, shown
    assert [link for link in page.links if link.count("/") == 2] == ["/bentos/iris", "/models/iris", "/bentos/empty"]
    widths = [each["width"] for each in page.all("rect") if each["class"] == "part"]
    assert widths == ["75.00%", "25.00%", "0.00%"]


# Headers and errors


async def test_pages_have_strict_headers(caller: Caller, browser: Browser):
    await caller.create()
    for path in ("/bentos", "/bentos/iris/v1", "/storage", "/login", "/bentos/none", "/nothing", "/"):
        headers = (await browser.get(path)).headers
        policy = headers["Content-Security-Policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} < {*policy}
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"


async def test_static_files_may_be_cached(caller: Caller):
    for name, content_type in (
        ("style.css", "text/css"),
        ("copy.js", "text/javascript"),
        ("icon.svg", "image/svg+xml"),
    ):
        response = await Browser(caller).get(f"/static/{name}")
        assert response.status == 200
        assert response.headers["Content-Type"].startswith(content_type)
        assert response.headers["Cache-Control"] == "public, max-age=86400"
    assert (await Browser(caller).get("/static/none.css")).status == 404
    assert (await Browser(caller).get("/static/..%2fviews.py")).status == 404
    assert (await Browser(caller).get("/robots.txt")).body == b"User-agent: *\nDisallow: /\n"


@pytest.mark.parametrize(
    ("path", "status", "shown"),
    [
        ("/nothing", 404, "The registry has no such page"),
        ("/bentos/none", 404, "The registry has no such page"),
        ("/bentos/none/v1", 404, "It may have been deleted"),
        ("/models/none/v1", 404, "It may have been deleted"),
        ("/bentos/IRIS", 400, "it breaks BentoML's rules for tags"),
        ("/bentos?start=x", 400, "invalid start 'x'"),
        ("/bentos?q=" + "x" * 1001, 400, "invalid q: it is too long"),
    ],
)
async def test_errors_are_pages(browser: Browser, path: str, status: int, shown: str):
    response = await browser.get(path)
    assert response.status == status
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert shown in Html(response.body.decode()).text


async def test_error_page_bytes_are_counted(browser: Browser):
    before, page, after = [await browser.get(path) for path in ("/metrics", "/nothing", "/metrics")]
    sent = [values(each.body.decode())["async_bento_registry_sent_bytes_total"] for each in (before, after)]
    assert sent[1] - sent[0] == len(before.body) + len(page.body)


async def test_wrong_method_shows_page(browser: Browser):
    response = await browser.post("/bentos")
    assert (response.status, response.headers["Allow"]) == (405, "GET,HEAD")
    assert "Not allowed" in Html(response.body.decode()).text


async def test_unexpected_error_shows_page(
    browser: Browser, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("async_bento.registry.records.sql.Records.list_items", None)
    response = await browser.get("/bentos")
    assert response.status == 500
    assert "The registry's log has the reason." in Html(response.body.decode()).text
    assert "a request failed: GET /bentos (" in caplog.text


async def test_api_errors_stay_json(caller: Caller):
    browser = Browser(caller)
    for path, headers in (("/api/v1/bentos", {}), ("/api/v1/nothing", {}), ("/nothing", {"Accept": "*/*"})):
        response = await browser.get(path, **headers)
        assert response.status in (403, 404)
        assert json.loads(response.body)


async def test_missing_host_is_refused(browser: Browser):
    response = await browser.get("/bentos", Host="")
    assert response.status == 400


async def test_pages_can_be_disabled(serve: Serve):
    caller = await serve(pages=False)
    for path in ("/", "/login", "/bentos", "/static/style.css"):
        response = await Browser(caller).get(path)
        assert (response.status, response.json) == (404, {"error": "Not Found"}), path

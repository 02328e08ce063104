"""Every route of the protocol, for bentos and models: the request sent, and the response parsed."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import aiohttp.web
import pytest

from async_bento import (
    BentoError,
    BentoFullSchema,
    BentoManifestSchema,
    BentoRepositorySchema,
    BentoWithRepositoryListSchema,
    ClosedError,
    Config,
    ConfigError,
    LabelItemSchema,
    ModelManifestSchema,
    ModelRepositorySchema,
    ModelWithRepositoryListSchema,
    ModelWithRepositorySchema,
    RestApiClient,
    UserSchema,
)
from async_bento.rest.contexts import Contexts, read_contexts
from async_bento.rest.request_schemas import (
    CompletePartSchema,
    CreateBentoSchema,
    CreateModelSchema,
    FinishUploadSchema,
    UpdateBentoSchema,
    UpdateModelSchema,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.rest.conftest import RegistryMock

ENDPOINT = "https://registry.example"
TOKEN = "tk-of-registry-example"
BUILT = datetime(2024, 5, 1, 10, 20, 30, 123456, tzinfo=timezone.utc)
LABELS = [LabelItemSchema(key="team", value="ml")]


class Kind(NamedTuple):
    word: str
    repository: type[Any]
    item: type[Any]
    page: type[Any]
    manifest: Any
    update: type[Any]
    create: type[Any]
    manifest_json: dict[str, Any]
    """The JSON of the manifest."""


BENTO = Kind(
    "bento",
    BentoRepositorySchema,
    BentoFullSchema,
    BentoWithRepositoryListSchema,
    BentoManifestSchema(service="service:Svc", models=["m:1"], schema_={"routes": []}, size_bytes=3),
    UpdateBentoSchema,
    CreateBentoSchema,
    {
        "service": "service:Svc",
        "bentoml_version": "",
        "size_bytes": 3,
        "entry_service": "",
        "name": None,
        "apis": {},
        "models": ["m:1"],
        "runners": [],
        "services": [],
        "envs": [],
        "schema": {"routes": []},
        "version": None,
        "dev": False,
        "image": None,
        "spec": 1,
    },
)
MODEL = Kind(
    "model",
    ModelRepositorySchema,
    ModelWithRepositorySchema,
    ModelWithRepositoryListSchema,
    ModelManifestSchema(module="bentoml.sklearn", size_bytes=3, options={"a": 1}),
    UpdateModelSchema,
    CreateModelSchema,
    {
        "module": "bentoml.sklearn",
        "api_version": "",
        "bentoml_version": "",
        "size_bytes": 3,
        "metadata": {},
        "context": {},
        "options": {"a": 1},
    },
)


class Route(NamedTuple):
    """A call, the request expected and the response. `{K}` is `bento_repositories/…`."""

    call: Callable[[RestApiClient, Kind], Awaitable[Any]]
    method: str
    path: str
    body: Callable[[Kind], Any] | None
    payload: dict[str, Any]
    schema: Callable[[Kind], type[Any]]


def routes(client: RestApiClient, kind: Kind) -> Any:
    return {"bento": client.bentos, "model": client.models}[kind.word]


def record(kind: Kind) -> dict[str, Any]:
    return {"description": "read me", "manifest": kind.manifest_json, "labels": [{"key": "team", "value": "ml"}]}


ITEM = {"version": "v1", "upload_status": "uploading", "upload_id": "u1", "build_at": "2024-05-01T10:20:30.123456Z"}
REPOSITORY = {"name": "iris", "uid": "r1"}
PAGE = {"start": 20, "count": 10, "total": 21, "items": [{"version": "v1", "repository": {"name": "iris"}}]}


def item(kind: Kind) -> type[Any]:
    return kind.item


def repository(kind: Kind) -> type[Any]:
    return kind.repository


def page(kind: Kind) -> type[Any]:
    return kind.page


ROUTES = {
    "get_repository": Route(
        lambda c, k: routes(c, k).get_repository("iris"), "GET", "{k}_repositories/iris", None, REPOSITORY, repository
    ),
    "create_repository": Route(
        lambda c, k: routes(c, k).create_repository("iris"),
        "POST",
        "{k}_repositories",
        lambda k: {"name": "iris", "description": ""},
        REPOSITORY,
        repository,
    ),
    "list_one_repository": Route(
        lambda c, k: routes(c, k).list("iris", start=20, count=10, search="i r", query="label:a=b&c"),
        "GET",
        "{K}?count=10&q=label:a%3Db%26c&search=i+r&start=20",
        None,
        PAGE,
        page,
    ),
    "list_everything": Route(
        lambda c, k: routes(c, k).list(count=10), "GET", "{k}s?count=10&start=0", None, PAGE, page
    ),
    "get": Route(lambda c, k: routes(c, k).get("iris", "v1"), "GET", "{K}/v1", None, ITEM, item),
    "create": Route(
        lambda c, k: routes(c, k).create(
            "iris",
            k.create(description="read me", manifest=k.manifest, labels=LABELS, version="v1", build_at=BUILT),
        ),
        "POST",
        "{K}",
        lambda k: {**record(k), "version": "v1", "build_at": "2024-05-01 10:20:30.123456"},
        ITEM,
        item,
    ),
    "update": Route(
        lambda c, k: routes(c, k).update(
            "iris", "v1", k.update(description="read me", manifest=k.manifest, labels=LABELS)
        ),
        "PATCH",
        "{K}/v1",
        record,
        ITEM,
        item,
    ),
    "start_upload": Route(
        lambda c, k: routes(c, k).start_upload("iris", "v1"), "PATCH", "{K}/v1/start_upload", None, ITEM, item
    ),
    "finish_upload": Route(
        lambda c, k: routes(c, k).finish_upload("iris", "v1", FinishUploadSchema(status="failed", reason="no space")),
        "PATCH",
        "{K}/v1/finish_upload",
        lambda k: {"status": "failed", "reason": "no space"},
        ITEM,
        item,
    ),
    "presign_upload": Route(
        lambda c, k: routes(c, k).presign_upload("iris", "v1"), "PATCH", "{K}/v1/presign_upload_url", None, ITEM, item
    ),
    "presign_download": Route(
        lambda c, k: routes(c, k).presign_download("iris", "v1"),
        "PATCH",
        "{K}/v1/presign_download_url",
        None,
        ITEM,
        item,
    ),
    "start_multipart_upload": Route(
        lambda c, k: routes(c, k).start_multipart_upload("iris", "v1"),
        "PATCH",
        "{K}/v1/start_multipart_upload",
        None,
        ITEM,
        item,
    ),
    "presign_part": Route(
        lambda c, k: routes(c, k).presign_part("iris", "v1", "u1", 7),
        "PATCH",
        "{K}/v1/presign_multipart_upload_url",
        lambda k: {"upload_id": "u1", "part_number": 7},
        ITEM,
        item,
    ),
    "complete_multipart_upload": Route(
        lambda c, k: routes(c, k).complete_multipart_upload(
            "iris",
            "v1",
            "u1",
            (CompletePartSchema(part_number=1, etag='"aa"'), CompletePartSchema(part_number=2, etag='"bb"')),
        ),
        "PATCH",
        "{K}/v1/complete_multipart_upload",
        lambda k: {
            "upload_id": "u1",
            "parts": [{"part_number": 1, "etag": '"aa"'}, {"part_number": 2, "etag": '"bb"'}],
        },
        ITEM,
        item,
    ),
}

both_kinds = pytest.mark.parametrize("kind", [BENTO, MODEL], ids=["bento", "model"])
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


def path_of(route: Route, kind: Kind) -> str:
    return route.path.format(k=kind.word, K=f"{kind.word}_repositories/iris/{kind.word}s")


@both_kinds
@every_route
async def test_route_sends_request(
    route: Route, kind: Kind, client: RestApiClient, registry_mock: RegistryMock
) -> None:
    registry_mock.answer(route.method, path_of(route, kind), payload=route.payload)
    await route.call(client, kind)

    method, url, sent = registry_mock.only_request()
    assert (method, url) == (route.method, f"{ENDPOINT}/api/v1/{path_of(route, kind)}")
    assert {name: sent["headers"][name] for name in ("X-YATAI-API-TOKEN", "X-Bentoml-Version", "Accept")} == {
        "X-YATAI-API-TOKEN": TOKEN,
        "X-Bentoml-Version": "1.4.39",
        "Accept": "application/json",
    }
    assert sent["headers"]["User-Agent"].startswith("async-bento/")
    if route.body is None:
        assert sent["data"] is None
        assert "Content-Type" not in sent["headers"]
    else:
        assert json.loads(sent["data"].decode()) == route.body(kind)
        assert sent["headers"]["Content-Type"] == "application/json"


@both_kinds
@every_route
async def test_route_parses_response(
    route: Route, kind: Kind, client: RestApiClient, registry_mock: RegistryMock
) -> None:
    registry_mock.answer(route.method, path_of(route, kind), payload=route.payload)
    answer = await route.call(client, kind)

    assert type(answer) is route.schema(kind)
    if route.payload is ITEM:
        assert (answer.version, answer.upload_status, answer.upload_id, answer.build_at) == (
            "v1",
            "uploading",
            "u1",
            BUILT,
        )
    elif route.payload is REPOSITORY:
        assert (answer.name, answer.uid) == ("iris", "r1")
    else:
        assert (answer.start, answer.count, answer.total) == (20, 10, 21)
        assert [(entry.version, entry.repository.name) for entry in answer.items] == [("v1", "iris")]


async def test_current_user_returns_user(client: RestApiClient, registry_mock: RegistryMock) -> None:
    registry_mock.answer("GET", "auth/current", payload={"name": "ada", "email": "ada@example.com"})
    assert await client.current_user() == UserSchema(name="ada", email="ada@example.com")


@both_kinds
@pytest.mark.parametrize("way", ["upload", "download"])
async def test_upload_download_send_token(way: str, kind: Kind, client: RestApiClient) -> None:
    address = getattr(routes(client, kind), f"{way}_target")("iris", "v1")
    assert str(address.url) == f"{ENDPOINT}/api/v1/{kind.word}_repositories/iris/{kind.word}s/v1/{way}"
    assert address.headers["X-YATAI-API-TOKEN"] == TOKEN
    assert address.credentials.source == "the api_token argument"


async def test_probe_compares_clocks_halfway(
    client: RestApiClient, registry_mock: RegistryMock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request takes from 1000 to 1010 seconds, and the registry answers at 1002."""
    times = iter([1000.0, 1010.0])
    monkeypatch.setattr("async_bento.rest.client.time", SimpleNamespace(time=lambda: next(times)))
    headers = {"Date": "Thu, 01 Jan 1970 00:16:42 GMT"}
    registry_mock.answer("GET", "auth/current", payload={"name": "ada"}, headers=headers)
    probe = await client.probe()
    assert (probe.seconds, probe.clock_skew) == (10, 3)


async def test_endpoint_path_is_kept(registry_mock: RegistryMock) -> None:
    registry_mock.add(f"{ENDPOINT}/yatai/api/v1/auth/current", payload={"name": "ada"})
    async with RestApiClient(f"{ENDPOINT}/yatai/", TOKEN) as client:
        assert (await client.current_user()).name == "ada"


@both_kinds
async def test_url_quotes_name_and_version(kind: Kind, client: RestApiClient) -> None:
    assert str(routes(client, kind).upload_target("a b?c#d", "1%2e").url).endswith(
        f"/{kind.word}_repositories/a%20b%3Fc%23d/{kind.word}s/1%252e/upload"
    )


async def test_url_keeps_path_of_endpoint() -> None:
    async with RestApiClient(f"{ENDPOINT}/%7Eada", TOKEN) as client:
        assert str(client.bentos.upload_target("iris", "v1").url).startswith(f"{ENDPOINT}/%7Eada/api/v1/")


async def test_request_disables_redirects(client: RestApiClient, registry_mock: RegistryMock) -> None:
    registry_mock.answer("GET", "auth/current", payload={"name": "ada"})
    await client.current_user()
    _, _, sent = registry_mock.only_request()
    assert (sent["allow_redirects"], sent["raise_for_status"]) == (False, False)


async def test_timeout_argument_is_used(registry_mock: RegistryMock) -> None:
    registry_mock.answer("GET", "auth/current", payload={"name": "ada"})
    async with RestApiClient(ENDPOINT, TOKEN, 7) as client:
        await client.current_user()
    _, _, sent = registry_mock.only_request()
    assert sent["timeout"] == aiohttp.ClientTimeout(total=7, connect=10)


async def test_complete_upload_own_timeout(registry_mock: RegistryMock) -> None:
    registry_mock.answer(
        "PATCH", "bento_repositories/svc/bentos/v1/complete_multipart_upload", payload={"version": "v1"}
    )
    async with RestApiClient(ENDPOINT, TOKEN, config=Config(timeouts={"api": 7, "complete": 70})) as client:
        await client.bentos.complete_multipart_upload("svc", "v1", "id", [])
    _, _, sent = registry_mock.only_request()
    assert sent["timeout"] == aiohttp.ClientTimeout(total=70, connect=10)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_invalid_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigError, match="invalid timeout"):
        RestApiClient(ENDPOINT, TOKEN, timeout)


async def test_proxy_argument_is_used(registry_mock: RegistryMock) -> None:
    registry_mock.answer("GET", "auth/current", payload={"name": "ada"})
    async with RestApiClient(ENDPOINT, TOKEN, proxy="http://proxy.example:3128") as client:
        await client.current_user()
    assert str(registry_mock.only_request()[2]["proxy"]) == "http://proxy.example:3128"


@pytest.mark.parametrize("value", ["http://proxy.example:3128", "proxy.example:3128"])
async def test_env_proxy_may_lack_scheme(value: str, client: RestApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", value)
    assert client.bentos.session.registry_target("auth/current").proxy == "http://proxy.example:3128"


async def test_no_proxy_host_skips_proxy(client: RestApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "registry.example")
    assert client.bentos.session.registry_target("auth/current").proxy is None


async def test_aclose_keeps_caller_session() -> None:
    async with aiohttp.ClientSession() as lent:
        async with RestApiClient(ENDPOINT, TOKEN, session=lent) as client:
            own = client.bentos.upload_target("iris", "v1").session
            assert own is lent
        assert not lent.closed
    async with RestApiClient(ENDPOINT, TOKEN) as client:
        own = client.bentos.upload_target("iris", "v1").session
    assert own.closed


@pytest.mark.parametrize("call", ["current_user", "probe", "bentos.get", "models.list"])
async def test_call_after_aclose_raises(client: RestApiClient, registry_mock: RegistryMock, call: str) -> None:
    await client.aclose()
    calls = {
        "current_user": client.current_user,
        "probe": client.probe,
        "bentos.get": lambda: client.bentos.get("svc", "v1"),
        "models.list": lambda: client.models.list(count=1),
    }
    with pytest.raises(ClosedError, match="the client was closed"):
        await calls[call]()
    with pytest.raises(ClosedError):
        await client.__aenter__()
    await client.aclose()


def test_client_reused_across_loops(registry_mock: RegistryMock) -> None:
    client = RestApiClient(ENDPOINT, TOKEN)

    async def ask() -> str:
        registry_mock.answer("GET", "auth/current", payload={"name": "ada"})
        return (await client.current_user()).name

    assert [asyncio.run(ask()), asyncio.run(ask())] == ["ada", "ada"]
    asyncio.run(client.aclose())


async def test_aclose_without_connections() -> None:
    await RestApiClient(ENDPOINT, TOKEN).aclose()


async def test_raise_for_status_is_ignored(
    serve: Callable[..., Awaitable[str]],
) -> None:
    async def nothing_here(request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response({"error": "record not found"}, status=404)

    endpoint = await serve(nothing_here)
    async with (
        aiohttp.ClientSession(raise_for_status=True) as lent,
        RestApiClient(endpoint, TOKEN, session=lent) as client,
    ):
        assert await client.bentos.get("iris", "v1") is None


@pytest.fixture
def logged_in(home: Path) -> None:
    home.mkdir()
    (home / ".yatai.yaml").write_text(
        f"contexts: [{{name: default, endpoint: '{ENDPOINT}', api_token: {TOKEN}, email: null}}]"
    )


@pytest.mark.usefixtures("logged_in")
async def test_context_file_read_in_thread(registry_mock: RegistryMock, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: list[threading.Thread] = []

    def read(path: Path) -> Contexts:
        readers.append(threading.current_thread())
        return read_contexts(path)

    monkeypatch.setattr("async_bento.rest.credentials.read_contexts", read)
    registry_mock.answer("GET", "auth/current", payload={"name": "ada"})
    async with RestApiClient() as client:
        await client.current_user()
        assert client.endpoint == ENDPOINT
    assert registry_mock.only_request()[2]["headers"]["X-YATAI-API-TOKEN"] == TOKEN
    assert len(readers) == 1
    assert threading.current_thread() not in readers


@pytest.mark.usefixtures("logged_in")
async def test_context_file_without_threads_names_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with RestApiClient() as client:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(BentoError, match=r"^cannot start a thread: too many processes\."):
            await client.current_user()
        monkeypatch.undo()

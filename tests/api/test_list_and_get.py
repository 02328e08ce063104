"""What is in the registry: all of it, page by page, or one record."""

from __future__ import annotations

from contextlib import aclosing
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest

from async_bento import NotFoundError
from async_bento.api import async_api as api_module
from async_bento.errors import APIStatusError
from tests.builders import make_bento, make_model
from tests.fault_proxy import FaultProxy, answer_json

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


OF_DAY = "2024-01-{:02} 00:00:00"
LIST = r"GET /api/v1/bentos"


@pytest.fixture
async def proxy(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> FaultProxy:
    """Five bentos, the newest of which is `svc:v5`, read two at a time."""
    monkeypatch.setattr(api_module, "PAGE_SIZE", 2)
    proxy = await start_proxy()
    api = make_client(proxy)
    for day in (3, 1, 5, 2, 4):
        make_bento(home, f"svc:v{day}", built=OF_DAY.format(day), labels={"parity": "odd" if day % 2 else "even"})
        await api.push(f"svc:v{day}", bare=True)
    proxy.requests.clear()
    return proxy


async def test_list_returns_all_newest_first(proxy: FaultProxy, make_client: MakeClient) -> None:
    listed = await make_client(proxy).list()

    assert [bento.version for bento in listed.items] == ["v5", "v4", "v3", "v2", "v1"]
    assert (listed.total, listed.count) == (5, 5)
    assert [request.query["start"] for request in proxy.requests] == ["0", "2", "4"]


async def test_list_items_have_their_repository(proxy: FaultProxy, make_client: MakeClient) -> None:
    listed = await make_client(proxy).list()

    assert {bento.repository.name for bento in listed.items if bento.repository} == {"svc"}


@pytest.mark.parametrize(("limit", "pages"), [(0, 1), (1, 1), (2, 2), (3, 2), (99, 3)])
async def test_list_limit_bounds_items_and_pages(
    proxy: FaultProxy, make_client: MakeClient, limit: int, pages: int
) -> None:
    listed = await make_client(proxy).list(limit=limit)

    assert [bento.version for bento in listed.items] == ["v5", "v4", "v3", "v2", "v1"][:limit]
    assert len(proxy.requests) <= pages


async def test_list_search_filters_items(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, "other:v1")
    await make_client(proxy).push("other:v1", bare=True)

    listed = await make_client(proxy).list(search="oth")

    assert [bento.repository.name for bento in listed.items if bento.repository] == ["other"]


async def test_list_query_is_sent_to_the_registry(proxy: FaultProxy, make_client: MakeClient) -> None:
    listed = await make_client(proxy).list(query="label:parity=even")

    assert [bento.version for bento in listed.items] == ["v4", "v2"]


async def test_list_of_empty_registry_is_empty(start_proxy: StartProxy, make_client: MakeClient) -> None:
    listed = await make_client(await start_proxy()).list()

    assert (listed.total, [*listed.items]) == (0, [])


async def test_list_without_endpoint_fails(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault("", answer_json(404, {"detail": "Not Found"}), times=None)  # what an endpoint of FastAPI says
    api = make_client(proxy)

    for call in (api.list(), api.models.list()):
        with pytest.raises(APIStatusError, match="404 Not Found"):
            await call


def page_of(*versions: str, total: int = 1000) -> dict[str, object]:
    items = [{"uid": f"uid-{version}", "version": version} for version in versions]
    return {"start": 0, "count": 2, "total": total, "items": items}


async def test_list_with_repeated_page_ends(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(LIST, answer_json(200, page_of("v2", "v1")), times=None)

    listed = await make_client(proxy).list()

    assert [bento.version for bento in listed.items] == ["v2", "v1"]
    assert len(proxy.requests) == 2


async def test_list_with_empty_page_ends(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(LIST, answer_json(200, page_of("v2", "v1")))
    proxy.add_fault(LIST, answer_json(200, page_of()), times=None)

    assert len((await make_client(proxy).list()).items) == 2
    assert len(proxy.requests) == 2


async def test_list_without_total_reads_until_empty_page(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(LIST, answer_json(200, {"items": page_of("v3", "v2")["items"]}))
    proxy.add_fault(LIST, answer_json(200, {"items": page_of("v1")["items"]}))
    proxy.add_fault(LIST, answer_json(200, {"items": None}))

    assert [bento.version for bento in (await make_client(proxy).list()).items] == ["v3", "v2", "v1"]


async def test_list_during_push_returns_each_item_once(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(LIST, answer_json(200, page_of("v3", "v2", total=3)))
    proxy.add_fault(LIST, answer_json(200, page_of("v2", "v1", total=4)))

    assert [bento.version for bento in (await make_client(proxy).list()).items] == ["v3", "v2", "v1"]


async def test_iter_reads_pages_lazily(proxy: FaultProxy, make_client: MakeClient) -> None:
    async with aclosing(make_client(proxy).iter()) as walk:
        pages = [len(proxy.requests) async for _ in walk]

    assert pages == [1, 1, 2, 2, 3]


async def test_iter_stopped_early_reads_one_page(proxy: FaultProxy, make_client: MakeClient) -> None:
    async for bento in make_client(proxy).iter():
        if bento.version == "v4":
            break

    assert len(proxy.requests) == 1


async def test_list_and_get_of_models_work_alike(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "mod:m1", built=OF_DAY.format(1))
    make_model(home, "mod:m2", built=OF_DAY.format(2))
    proxy = await start_proxy()
    api = make_client(proxy).models
    for tag in ("mod:m1", "mod:m2"):
        await api.push(tag)

    assert [model.version for model in (await api.list()).items] == ["m2", "m1"]
    assert [model.version async for model in api.iter()] == ["m2", "m1"]
    assert (await api.get("mod")).version == "m2"
    assert (await api.get("mod", "m1")).version == "m1"
    with pytest.raises(NotFoundError, match=r"no model mod:m9 in the registry.*async-bento models list"):
        await api.get("mod", "m9")


@pytest.mark.parametrize(
    ("asked", "version"),
    [
        (("svc",), "v5"),
        (("svc", None), "v5"),
        (("svc", "latest"), "v5"),
        (("svc:latest",), "v5"),
        (("svc", "v2"), "v2"),
        (("svc:v2",), "v2"),
    ],
)
async def test_get_accepts_name_and_version(
    proxy: FaultProxy, make_client: MakeClient, asked: tuple[str], version: str
) -> None:
    bento = await make_client(proxy).get(*asked)

    assert bento.version == version
    assert bento.manifest is not None
    assert bento.manifest.name == "svc"


@pytest.mark.parametrize("asked", [("nothing",), ("nothing", "latest"), ("svc", "v9"), ("svc:v9",)])
async def test_get_of_missing_record_names_it(proxy: FaultProxy, make_client: MakeClient, asked: tuple[str]) -> None:
    with pytest.raises(NotFoundError, match=f"no bento {':'.join(asked)} in the registry at {proxy.endpoint}"):
        await make_client(proxy).get(*asked)


async def test_get_latest_of_empty_repository_is_not_found(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    await api._kind.routes.create_repository("svc")

    with pytest.raises(NotFoundError, match="no bento svc:latest"):
        await api.get("svc", "latest")


async def test_get_understands_not_found_of_older_registries(proxy: FaultProxy, make_client: MakeClient) -> None:
    proxy.add_fault("GET .*/v2$", answer_json(400, {"error": "get bento v2: record not found"}))

    with pytest.raises(NotFoundError, match="svc:v2"):
        await make_client(proxy).get("svc", "v2")


async def test_get_retry_hides_a_transient_fault(proxy: FaultProxy, make_client: MakeClient) -> None:
    async def break_off(exchange: Exchange) -> web.StreamResponse:
        return exchange.disconnect()

    proxy.add_fault(LIST, break_off, skip=1)
    proxy.add_fault(LIST, answer_json(503, {"error": "later"}))

    assert len((await make_client(proxy).list()).items) == 5


async def test_record_of_year_1_keeps_its_time(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, built="0001-01-02 03:04:05")
    make_bento(home, "svc:v2")
    api = make_client(await start_proxy())
    for tag in ("svc:v1", "svc:v2"):
        await api.push(tag)
    assert (await api.get("svc:v1")).build_at == datetime(1, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert [record.version for record in (await api.list()).items] == ["v2", "v1"]

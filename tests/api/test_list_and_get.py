"""Lists of the registry, page by page, and single records."""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing
from datetime import datetime, timezone
from random import Random
from typing import TYPE_CHECKING

import anyio
import pytest
from aiohttp import web

from async_bento import (
    BentoError,
    BentoFullSchema,
    BentoStore,
    BentoWithRepositoryListSchema,
    ModelStore,
    NotFoundError,
    PartError,
    Tag,
)
from async_bento.api import item_api as api_module, paging
from async_bento.errors import APIStatusError
from tests.builders import make_bento, make_model
from tests.fault_proxy import PUT, FaultProxy, answer_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from tests.fault_proxy import Exchange
    from tests.fixtures import MakeClient, StartProxy


OF_DAY = "2024-01-{:02} 00:00:00"
LIST = r"GET /api/v1/bentos"
CHANGES = 20


@pytest.fixture
async def proxy(
    start_proxy: StartProxy, make_client: MakeClient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> FaultProxy:
    """Five bentos up to `svc:v5`, with two per page."""
    monkeypatch.setattr(api_module, "PAGE_SIZE", 2)
    monkeypatch.setattr(paging, "LARGE_PAGE_SIZE", 2)
    proxy = await start_proxy()
    api = make_client(proxy)
    for day in (3, 1, 5, 2, 4):
        make_bento(home, f"svc:v{day}", built=OF_DAY.format(day), labels={"parity": "odd" if day % 2 else "even"})
        await api.push(f"svc:v{day}", bare=True)
    proxy.requests.clear()
    return proxy


async def test_paging_returns_newest_first(proxy: FaultProxy, make_client: MakeClient) -> None:
    listed = await make_client(proxy).list()

    assert [bento.version for bento in listed.items] == ["v5", "v4", "v3", "v2", "v1"]
    assert (listed.total, listed.count) == (5, 5)
    assert [request.query["start"] for request in proxy.requests] == ["0", "1", "3"]  # each begins with a known item


async def test_list_is_a_sequence(proxy: FaultProxy, make_client: MakeClient) -> None:
    bentos = await make_client(proxy).list()

    assert [bento.version for bento in bentos] == ["v5", "v4", "v3", "v2", "v1"]
    assert len(bentos) == 5
    assert bentos[0] in bentos
    assert [bento.version for bento in bentos[-2:]] == ["v2", "v1"]


async def test_record_has_tag_and_size(proxy: FaultProxy, make_client: MakeClient) -> None:
    local = await asyncio.to_thread(BentoStore().get, "svc:v5")
    (record,) = await make_client(proxy).list(limit=1)

    assert record.tag == local.tag
    assert record.size_bytes == await asyncio.to_thread(local.size) > 0


async def test_record_is_pulled_and_pushed(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(proxy)
    make_model(home, "mod:m1")
    await api.models.push("mod:m1")
    (record,) = await api.models.list()
    await asyncio.to_thread(ModelStore().delete, "mod:m1")

    model = await api.models.pull(record)
    result = await api.models.push(record)

    assert model is not None
    assert (model.tag, result.tag) == (record.tag, record.tag)


async def test_list_reprs_are_short(proxy: FaultProxy, make_client: MakeClient) -> None:
    bentos = await make_client(proxy).list()

    assert repr(bentos) == str(bentos)
    assert repr(bentos) == "BentoWithRepositoryListSchema(['svc:v5', 'svc:v4', 'svc:v3', 'svc:v2', 'svc:v1'])"
    assert re.fullmatch(
        r"BentoWithRepositorySchema\(tag='svc:v5', upload_status='success', size='[0-9.]+ (B|KiB)'\)", str(bentos[0])
    )


async def test_list_items_have_repository(proxy: FaultProxy, make_client: MakeClient) -> None:
    listed = await make_client(proxy).list()

    assert {bento.repository.name for bento in listed.items if bento.repository} == {"svc"}


@pytest.mark.parametrize(
    ("limit", "counts"),
    [(0, ["1"]), (1, ["1"]), (2, ["2"]), (3, ["2", "2"]), (5, ["2", "3", "2"]), (99, ["2", "3", "3"])],
)
async def test_paging_stops_at_limit(proxy: FaultProxy, make_client: MakeClient, limit: int, counts: list[str]) -> None:
    listed = await make_client(proxy).list(limit=limit)

    assert [bento.version for bento in listed.items] == ["v5", "v4", "v3", "v2", "v1"][:limit]
    assert (listed.count, listed.total) == (min(limit, 5), 5)
    assert [request.query["count"] for request in proxy.requests] == counts


async def test_list_of_models_states_total(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(proxy)
    for tag in ("mod:m1", "mod:m2", "other:m1"):
        make_model(home, tag)
        await api.models.push(tag)

    listed = await api.models.list(search="mod", limit=1)

    assert (listed.count, listed.total) == (1, 2)


async def test_list_search_filters_items(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, "other:v1")
    await make_client(proxy).push("other:v1", bare=True)

    listed = await make_client(proxy).list(search="oth")

    assert [bento.repository.name for bento in listed.items if bento.repository] == ["other"]


async def test_list_query_filters_items(proxy: FaultProxy, make_client: MakeClient) -> None:
    listed = await make_client(proxy).list(query="label:parity=even")

    assert [bento.version for bento in listed.items] == ["v4", "v2"]


async def test_empty_registry_lists_none(start_proxy: StartProxy, make_client: MakeClient) -> None:
    listed = await make_client(await start_proxy()).list()

    assert (listed.total, [*listed.items]) == (0, [])


async def test_list_at_non_registry_fails(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault("", answer_json(404, {"detail": "Not Found"}), times=None)  # the 404 of FastAPI
    api = make_client(proxy)

    for call in (api.list(), api.models.list()):
        with pytest.raises(APIStatusError, match="404 Not Found"):
            await call


def page_of(*versions: str, total: int = 1000) -> dict[str, object]:
    items = [{"uid": f"uid-{version}", "version": version} for version in versions]
    return {"start": 0, "count": 2, "total": total, "items": items}


async def test_paging_repeated_page_ends(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(LIST, answer_json(200, page_of("v2", "v1")), times=None)

    listed = await make_client(proxy).list()

    assert [bento.version for bento in listed.items] == ["v2", "v1"]
    assert len(proxy.requests) == 3  # concurrent additions may repeat a page once


async def test_paging_empty_page_ends(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(LIST, answer_json(200, page_of("v2", "v1")))
    proxy.add_fault(LIST, answer_json(200, page_of()), times=None)

    assert len((await make_client(proxy).list()).items) == 2
    assert len(proxy.requests) == 2


async def test_paging_without_total_ends(
    start_proxy: StartProxy, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module, "PAGE_SIZE", 2)
    proxy = await start_proxy()
    Versions(proxy, [3, 2, 1], total=False)

    listed = await make_client(proxy).list()

    assert [bento.version for bento in listed.items] == ["v3", "v2", "v1"]
    assert listed.total == 3


async def test_paging_during_push_is_unique(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    proxy.add_fault(LIST, answer_json(200, page_of("v3", "v2", total=3)))
    proxy.add_fault(LIST, answer_json(200, page_of("v2", "v1", total=4)))

    assert [bento.version for bento in (await make_client(proxy).list()).items] == ["v3", "v2", "v1"]


class Versions:
    """A simulated list of bentos; `change` adds and deletes versions between two requests."""

    def __init__(
        self,
        proxy: FaultProxy,
        versions: Iterable[int],
        *,
        total: bool = True,
        largest_page: int = 100_000,
        description: str = "",
    ) -> None:
        self.versions = [*versions]
        self.change: Callable[[int], None] = lambda request: None
        self.wait: Callable[[], Awaitable[None]] | None = None
        self.starts: list[int] = []
        self._states_total = total
        self._largest_page = largest_page
        self._description = description
        proxy.add_fault(LIST, self._answer, times=None)

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        if self.wait is not None:
            await self.wait()
        if 0 < len(self.starts) < CHANGES:  # a list that grows by a page per request never ends
            self.change(len(self.starts))
        start, count = (int(exchange.logged.query[name]) for name in ("start", "count"))
        self.starts.append(start)
        shown = self.versions[start : start + min(count, self._largest_page)]
        items = [{"uid": f"uid-{one}", "version": f"v{one}", "description": self._description} for one in shown]
        total = {"total": len(self.versions)} if self._states_total else {}
        return web.json_response({"start": start, "count": count, **total, "items": items})


@pytest.fixture(params=["large pages", "small pages"])
def page_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default pages, and small pages that are requested concurrently."""
    if request.param == "small pages":
        monkeypatch.setattr(paging, "LARGE_PAGE_SIZE", 100)


async def walked(make_client: MakeClient, proxy: FaultProxy) -> list[int]:
    async with aclosing(make_client(proxy).iter()) as records:
        return [int(record.version[1:]) async for record in records]


@pytest.mark.usefixtures("page_sizes")
@pytest.mark.parametrize(
    ("added", "total"), [(1, True), (99, True), (100, True), (101, True), (250, True), (1, False), (100, False)]
)
async def test_paging_survives_additions(
    start_proxy: StartProxy, make_client: MakeClient, added: int, total: bool
) -> None:
    proxy = await start_proxy()
    registry = Versions(proxy, range(250), total=total)

    def add(request: int) -> None:
        registry.versions[:0] = range(1000 * request, 1000 * request + added)

    registry.change = add
    found = await walked(make_client, proxy)

    assert [version for version in found if version < 1000] == [*range(250)]
    assert len(found) == len({*found})


@pytest.mark.usefixtures("page_sizes")
@pytest.mark.parametrize("first", [0, 30, 70, 99])
@pytest.mark.parametrize("deleted", [1, 30, 100])
async def test_paging_survives_deletions(
    start_proxy: StartProxy, make_client: MakeClient, first: int, deleted: int
) -> None:
    proxy = await start_proxy()
    registry = Versions(proxy, range(450))

    def delete(request: int) -> None:
        del registry.versions[first : first + deleted]

    registry.change = delete
    found = await walked(make_client, proxy)

    assert {*registry.versions} <= {*found}
    assert len(found) == len({*found})


@pytest.mark.usefixtures("page_sizes")
async def test_paging_survives_mass_deletion(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    registry = Versions(proxy, range(1000))

    def delete(request: int) -> None:
        if request == 6:
            del registry.versions[:560]

    registry.change = delete
    found = await walked(make_client, proxy)

    assert found == [*range(1000)]


@pytest.mark.usefixtures("page_sizes")
async def test_paging_ends_when_all_deleted(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    registry = Versions(proxy, range(300))

    registry.change = lambda request: registry.versions.clear()
    found = await walked(make_client, proxy)

    assert found == [*range(100)]


@pytest.mark.usefixtures("page_sizes")
@pytest.mark.parametrize("seed", [73, 125, 239, 260])
async def test_paging_survives_changes(start_proxy: StartProxy, make_client: MakeClient, seed: int) -> None:
    proxy = await start_proxy()
    registry, random = Versions(proxy, range(0, 50_000, 100)), Random(seed)
    stayed = {*registry.versions}

    def change(request: int) -> None:
        gone = {*random.sample(registry.versions, min(len(registry.versions), random.choice([0, 1, 20, 90])))}
        stayed.difference_update(gone)
        new = {one for one in random.sample(range(50_000), random.choice([0, 1, 20, 150])) if one % 100}
        registry.versions[:] = sorted({*registry.versions} - gone | new)

    registry.change = change
    found = await walked(make_client, proxy)

    assert stayed <= {*found}
    assert len(found) == len({*found})


async def test_paging_reads_four_at_once(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    registry = Versions(proxy, range(5100))
    four_requested = asyncio.Event()

    async def wait() -> None:
        if len(proxy.requests) == 6:
            four_requested.set()
        if len(proxy.requests) > 2:
            await asyncio.wait_for(four_requested.wait(), 10)

    registry.wait = wait
    listed = await make_client(proxy).list()

    assert [int(bento.version[1:]) for bento in listed.items] == [*range(5100)]
    assert [request.query["count"] for request in proxy.requests] == ["100", *["1001"] * 5]


@pytest.mark.parametrize("total", [True, False])
async def test_paging_survives_page_cap(start_proxy: StartProxy, make_client: MakeClient, total: bool) -> None:
    proxy = await start_proxy()
    registry = Versions(proxy, range(730), total=total, largest_page=70)

    listed = await make_client(proxy).list()

    assert [int(bento.version[1:]) for bento in listed.items] == [*range(730)]
    assert sorted(registry.starts) == [*range(0, 700, 69), *([] if total else [729])]  # one request per page


async def test_paging_shrinks_large_pages(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    Versions(proxy, range(300), description="x" * 120_000)

    assert len((await make_client(proxy).list()).items) == 300
    assert [request.query["count"] for request in proxy.requests] == ["100", "140", "140"]


def page_at(versions: list[int], start: int, count: int, **fields: object) -> BentoWithRepositoryListSchema:
    items = [{"uid": f"uid-{one}", "version": f"v{one}", **fields} for one in versions[start : start + count]]
    return BentoWithRepositoryListSchema.model_validate({"start": start, "total": len(versions), "items": items})


class Pages:
    """Requests pages of 100 without a registry, and records their positions and how many run at once."""

    def __init__(self, versions: Iterable[int], **fields: object) -> None:
        self.versions = [*versions]
        self.requests: list[tuple[int, int]] = []
        self.most = 0
        self._fields = fields
        self._running = 0

    async def __call__(self, *, start: int, count: int) -> BentoWithRepositoryListSchema:
        self.requests.append((start, count))
        self._running += 1
        self.most = max(self.most, self._running)
        await asyncio.sleep(0)
        self._running -= 1
        return page_at(self.versions, start, count, **self._fields)

    async def walk(self, limit: int | None = None) -> list[int]:
        with anyio.fail_after(20):
            return [int(one.version[1:]) async for page in paging.walk(self, 100, limit) for one in page]


@pytest.mark.parametrize(
    ("limit", "ahead", "most"),
    [
        (None, [(start, 101) for start in range(199, 699, 100)], 4),
        (450, [(199, 101), (299, 101), (399, 51)], 3),
        (401, [(199, 101), (299, 101), (399, 2)], 3),
        (400, [(199, 101), (299, 101)], 2),
    ],
)
async def test_paging_requests_what_is_wanted(
    limit: int | None, ahead: list[tuple[int, int]], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "LARGE_PAGE_SIZE", 100)
    pages = Pages(range(700))

    assert await pages.walk(limit) == [*range(700)][:limit]
    assert pages.requests == [(0, 100), (99, 101), *ahead]
    assert pages.most == most


async def test_paging_identifies_records_without_uid() -> None:
    assert await Pages(range(150), uid="").walk() == [*range(150)]


@pytest.mark.parametrize("left", [[299], [0, 299], [99, 299]])
async def test_paging_finds_last_records(left: list[int]) -> None:
    class Deleting(Pages):
        async def __call__(self, *, start: int, count: int) -> BentoWithRepositoryListSchema:
            page = await super().__call__(start=start, count=count)
            self.versions = left
            return page

    assert await Deleting(range(300)).walk() == [*range(100), 299]


async def test_paging_finds_record_moved_against_total() -> None:
    """Deletions have moved the last record to the front, although there are more records than before."""

    class Changing(Pages):
        async def __call__(self, *, start: int, count: int) -> BentoWithRepositoryListSchema:
            page = await super().__call__(start=start, count=count)
            self.versions = [*range(50, 360)]
            return page

    assert await Changing(range(300)).walk() == [*range(360)]


async def test_paging_error_ends_other_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LARGE_PAGE_SIZE", 100)
    ended: list[int] = []

    class Failing(Pages):
        async def __call__(self, *, start: int, count: int) -> BentoWithRepositoryListSchema:
            if start < 199:
                return await super().__call__(start=start, count=count)
            if start == 299:
                raise NotFoundError("gone")
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(start)
            raise AssertionError

    with pytest.raises(NotFoundError, match="gone"):
        await Failing(range(1000)).walk()
    assert sorted(ended) == [199, 399, 499]


async def test_iter_paging_is_lazy(proxy: FaultProxy, make_client: MakeClient) -> None:
    async with aclosing(make_client(proxy).iter()) as walk:
        pages = [len(proxy.requests) async for _ in walk]

    assert pages == [1, 1, 2, 2, 3]


async def test_iter_paging_stops_early(proxy: FaultProxy, make_client: MakeClient) -> None:
    async for bento in make_client(proxy).iter():
        if bento.version == "v4":
            break

    assert len(proxy.requests) == 1


async def test_list_and_get_models_alike(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
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
async def test_get_takes_name_and_version(
    proxy: FaultProxy, make_client: MakeClient, asked: tuple[str], version: str
) -> None:
    bento = await make_client(proxy).get(*asked)

    assert bento.version == version
    assert bento.manifest is not None
    assert bento.manifest.name == "svc"


async def test_get_returns_models(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_model(home, "mod:m1")
    make_bento(home, "svc:v1", models=["mod:m1"])
    api = make_client(await start_proxy())
    await api.push("svc:v1")

    records = [
        await api.get("svc"),
        await api.get("svc:latest"),
        await api.get(Tag("svc", "v1")),
        await api.get("svc", "v1"),
    ]

    assert {type(record) for record in records} == {BentoFullSchema}
    assert [str(model.tag) for record in records for model in record.models] == ["mod:m1"] * 4
    assert records[0] == records[-1]


async def test_exists_needs_full_upload(proxy: FaultProxy, make_client: MakeClient, home: Path) -> None:
    api = make_client(proxy)
    make_bento(home, "broken:v1")
    make_model(home, "mod:m1")
    await api.models.push("mod:m1")
    proxy.add_fault(PUT, answer_json(400, {}), times=None)
    with pytest.raises(PartError):
        await api.push("broken:v1")

    tags = ["svc", "svc:latest", "svc:v2", Tag("svc", "v5"), "svc:v9", "nothing", "nothing:v1", "broken", "broken:v1"]
    found = [tag for tag in tags if await api.exists(tag)]

    assert found == ["svc", "svc:latest", "svc:v2", Tag("svc", "v5")]
    assert await api.models.exists("mod:m1")
    assert not await api.models.exists("svc:v2")


@pytest.mark.parametrize("asked", [("nothing",), ("nothing", "latest"), ("svc", "v9"), ("svc:v9",)])
async def test_get_missing_record_names_it(proxy: FaultProxy, make_client: MakeClient, asked: tuple[str]) -> None:
    with pytest.raises(NotFoundError, match=f"no bento {':'.join(asked)} in the registry at {proxy.endpoint}"):
        await make_client(proxy).get(*asked)


async def test_empty_repository_has_no_latest(start_proxy: StartProxy, make_client: MakeClient) -> None:
    proxy = await start_proxy()
    api = make_client(proxy)
    await api._kind.routes.create_repository("svc")

    with pytest.raises(NotFoundError, match="no bento svc:latest"):
        await api.get("svc", "latest")


async def test_old_registry_400_is_not_found(proxy: FaultProxy, make_client: MakeClient) -> None:
    proxy.add_fault("GET .*/v2$", answer_json(400, {"error": "get bento v2: record not found"}))

    with pytest.raises(NotFoundError, match="svc:v2"):
        await make_client(proxy).get("svc", "v2")


async def test_paging_retries_faults(proxy: FaultProxy, make_client: MakeClient) -> None:
    async def break_off(exchange: Exchange) -> web.StreamResponse:
        return exchange.disconnect()

    proxy.add_fault(LIST, break_off, skip=1)
    proxy.add_fault(LIST, answer_json(503, {"error": "later"}))

    assert len((await make_client(proxy).list()).items) == 5


async def test_record_of_1970_keeps_time(start_proxy: StartProxy, make_client: MakeClient, home: Path) -> None:
    make_bento(home, built="1970-01-02 03:04:05")
    make_bento(home, "svc:v2")
    make_bento(home, "svc:v3", built="0001-01-02 03:04:05")
    api = make_client(await start_proxy())
    for tag in ("svc:v1", "svc:v2"):
        await api.push(tag)
    with pytest.raises(BentoError, match="build_at: must not be before 1970"):
        await api.push("svc:v3")
    assert (await api.get("svc:v1")).build_at == datetime(1970, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert [record.version for record in (await api.list()).items] == ["v2", "v1"]

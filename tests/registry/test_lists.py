"""Lists: order, paging, and the results of `search` and `q`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from async_bento.registry import app, schemas
from async_bento.registry.errors import BadRequestError
from async_bento.registry.records.query import ListQuery, parse_list_query
from tests.registry.conftest import disk_only, records_only

if TYPE_CHECKING:
    from tests.registry.conftest import Caller

pytestmark = records_only


def build_at(day: int) -> str:
    return f"2024-05-{day:02d} 00:00:00.000000"


def tags(page: dict) -> list[str]:
    return [f"{item['repository']['name']}:{item['version']}" for item in page["items"]]


async def test_list_sorts_by_newest_build(either: Caller):
    for version, day in [("b", 2), ("c", 3), ("a", 1)]:
        await either.create(version=version, build_at=build_at(day))
    assert tags(await either.list()) == ["iris:c", "iris:b", "iris:a"]
    assert tags(await either.list(either.items())) == ["iris:c", "iris:b", "iris:a"]


async def test_repository_lists_own_items(either: Caller):
    await either.create("iris", "v1")
    await either.create("rose", "v1")
    page = await either.list(either.items("rose"))
    assert (tags(page), page["total"]) == (["rose:v1"], 1)


async def test_paging_returns_items_once(either: Caller):
    # With equal build times, only a stable order keeps an item from being on two pages.
    for number in range(7):
        await either.create(version=f"v{number}")
    pages = [await either.list(start=start, count=3) for start in (0, 3, 6, 9)]
    assert [(page["start"], page["count"], page["total"]) for page in pages] == [
        (0, 3, 7),
        (3, 3, 7),
        (6, 3, 7),
        (9, 3, 7),
    ]
    assert [tag for page in pages for tag in tags(page)] == [f"iris:v{number}" for number in reversed(range(7))]


async def test_paging_without_count_is_full(caller: Caller):
    for number in range(25):
        await caller.create(version=f"v{number}")
    for query in ({}, {"count": 0}):
        page = await caller.list(**query)
        assert (len(page["items"]), page["total"], page["count"]) == (25, 25, 0)


async def test_paging_of_empty_registry(either: Caller):
    assert await either.list() == {"start": 0, "count": 0, "total": 0, "items": []}


@disk_only
async def test_long_list_lets_others_run(caller: Caller, monkeypatch: pytest.MonkeyPatch):
    for number in range(5):
        await caller.create(version=f"v{number}")
    turn, turns, write = 0, list[int](), schemas.item_json

    def count() -> None:
        nonlocal turn, counting
        turn += 1
        counting = asyncio.get_running_loop().call_soon(count)

    def note(*arguments: Any, **fields: Any) -> str:
        turns.append(turn)
        return write(*arguments, **fields)

    monkeypatch.setattr(app, "_ITEMS_PER_STEP", 2)
    monkeypatch.setattr(schemas, "item_json", note)
    counting = asyncio.get_running_loop().call_soon(count)
    assert (await caller.list())["total"] == 5
    counting.cancel()
    assert [each - turns[0] for each in turns] == [0, 1, 1, 2, 2]


async def test_unknown_repository_is_404(either: Caller):
    assert (await either.api("GET", either.items("none"))).status == 404


async def test_invalid_paging_returns_400(caller: Caller):
    for query in ("start=-1", "count=-1", "start=x", "count=1.5", "count=1e3", "start=99999999999999999999"):
        response = await caller.api("GET", f"/bentos?{query}")
        assert (response.status, list(response.json)) == (400, ["error"]), query


@pytest.fixture
async def garden(either: Caller) -> Caller:
    """Five items, each built a day after the previous one."""
    for day, (name, version, size, description, labels) in enumerate(
        [
            ("iris", "v1", 30, "a flower of the rainbow", {"team": "red", "stage": "prod"}),
            ("iris-large", "v1", 10, "", {"team": "blue"}),
            ("rose", "v1", 20, "thorny, like an iris is not", {"team": "red"}),
            ("rose", "v2", 40, "100% _pure_", {}),
            ("oak", "v1", 50, "a tree", {"stage": "dev"}),
        ],
        start=1,
    ):
        items = [{"key": key, "value": value} for key, value in labels.items()]
        manifest = {"size_bytes": size}
        await either.create(
            name, version, build_at=build_at(day), manifest=manifest, description=description, labels=items
        )
    return either


FINDS = [
    ({"search": "iris"}, ["iris-large:v1", "iris:v1"]),
    ({"search": "IRIS"}, ["iris-large:v1", "iris:v1"]),
    ({"search": "%"}, []),
    ({"search": "_"}, []),
    ({"q": "iris"}, ["iris-large:v1", "iris:v1"]),
    ({"q": "iris large"}, ["iris-large:v1"]),
    ({"q": "iris oak"}, []),
    ({"q": "v1"}, []),
    ({"q": "iris in:name"}, ["iris-large:v1", "iris:v1"]),
    ({"q": "iris in:description"}, ["rose:v1"]),
    ({"q": "iris in:name in:description"}, ["rose:v1", "iris-large:v1", "iris:v1"]),
    ({"q": "iris in:nonsense"}, ["iris-large:v1", "iris:v1"]),
    ({"q": "_pure_ in:description"}, ["rose:v2"]),
    ({"q": "label:team=red"}, ["rose:v1", "iris:v1"]),
    ({"q": "label:team"}, ["rose:v1", "iris-large:v1", "iris:v1"]),
    ({"q": "label:team=red,team=blue"}, ["rose:v1", "iris-large:v1", "iris:v1"]),
    ({"q": "label:team=red label:stage=prod"}, ["iris:v1"]),
    ({"q": "label:team=re"}, []),
    ({"q": "-label:team=red"}, ["oak:v1", "rose:v2", "iris-large:v1"]),
    ({"q": "-label:team"}, ["oak:v1", "rose:v2"]),
    ({"q": "-label:team=red,stage"}, ["rose:v2", "iris-large:v1"]),
    ({"q": "label:team=red -label:stage"}, ["rose:v1"]),
    ({"q": "sort:build_at-asc"}, ["iris:v1", "iris-large:v1", "rose:v1", "rose:v2", "oak:v1"]),
    ({"q": "sort:created_at-desc"}, ["oak:v1", "rose:v2", "rose:v1", "iris-large:v1", "iris:v1"]),
    ({"q": "sort:size-asc"}, ["iris-large:v1", "rose:v1", "iris:v1", "rose:v2", "oak:v1"]),
    ({"q": "sort:size-desc rose"}, ["rose:v2", "rose:v1"]),
    ({"q": "sort:name-asc rose"}, ["rose:v2", "rose:v1"]),
    ({"q": "is:good creator:@me not:bad rose"}, ["rose:v2", "rose:v1"]),
    ({"q": "rose", "count": 1}, ["rose:v2"]),
    ({"q": "rose", "search": "x"}, []),
    ({"q": "'; DROP TABLE items; --"}, []),
]


async def test_list_query_finds_items(garden: Caller):
    for query, expected in FINDS:
        page = await garden.list(**query)
        assert tags(page) == expected, query
        assert page["total"] == (2 if "count" in query else len(expected)), query


async def test_invalid_sizes_sort_as_zero(caller: Caller):
    sizes: list[object] = [2**63, -1, "7", None, 1.5, [1], 0, 1]
    for number, size in enumerate(sizes):
        await caller.create(version=f"v{number}", manifest={"size_bytes": size})
    page = await caller.list(q="sort:size-asc")
    assert [item["version"] for item in page["items"]] == [f"v{number}" for number in range(8)]


def test_query_with_paging_is_parsed():
    query = parse_list_query(
        {"start": "2", "count": "3", "search": "s", "q": " a  label:k=v=w,l -label:m sort:size-asc b "}
    )
    assert query == ListQuery(
        start=2,
        requested=3,
        search="s",
        keywords=("a", "b"),
        labels=((("k", "v=w"), ("l", "")),),
        excluded_labels=(("m", ""),),
        sort="size",
        descending=False,
    )


@pytest.mark.parametrize("q", ["", "sort:", "sort:size", "sort:size-up", "label:", "label:,", "in:", ":x", "x:y"])
def test_unknown_terms_are_ignored(q: str):
    assert parse_list_query({"q": q}) == ListQuery()


def test_longest_query_is_parsed():
    words = " ".join("x" * 50)
    assert len(parse_list_query({"q": words}).keywords) == 50
    assert parse_list_query({"search": "x" * 1000}).search == "x" * 1000
    assert parse_list_query({"start": "9" * 9}).start == 999_999_999
    for parameters in ({"q": f"{words} x"}, {"search": "x" * 1001}, {"start": "1" * 10}):
        with pytest.raises(BadRequestError):
            parse_list_query(parameters)


def test_paging_needs_ascii_digits():
    with pytest.raises(BadRequestError):
        parse_list_query({"start": "٣"})

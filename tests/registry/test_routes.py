"""The routes of PROTOCOL.md, for bentos and models alike, by what a client sees of them."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from tests.registry.conftest import MODELS

if TYPE_CHECKING:
    from tests.registry.conftest import Caller

BASE = {"uid", "created_at", "updated_at", "deleted_at"}
RESOURCE = BASE | {"name", "resource_type", "labels"}
ITEM = RESOURCE | {
    "version",
    "description",
    "image_build_status",
    "upload_status",
    "upload_started_at",
    "upload_finished_at",
    "upload_finished_reason",
    "presigned_upload_url",
    "presigned_download_url",
    "presigned_urls_deprecated",
    "transmission_strategy",
    "upload_id",
    "manifest",
    "build_at",
    "creator",
}

ITEM_ROUTES = [
    ("GET", "", None),
    ("PATCH", "", {"description": "new"}),
    ("PATCH", "/start_upload", None),
    ("PATCH", "/finish_upload", {"status": "success", "reason": ""}),
    ("PATCH", "/presign_upload_url", None),
    ("PATCH", "/presign_download_url", None),
    ("PATCH", "/start_multipart_upload", None),
    ("PATCH", "/presign_multipart_upload_url", {"upload_id": "u", "part_number": 1}),
    ("PATCH", "/complete_multipart_upload", {"upload_id": "u", "parts": [{"part_number": 1, "etag": "e"}]}),
    ("PUT", "/upload", None),
    ("GET", "/download", None),
]


async def test_every_item_route_needs_the_token(either: Caller):
    await either.create()
    for method, tail, body in ITEM_ROUTES:
        answer = await either.api(method, f"{either.items()}/v1{tail}", json=body, token="wrong")
        assert (answer.status, list(answer.json)) == (403, ["message"]), tail


@pytest.mark.parametrize("item", ["iris/{}/v2", "none/{}/v1"])
async def test_every_item_route_says_when_there_is_no_such_item(either: Caller, item: str):
    await either.create()
    for method, tail, body in ITEM_ROUTES:
        path = f"/{either.words.repositories}/{item.format(either.words.items)}{tail}"
        answer = await either.api(method, path, json=body)
        assert answer.status == 404, tail
        assert answer.json["error"].endswith("record not found"), tail


@pytest.mark.parametrize("version", ["V1", "%2e%2e", "..%2f..%2fx", "-a", "a-", "a" * 64, "a%0a", "a%00"])
async def test_every_item_route_refuses_what_is_no_version(caller: Caller, version: str):
    for method, tail, body in ITEM_ROUTES:
        url = URL(f"{caller.registry.endpoint}/api/v1{caller.items()}/{version}{tail}", encoded=True)
        answer = await caller.bare(method, url, json=body, headers={"X-YATAI-API-TOKEN": caller.registry.api_token})
        assert answer.status == 400, tail
        assert "invalid version" in answer.json["error"], tail


@pytest.mark.parametrize("path", ["/auth/current", "/current_org", "/bentos", "/models", "/bento_repositories/a"])
async def test_every_other_route_needs_the_token(caller: Caller, path: str):
    answer = await caller.bare("GET", f"{caller.registry.endpoint}/api/v1{path}")
    assert (answer.status, list(answer.json)) == (403, ["message"])


async def test_the_token_says_who_one_is(caller: Caller):
    user = await caller.ok("GET", "/auth/current")
    assert user.keys() >= {"name", "email", "first_name", "last_name"}


async def test_an_item_has_every_field(either: Caller):
    manifest = {"size_bytes": 7, "a field of the future": {"x": [None, 1.5]}}
    labels = [{"key": "team", "value": "a"}, {"key": "stage", "value": ""}]
    created = await either.create(description="read me", manifest=manifest, labels=labels)
    assert created.keys() == ITEM | {either.words.repository_uid}
    assert (
        created
        | {
            "name": "v1",
            "version": "v1",
            "resource_type": either.words.items.rstrip("s"),
            "description": "read me",
            "manifest": manifest,
            "labels": labels,
            "upload_status": "pending",
            "upload_finished_reason": "",
            "build_at": "2024-05-01T10:20:30.123456Z",
            "transmission_strategy": "presigned_url",
            "deleted_at": None,
        }
        == created
    )


async def test_an_item_comes_with_its_repository(either: Caller):
    created = await either.create()
    got = await either.get()
    repository = await either.ok("GET", f"/{either.words.repositories}/iris")
    assert got.pop("repository") == repository
    assert repository["uid"] == created[either.words.repository_uid]
    assert got | created == got


async def test_a_bento_comes_with_those_of_its_models_that_are_there(caller: Caller):
    await caller.about(MODELS).create("clf", "m1")
    await caller.about(MODELS).create("clf", "m2")
    await caller.create(manifest={"models": ["clf:m2", "clf:gone", "other:m1"]})
    bento = await caller.get()
    assert [(model["repository"]["name"], model["version"]) for model in bento["models"]] == [("clf", "m2")]


async def test_a_repository_has_every_field(either: Caller):
    created = await either.ok("POST", f"/{either.words.repositories}", json={"name": "iris", "description": "flowers"})
    assert created.keys() >= RESOURCE | {"description", "creator", "organization", either.words.latest}
    assert (created["name"], created["description"], created[either.words.latest]) == ("iris", "flowers", None)


async def test_a_repository_knows_its_newest_item(either: Caller):
    await either.create(version="v1")
    await either.create(version="v2", build_at="2020-01-01 00:00:00.000000")
    repository = await either.ok("GET", f"/{either.words.repositories}/iris")
    assert repository[either.words.latest]["version"] == "v2"


async def test_a_bento_repository_counts_its_bentos(caller: Caller):
    await caller.create(version="v1")
    await caller.create(version="v2")
    await caller.create("other", "v1")
    assert (await caller.ok("GET", "/bento_repositories/iris"))["n_bentos"] == 2


async def test_there_is_no_such_repository(either: Caller):
    answer = await either.api("GET", f"/{either.words.repositories}/none")
    assert answer.status == 404
    assert answer.json["error"].endswith("record not found")


async def test_an_item_needs_its_repository(either: Caller):
    body = {"version": "v1", "build_at": "2024-05-01 10:20:30.123456"}
    answer = await either.api("POST", either.items(), json=body)
    assert answer.status == 404


async def test_bentos_and_models_of_one_name_are_strangers(caller: Caller):
    await caller.create(version="v1")
    models = caller.about(MODELS)
    assert (await models.api("GET", "/model_repositories/iris")).status == 404
    await models.create(version="m1")
    assert (await caller.list())["total"] == 1
    assert [item["version"] for item in (await models.list())["items"]] == ["m1"]


async def test_an_update_leaves_alone_what_it_does_not_name(either: Caller):
    created = await either.create(description="old", manifest={"a": 1}, labels=[{"key": "k", "value": "v"}])
    nothing = {"description": None, "manifest": None, "labels": None, "new": 1}
    updated = await either.ok("PATCH", f"{either.items()}/v1", json=nothing)
    same = ITEM - {"updated_at"}
    assert {field: updated[field] for field in same} == {field: created[field] for field in same}


async def test_an_update_changes_what_it_names(either: Caller):
    await either.create(description="old", manifest={"a": 1}, labels=[{"key": "k", "value": "v"}])
    body = {"description": "", "manifest": {"b": 2}, "labels": [{"key": "l", "value": "w"}]}
    await either.ok("PATCH", f"{either.items()}/v1", json=body)
    got = await either.get()
    assert {field: got[field] for field in body} == body


async def test_an_upload_begins_and_ends(either: Caller):
    await either.create()
    started = await either.ok("PATCH", f"{either.items()}/v1/start_upload")
    assert (started["upload_status"], started["upload_finished_at"]) == ("uploading", None)
    assert started["upload_started_at"]
    body = {"status": "failed", "reason": "no luck"}
    failed = await either.ok("PATCH", f"{either.items()}/v1/finish_upload", json=body)
    assert (failed["upload_status"], failed["upload_finished_reason"]) == ("failed", "no luck")
    assert failed["upload_finished_at"] >= started["upload_started_at"]
    done = await either.ok("PATCH", f"{either.items()}/v1/finish_upload", json={"status": "success", "reason": None})
    assert (done["upload_status"], done["upload_finished_reason"]) == ("success", "")


async def test_a_repository_is_created_once(either: Caller):
    async def create() -> int:
        answer = await either.api("POST", f"/{either.words.repositories}", json={"name": "iris", "description": ""})
        assert answer.status == 200 or "duplicate key value" in answer.json["error"]
        return answer.status

    statuses = await asyncio.gather(*(create() for _ in range(8)))
    assert sorted(statuses) == [200] + [400] * 7


async def test_an_item_is_created_once(either: Caller):
    await either.create(version="v0")

    async def create() -> int:
        body = {"version": "v1", "build_at": "2024-05-01 10:20:30.123456", "labels": [{"key": "k", "value": "v"}]}
        answer = await either.api("POST", either.items(), json=body)
        assert answer.status == 200 or "duplicate key value" in answer.json["error"]
        return answer.status

    statuses = await asyncio.gather(*(create() for _ in range(8)))
    assert sorted(statuses) == [200] + [400] * 7
    assert (await either.list())["total"] == 2


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"name": "a\xff"}', b'{"name": "\\ud800"}', b'{"name": 1}']
)
async def test_a_body_that_cannot_be_read_is_refused(caller: Caller, body: bytes):
    answer = await caller.api("POST", "/bento_repositories", data=body)
    assert answer.status == 400
    assert answer.json["error"]


async def test_a_number_that_is_none_is_refused(caller: Caller):
    await caller.create()
    answer = await caller.api("PATCH", f"{caller.items()}/v1", data=b'{"manifest": {"x": NaN}}')
    assert answer.status == 400


@pytest.mark.parametrize("name", ["Iris", "../x", "", "a" * 64, "a b", "-a"])
async def test_a_name_that_breaks_the_rules_is_refused(either: Caller, name: str):
    answer = await either.api("POST", f"/{either.words.repositories}", json={"name": name, "description": ""})
    assert answer.status == 400
    assert "invalid name" in answer.json["error"]


@pytest.mark.parametrize(
    "build_at",
    [
        None,
        1,
        "",
        "2024-05-01",
        "2024-05-01T10:20:30.123456Z",
        "2024-05-01 10:20:30.12345",
        "2024-13-01 10:20:30.123456",
    ],
)
async def test_a_build_time_has_one_form(caller: Caller, build_at: Any):
    await caller.create()
    answer = await caller.api("POST", caller.items(), json={"version": "v2", "build_at": build_at})
    assert answer.status == 400
    assert "build_at" in answer.json["error"]


async def test_a_body_may_have_four_mebibytes_and_no_more(caller: Caller):
    await caller.create()
    body = json.dumps({"description": "x" * (4 * 2**20 - 100)}).encode()
    await caller.ok("PATCH", f"{caller.items()}/v1", data=io.BytesIO(body))
    answer = await caller.api("PATCH", f"{caller.items()}/v1", data=io.BytesIO(body + b" " * 100))
    assert (answer.status, list(answer.json)) == (413, ["error"])


async def test_an_unknown_route_is_answered_in_json(caller: Caller):
    assert (await caller.api("GET", "/nowhere")).json == {"error": "Not Found"}
    assert (await caller.api("DELETE", "/bentos")).status == 405
    assert (await caller.bare("GET", f"{caller.registry.endpoint}/")).status == 404

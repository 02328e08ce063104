"""The API routes, for bentos and models, as a client sees them."""

from __future__ import annotations

import asyncio
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from yarl import URL

from async_bento.registry.records.sql import Records
from tests.registry.conftest import MODELS, records_only

if TYPE_CHECKING:
    from async_bento.registry.records.base import Change
    from tests.registry.conftest import Caller

pytestmark = records_only

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


async def test_item_route_needs_token(either: Caller):
    await either.create()
    for method, tail, body in ITEM_ROUTES:
        response = await either.api(method, f"{either.items()}/v1{tail}", json=body, token="wrong")
        assert (response.status, list(response.json)) == (403, ["message"]), tail


@pytest.mark.parametrize("item", ["iris/{}/v2", "none/{}/v1"])
async def test_unknown_item_returns_404(either: Caller, item: str):
    await either.create()
    for method, tail, body in ITEM_ROUTES:
        path = f"/{either.words.repositories}/{item.format(either.words.items)}{tail}"
        response = await either.api(method, path, json=body)
        assert response.status == 404, tail
        assert response.json["error"].endswith("record not found"), tail


@pytest.mark.parametrize("version", ["V1", "%2e%2e", "..%2f..%2fx", "-a", "a-", "a" * 64, "a%0a", "a%00"])
async def test_invalid_version_returns_400(caller: Caller, version: str):
    for method, tail, body in ITEM_ROUTES:
        url = URL(f"{caller.registry.endpoint}/api/v1{caller.items()}/{version}{tail}", encoded=True)
        response = await caller.bare(method, url, json=body, headers={"X-YATAI-API-TOKEN": caller.registry.api_token})
        assert response.status == 400, tail
        assert "invalid version" in response.json["error"], tail


@pytest.mark.parametrize("path", ["/auth/current", "/current_org", "/bentos", "/models", "/bento_repositories/a"])
async def test_other_route_needs_token(caller: Caller, path: str):
    response = await caller.bare("GET", f"{caller.registry.endpoint}/api/v1{path}")
    assert (response.status, list(response.json)) == (403, ["message"])


async def test_current_user_has_fields(caller: Caller):
    user = await caller.ok("GET", "/auth/current")
    assert user.keys() >= {"name", "email", "first_name", "last_name"}


async def test_create_item_returns_fields(either: Caller):
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
            "image_build_status": "pending",
            "presigned_urls_deprecated": False,
            "build_at": "2024-05-01T10:20:30.123456Z",
            "transmission_strategy": "presigned_url",
            "deleted_at": None,
        }
        == created
    )


async def test_get_item_has_repository(either: Caller):
    created = await either.create()
    got = await either.get()
    repository = await either.ok("GET", f"/{either.words.repositories}/iris")
    assert got.pop("repository") == repository
    assert repository["uid"] == created[either.words.repository_uid]
    assert got | created == got


async def test_get_bento_has_known_models(caller: Caller):
    await caller.about(MODELS).create("clf", "m1")
    await caller.about(MODELS).create("clf", "m2")
    await caller.create(manifest={"models": ["clf:m2", "clf:gone", "other:m1"]})
    bento = await caller.get()
    assert [(model["repository"]["name"], model["version"]) for model in bento["models"]] == [("clf", "m2")]


async def test_new_repository_has_fields(either: Caller):
    created = await either.ok("POST", f"/{either.words.repositories}", json={"name": "iris", "description": "flowers"})
    assert created.keys() >= RESOURCE | {"description", "creator", "organization", either.words.latest}
    assert (created["name"], created["description"], created[either.words.latest]) == ("iris", "flowers", None)


async def test_finish_waits_for_create(either: Caller, monkeypatch: pytest.MonkeyPatch):
    await either.create(version="v0")
    create, started, go_on = Records.create_item, asyncio.Event(), asyncio.Event()

    async def create_late(*args: Any, **kwargs: Any) -> Any:
        started.set()
        await go_on.wait()
        return await create(*args, **kwargs)

    monkeypatch.setattr(Records, "create_item", create_late)
    creation = asyncio.create_task(either.create())
    await started.wait()
    failure = asyncio.create_task(either.finish(status="failed"))
    other = await either.api("PATCH", f"{either.items()}/v0/finish_upload", json={"status": "failed", "reason": ""})
    assert other.status == 200  # of another version: not delayed
    go_on.set()
    await creation
    assert (await failure)["upload_status"] == "failed"
    body = {"status": "failed", "reason": ""}
    assert (await either.api("PATCH", f"{either.items()}/v9/finish_upload", json=body)).status == 404


async def test_finish_waits_for_start(either: Caller, monkeypatch: pytest.MonkeyPatch):
    await either.create()
    update, started, go_on = Records.update_item, asyncio.Event(), asyncio.Event()

    async def start_late(self: Records, kind: Any, name: str, version: str, change: Change, **options: Any) -> Any:
        if change.upload_status == "uploading":
            started.set()
            await go_on.wait()
        return await update(self, kind, name, version, change, **options)

    monkeypatch.setattr(Records, "update_item", start_late)
    start = asyncio.create_task(either.api("PATCH", f"{either.items()}/v1/start_upload"))
    await started.wait()
    failure = asyncio.create_task(either.finish(status="failed"))
    await asyncio.wait([failure], timeout=0.1)
    go_on.set()
    assert (await start).json["upload_status"] == "uploading"
    assert (await failure)["upload_status"] == "failed"
    assert (await either.get())["upload_status"] == "failed"


async def test_description_can_change(either: Caller):
    await either.create()
    path = f"/{either.words.repositories}/iris"
    changed = await either.ok("PATCH", path, json={"description": "Ä flower"})
    assert changed == await either.ok("GET", path)
    assert changed["description"] == "Ä flower"
    assert (await either.list(q="in:description ä"))["total"] == 1
    assert (await either.api("PATCH", path, json={})).status == 400
    assert (await either.api("PATCH", f"{path}2", json={"description": ""})).status == 404


async def test_latest_is_last_created(either: Caller):
    await either.create(version="v1")
    await either.create(version="v2", build_at="2020-01-01 00:00:00.000000", manifest={"size_bytes": 7})
    latest = (await either.ok("GET", f"/{either.words.repositories}/iris"))[either.words.latest]
    assert (latest["version"], latest["manifest"]) == ("v2", {"size_bytes": 7})


async def test_repository_counts_bentos(caller: Caller):
    await caller.create(version="v1")
    await caller.create(version="v2")
    await caller.create("other", "v1")
    repository = await caller.ok("GET", "/bento_repositories/iris")
    assert (repository["n_bentos"], repository["n_deployments"]) == (2, 0)


async def test_unknown_repository_is_404(either: Caller):
    response = await either.api("GET", f"/{either.words.repositories}/none")
    assert response.status == 404
    assert response.json["error"].endswith("record not found")


async def test_create_needs_repository(either: Caller):
    body = {"version": "v1", "build_at": "2024-05-01 10:20:30.123456"}
    response = await either.api("POST", either.items(), json=body)
    assert response.status == 404


async def test_item_types_are_separate(caller: Caller):
    await caller.create(version="v1")
    models = caller.about(MODELS)
    assert (await models.api("GET", "/model_repositories/iris")).status == 404
    await models.create(version="m1")
    assert (await caller.list())["total"] == 1
    assert [item["version"] for item in (await models.list())["items"]] == ["m1"]


async def test_update_keeps_omitted_fields(either: Caller):
    created = await either.create(description="old", manifest={"a": 1}, labels=[{"key": "k", "value": "v"}])
    nothing = {"description": None, "manifest": None, "labels": None, "new": 1}
    updated = await either.ok("PATCH", f"{either.items()}/v1", json=nothing)
    same = ITEM - {"updated_at"}
    assert {field: updated[field] for field in same} == {field: created[field] for field in same}


async def test_update_changes_named_fields(either: Caller):
    await either.create(description="old", manifest={"a": 1}, labels=[{"key": "k", "value": "v"}])
    body = {"description": "", "manifest": {"b": 2}, "labels": [{"key": "l", "value": "w"}]}
    await either.ok("PATCH", f"{either.items()}/v1", json=body)
    got = await either.get()
    assert {field: got[field] for field in body} == body


async def test_upload_status_transitions(either: Caller):
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


async def test_repository_race_has_winner(either: Caller):
    async def create() -> int:
        response = await either.api("POST", f"/{either.words.repositories}", json={"name": "iris", "description": ""})
        assert response.status == 200 or "duplicate key value" in response.json["error"]
        return response.status

    statuses = await asyncio.gather(*(create() for _ in range(8)))
    assert sorted(statuses) == [200] + [400] * 7


async def test_item_race_has_winner(either: Caller):
    await either.create(version="v0")

    async def create() -> int:
        body = {"version": "v1", "build_at": "2024-05-01 10:20:30.123456", "labels": [{"key": "k", "value": "v"}]}
        response = await either.api("POST", either.items(), json=body)
        assert response.status == 200 or "duplicate key value" in response.json["error"]
        return response.status

    statuses = await asyncio.gather(*(create() for _ in range(8)))
    assert sorted(statuses) == [200] + [400] * 7
    assert (await either.list())["total"] == 2


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"name": "a\xff"}', b'{"name": "\\ud800"}', b'{"name": 1}']
)
async def test_invalid_body_returns_400(caller: Caller, body: bytes):
    response = await caller.api("POST", "/bento_repositories", data=body)
    assert response.status == 400
    assert response.json["error"]


async def test_nan_in_body_returns_400(caller: Caller):
    await caller.create()
    response = await caller.api("PATCH", f"{caller.items()}/v1", data=b'{"manifest": {"x": NaN}}')
    assert (response.status, "the body is not JSON" in response.json["error"]) == (400, True)


@pytest.mark.parametrize("name", ["Iris", "../x", "", "a" * 64, "a b", "-a"])
async def test_invalid_name_returns_400(either: Caller, name: str):
    response = await either.api("POST", f"/{either.words.repositories}", json={"name": name, "description": ""})
    assert response.status == 400
    assert "invalid name" in response.json["error"]


async def test_name_and_version_of_63_characters(either: Caller):
    await either.create("a" * 63, "b" * 63)
    assert (await either.get("a" * 63, "b" * 63))["version"] == "b" * 63


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
async def test_invalid_build_at_is_400(caller: Caller, build_at: Any):
    await caller.create()
    response = await caller.api("POST", caller.items(), json={"version": "v2", "build_at": build_at})
    assert response.status == 400
    assert "build_at" in response.json["error"]


async def test_large_body_returns_413(caller: Caller):
    await caller.create()
    body = json.dumps({"ignored": "x" * (4 * 2**20 - 100)}).encode()
    await caller.ok("PATCH", f"{caller.items()}/v1", data=io.BytesIO(body))
    response = await caller.api("PATCH", f"{caller.items()}/v1", data=io.BytesIO(body + b" " * 100))
    assert (response.status, list(response.json)) == (413, ["error"])


async def test_unknown_route_returns_json(caller: Caller):
    assert (await caller.api("GET", "/nowhere")).json == {"error": "Not Found"}
    assert (await caller.api("DELETE", "/bentos")).status == 405
    assert (await caller.bare("GET", f"{caller.registry.endpoint}/nowhere")).json == {"error": "Not Found"}

"""Deletion of bentos, models and repositories, also during uploads, downloads and other deletions."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from async_bento import AsyncBentoAPI, BentoError
from async_bento.registry.blobs.disk_files import DiskFiles
from async_bento.registry.errors import disk_error
from tests.builders import make_bento
from tests.eventually import eventually
from tests.registry.conftest import MODELS, clean_up, disk_only, everywhere

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Caller, Stored

pytestmark = everywhere

DATA = os.urandom(3_000_001)


async def test_delete_removes_bytes(either: Caller, stored_files: Stored):
    labels = [{"key": "team", "value": "a"}]
    await either.create(labels=labels)
    await either.create(version="v2")
    await either.upload(DATA)
    await either.upload(DATA, "v2")
    deleted = await either.ok("DELETE", f"{either.items()}/v1")
    assert (deleted["version"], deleted["labels"], deleted["upload_status"]) == ("v1", labels, "success")
    repository = deleted["repository"]
    assert (repository["name"], repository[either.words.latest]["version"]) == ("iris", "v2")
    assert repository.get("n_bentos", 1) == 1
    assert (await either.api("GET", f"{either.items()}/v1")).status == 404
    assert (await either.download()).status == 404
    assert (await either.list())["total"] == 1
    assert (await either.list(q="label:team=a"))["total"] == 0
    assert stored_files.has_count(disk=1, s3=1)
    assert (await either.download("v2")).body == DATA


async def test_deleted_version_is_reusable(either: Caller):
    created = await either.create(labels=[{"key": "team", "value": "a"}])
    await either.upload(b"old")
    await either.ok("DELETE", f"{either.items()}/v1")
    again = await either.create()
    assert (again["upload_status"], again["labels"]) == ("pending", [])
    assert again["uid"] != created["uid"]
    assert (await either.download()).status == 404
    await either.upload(b"new")
    assert (await either.download()).body == b"new"


async def test_delete_unknown_returns_404(either: Caller):
    await either.create()
    for item in ("iris/{}/v2", "none/{}/v1"):
        path = f"/{either.words.repositories}/{item.format(either.words.items)}"
        response = await either.api("DELETE", path)
        assert response.status == 404
        assert response.json["error"].endswith("record not found")
    assert (await either.api("DELETE", f"{either.items()}/v1", token="wrong")).status == 403
    assert (await either.list())["total"] == 1


async def test_repository_must_be_empty(either: Caller):
    await either.create()
    path = f"/{either.words.repositories}/iris"
    refused = await either.api("DELETE", path)
    assert refused.status == 409
    assert refused.json["error"].endswith(f"it is not empty. Delete its {either.words.items} first.")
    await either.ok("DELETE", f"{either.items()}/v1")
    assert (await either.ok("DELETE", path))["name"] == "iris"
    assert (await either.api("DELETE", path)).status == 404
    assert (await either.api("GET", path)).status == 404
    await either.create()


async def test_model_in_use_names_bentos(caller: Caller):
    models = caller.about(MODELS)
    await models.create("clf", "m1")
    for version in ("v1", "v2", "v3", "v4", "v5"):
        await caller.create(version=version, manifest={"models": ["clf:m1"]})
    refused = await models.api("DELETE", "/model_repositories/clf/models/m1")
    assert refused.status == 409
    assert refused.json["error"] == (
        "cannot delete model clf:m1: iris:v5, iris:v4, iris:v3 and 2 more use it. Delete the bentos first, or force "
        "the deletion."
    )
    assert (await models.get("clf", "m1"))["version"] == "m1"
    await models.ok("DELETE", "/model_repositories/clf/models/m1?force=true")
    assert (await caller.get())["models"] == []


async def test_unused_model_is_deleted(caller: Caller):
    models = caller.about(MODELS)
    await models.create("clf", "m1")
    await caller.create(manifest={"models": ["clf:m1"]})
    assert (
        "iris:v1 uses it. Delete the bento first"
        in (await models.api("DELETE", "/model_repositories/clf/models/m1")).json["error"]
    )
    await caller.ok("DELETE", f"{caller.items()}/v1")
    await models.ok("DELETE", "/model_repositories/clf/models/m1")


async def test_racing_deletes_succeed_once(either: Caller, stored_files: Stored):
    await either.create()
    await either.create(version="v2")
    await either.upload(DATA)
    responses = await asyncio.gather(*(either.api("DELETE", f"{either.items()}/v1") for _ in range(5)))
    assert sorted(response.status for response in responses) == [200, 404, 404, 404, 404]
    repository = await either.ok("GET", f"/{either.words.repositories}/iris")
    assert repository.get("n_bentos", 1) == 1
    assert (await either.list())["total"] == 1
    assert stored_files() == []


async def test_delete_race_keeps_new_bytes(caller: Caller):
    for _ in range(5):
        await caller.create()
        await caller.upload(b"old")

        async def replace() -> None:
            while True:
                with suppress(AssertionError):  # until the old record is deleted
                    await caller.create()
                    break
            assert (await caller.upload(b"new")).status == 200

        await asyncio.gather(caller.ok("DELETE", f"{caller.items()}/v1"), replace())
        assert (await caller.download()).body == b"new"
        await caller.ok("DELETE", f"{caller.items()}/v1")


async def test_repository_delete_is_atomic(caller: Caller):
    for _ in range(5):
        await caller.ok("POST", "/bento_repositories", json={"name": "iris", "description": ""})
        body = {"version": "v1", "description": "", "manifest": {}, "build_at": "2024-05-01 10:20:30.123456"}
        created, deleted = await asyncio.gather(
            caller.api("POST", caller.items(), json=body), caller.api("DELETE", "/bento_repositories/iris")
        )
        assert (created.status, deleted.status) in {(200, 409), (404, 200)}
        await caller.api("DELETE", f"{caller.items()}/v1")
        await caller.api("DELETE", "/bento_repositories/iris")


@disk_only
async def test_download_survives_delete(caller: Caller, stored_files: Stored):
    data = os.urandom(20_000_000)
    await caller.create()
    await caller.upload(data)
    headers = {"X-YATAI-API-TOKEN": caller.registry.api_token}
    url = f"{caller.registry.endpoint}/api/v1{caller.items()}/v1/download"
    async with caller.session.get(url, headers=headers) as response:
        received = await response.content.readexactly(1000)
        await caller.ok("DELETE", f"{caller.items()}/v1")
        received += await response.read()
    assert received == data
    await eventually(lambda: stored_files() == [])


async def test_delete_ends_multipart_upload(caller: Caller, stored_files: Stored):
    await caller.create()
    upload_id = await caller.start_multipart()
    etag = await caller.put_part(upload_id, 1, DATA)
    await caller.ok("DELETE", f"{caller.items()}/v1")
    for response in (
        await caller.complete(upload_id, [(1, etag)]),
        await caller.api("PATCH", f"{caller.items()}/v1/finish_upload", json={"status": "success", "reason": ""}),
    ):
        assert response.status == 404
        assert response.json["error"] == "get bento iris:v1: record not found"
    await caller.create()
    assert (await caller.complete(upload_id, [(1, etag)])).status == 404
    assert stored_files() == []


async def test_upload_after_delete_fails(caller: Caller, stored_files: Stored):
    await caller.create()
    url = await caller.put_url()
    await caller.ok("DELETE", f"{caller.items()}/v1")
    put = await caller.bare("PUT", url, data=DATA)
    assert put.status == (200 if stored_files.storage == "s3" else 404)
    finished = await caller.api("PATCH", f"{caller.items()}/v1/finish_upload", json={"status": "success", "reason": ""})
    assert finished.status == 404
    if stored_files.storage == "s3":  # the bucket knows nothing of the deletion
        await caller.create(version="v2")
        await caller.upload(b"x", "v2")
        await clean_up(caller, hours=25)
        await caller.ok("DELETE", f"{caller.items()}/v2")
    assert stored_files() == []


@pytest.mark.parametrize("proxied", [True, False])
async def test_upload_during_delete_is_gone(caller: Caller, stored_files: Stored, proxied: bool):
    await caller.create()
    started, deleted = asyncio.Event(), asyncio.Event()

    async def body():
        yield DATA[:1_500_000]
        started.set()
        await deleted.wait()
        yield DATA[1_500_000:]

    if proxied:
        upload = asyncio.create_task(caller.upload(body()))
    else:
        headers = {"Content-Length": str(len(DATA))}
        upload = asyncio.create_task(caller.bare("PUT", await caller.put_url(), data=body(), headers=headers))
    await started.wait()
    await caller.ok("DELETE", f"{caller.items()}/v1")
    deleted.set()
    response = await upload
    if proxied or stored_files.storage == "disk":
        assert response.status == 404
    else:  # the bucket takes the body, and the cleanup removes it
        await caller.create(version="v2")
        await caller.upload(b"x", "v2")
        await clean_up(caller, hours=25)
        await caller.ok("DELETE", f"{caller.items()}/v2")
    await eventually(lambda: stored_files() == [])


async def test_push_during_delete_raises(caller: Caller, stored_files: Stored, home: Path):
    make_bento(home, "svc:v1", files={"big.bin": os.urandom(12_000_000)})
    async with AsyncBentoAPI(endpoint=caller.registry.endpoint, api_token=caller.registry.api_token) as api:
        push = asyncio.create_task(api.push("svc:v1"))
        while (await caller.api("DELETE", "/bento_repositories/svc/bentos/v1")).status == 404:
            assert not push.done()
        with pytest.raises(BentoError, match=r"record not found|no such upload"):
            await push
        assert not await api.exists("svc:v1")
        await eventually(lambda: stored_files() == [])
        assert not (await api.push("svc:v1")).skipped


@disk_only
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), disk_error(OSError(5, "Input/output error"))])
async def test_failed_delete_is_retried(
    caller: Caller,
    stored_files: Stored,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
):
    def fail(_files: DiskFiles, _key: str) -> None:
        raise error

    await caller.create()
    await caller.upload(DATA)
    monkeypatch.setattr(DiskFiles, "delete", fail)
    await caller.ok("DELETE", f"{caller.items()}/v1")
    assert f"{error}. The cleanup tries again." in caplog.text
    monkeypatch.undo()
    await clean_up(caller, hours=2)
    assert stored_files() == []

"""A registry that keeps complete versions as they are."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from async_bento import APIStatusError, AsyncBentoAPI
from tests.builders import make_bento

if TYPE_CHECKING:
    from pathlib import Path

    from tests.registry.conftest import Caller, Serve

DATA = os.urandom(10_000)
REFUSED = (
    "cannot change iris:v1: this registry keeps complete versions as they are. Push a new version, or delete this one "
    "first."
)


@pytest.fixture
async def complete(serve: Serve) -> Caller:
    """An immutable registry with a version that is complete."""
    caller = await serve(immutable=True)
    await caller.create(manifest={"size_bytes": 7})
    assert (await caller.upload(DATA)).status == 200
    return caller


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/start_upload", None),
        ("PATCH", "/presign_upload_url", None),
        ("PATCH", "/start_multipart_upload", None),
        ("PATCH", "/presign_multipart_upload_url", {"upload_id": "x", "part_number": 1}),
        ("PATCH", "/finish_upload", {"status": "failed", "reason": ""}),
        ("PATCH", "", {"manifest": {"size_bytes": 8}}),
        ("PUT", "/upload", None),
    ],
)
async def test_change_returns_409(complete: Caller, method: str, path: str, body: dict[str, object] | None):
    response = await complete.api(method, f"{complete.items()}/v1{path}", json=body)
    assert (response.status, response.json) == (409, {"error": REFUSED})
    item = await complete.get()
    assert (item["upload_status"], item["manifest"], item["upload_finished_reason"]) == (
        "success",
        {"size_bytes": 7},
        "",
    )
    assert (await complete.download()).body == DATA


async def test_metadata_change_is_accepted(complete: Caller):
    changes = {"manifest": {"size_bytes": 7}, "description": "read me", "labels": [{"key": "k", "value": "v"}]}
    await complete.ok("PATCH", f"{complete.items()}/v1", json=changes)
    await complete.finish()  # the response to the first call may have been lost
    assert (await complete.get())["description"] == "read me"
    await complete.ok("DELETE", f"{complete.items()}/v1")
    await complete.create()
    assert (await complete.upload(b"again")).status == 200


async def test_failed_version_takes_upload(serve: Serve):
    caller = await serve(immutable=True)
    await caller.create()
    await caller.finish(status="failed")
    assert (await caller.upload(DATA)).status == 200


@pytest.mark.parametrize("way", ["proxy", "parts"])
async def test_upload_race_has_one_winner(serve: Serve, way: str):
    caller = await serve(immutable=True)
    await caller.create()
    bodies = [bytes([number]) * 50_000 for number in range(5)]

    async def push(body: bytes) -> int:
        if way == "proxy":
            return (await caller.upload(body)).status
        started = await caller.api("PATCH", f"{caller.items()}/v1/start_multipart_upload")
        if started.status != 200:
            return started.status
        upload_id = started.json["upload_id"]
        etag = await caller.put_part(upload_id, 1, body)
        completed = await caller.complete(upload_id, [(1, etag)])
        finish = {"status": "success", "reason": ""}
        finished = await caller.api("PATCH", f"{caller.items()}/v1/finish_upload", json=finish)
        return max(completed.status, finished.status)

    statuses = await asyncio.gather(*(push(body) for body in bodies))
    # `finish_upload` names no upload: where two in parts are complete, the first call publishes one, and the second
    # call is a repetition of the first.
    assert statuses.count(200) == 1 or (way == "parts" and 200 in statuses)
    assert set(statuses) <= {200, 404, 409}
    first = (await caller.download()).body
    assert first in bodies
    assert (await caller.get())["upload_status"] == "success"
    assert (await caller.upload(b"late")).status == 409
    assert (await caller.download()).body == first


async def test_forced_push_raises(serve: Serve, home: Path):
    caller = await serve(immutable=True)
    bento = make_bento(home, "iris:v1", files={"weights": DATA})
    endpoint, token = caller.registry.endpoint, caller.registry.api_token
    async with AsyncBentoAPI(endpoint=endpoint, api_token=token) as api:
        await api.push("iris:v1")
        before = (await caller.download()).body
        assert (await api.push("iris:v1")).skipped
        (bento / "weights").write_bytes(b"other")
        with pytest.raises(APIStatusError, match="keeps complete versions as they are") as refused:
            await api.push("iris:v1", force=True)
    assert refused.value.status == 409
    assert (await caller.get())["upload_status"] == "success"
    assert (await caller.download()).body == before

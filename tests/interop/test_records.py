"""The results of `list`, `get` and a push, compared with those of bentoml on the same registry."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone

import pytest

from async_bento.transfer.tar.plan import TarPlan
from tests.interop.homes import PART_SIZE

pytestmark = pytest.mark.interop

TAG = "my_service:v1"
COMPARED = ["uid", "name", "version", "description", "upload_status", "labels", "manifest", "resource_type"]
TIMES = ["created_at", "build_at", "upload_started_at", "upload_finished_at"]


def of(record):
    """Return the common fields of a JSON record of bentoml or async-bento."""
    repository = record.get("repository")
    return {
        **{name: record[name] for name in COMPARED},
        **{name: time_of(record[name]) for name in TIMES},
        "repository": repository and repository["name"],
    }


def time_of(text):
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)  # BentoML writes UTC without an offset


def ours(record):
    return of(record.model_dump(mode="json", by_alias=True))


async def test_list_and_get_equal_bentoml(with_bento, registry):
    async with with_bento.api(registry) as api:
        await with_bento.calls(
            ["build", {"project": "project", "version": "v2"}],
            ["create_model", {"tag": "small:m3", "files": {}}],
            ["push", {"tag": "my_service:v2"}],  # the newer one first
            ["push_model", {"tag": "small:m3"}],
            registry=registry,
        )
        await api.push(TAG)

        listed, *gotten = await with_bento.calls(
            ["list_remote", {}],
            ["get_remote", {"name": "my_service", "version": "v1"}],
            ["get_remote", {"name": "my_service"}],
            ["get_remote", {"name": "my_service", "version": "latest"}],
            ["get_remote_model", {"name": "small", "version": "m1"}],
            ["get_remote_model", {"name": "small"}],
            registry=registry,
        )

        bentos, models = await api.list(), await api.models.list()
        got = [
            await api.get("my_service", "v1"),
            await api.get("my_service"),
            await api.get("my_service", "latest"),
            await api.models.get("small", "m1"),
            await api.models.get("small"),
        ]

    def by_tag(records):
        return {(record["repository"], record["version"]): record for record in records}

    assert by_tag(map(ours, bentos.items)) == by_tag(map(of, listed["bentos"]))
    assert by_tag(map(ours, models.items)) == by_tag(map(of, listed["models"]))
    assert [record.version for record in bentos.items] == [
        "v2",
        "v1",
    ]  # the newest build first, whatever the order of the pushes
    assert [record.version for record in got] == ["v1", "v2", "v2", "m1", "m3"]
    for record, theirs in zip(got, gotten, strict=True):
        assert {**ours(record), "repository": None} == {**of(theirs), "repository": None}


async def test_push_result_equals_bentoml(with_bento, registry):
    sizes = {}
    for item, excluded in {"bentos/my_service/v1": ("models",), "models/large/m2": (), "models/small/m1": ()}.items():
        plan = await asyncio.to_thread(TarPlan.scan, with_bento.path / item, exclude=excluded)
        sizes[item.split("/")[1]] = plan.size
    async with with_bento.api(registry) as api:
        first = await api.push(TAG)
        parts = registry.requests.count("/presign_multipart_upload_url")
        before = len(registry.requests.lines)
        # BentoML finds all items in the registry and sends nothing.
        record, *_ = await with_bento.calls(
            ["get_remote", {"name": "my_service", "version": "v1"}],
            ["push", {"tag": TAG}],
            ["push_model", {"tag": "small:m1"}],
            registry=registry,
        )
        assert all(line.startswith("GET ") for line in registry.requests.lines[before:])
        again = await api.push(TAG)
        await with_bento.calls(["push", {"tag": TAG, "force": True}], registry=registry)
        after_bentoml = await api.push(TAG)

    every = {result.tag.name: result for result in (first, *first.models)}
    assert {name: result.bytes_sent for name, result in every.items()} == sizes
    assert {name: result.parts for name, result in every.items()} == {
        name: -(-size // PART_SIZE) for name, size in sizes.items()
    }
    assert sum(result.parts for result in every.values()) == parts
    assert [str(first.tag), *(str(model.tag) for model in first.models)] == [
        f"{record['manifest']['name']}:{record['version']}",
        *record["manifest"]["models"],
    ]
    assert record["upload_status"] == "success"
    for result in (again, *again.models, after_bentoml, *after_bentoml.models):
        assert (result.skipped, result.bytes_sent, result.parts) == (True, 0, 0)
    assert not any(result.skipped or result.resumed for result in every.values())

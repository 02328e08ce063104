"""Models: async-bento and bentoml list, get and pull each other's pushes, with each transmission strategy."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from tests.interop.homes import PART_SIZE, tree

pytestmark = pytest.mark.interop

SMALL, LARGE = "small:m1", "large:m2"

ROUTES_TAKEN = {  # by strategy: the end of a route that only this strategy uses, and its requests for two models
    "presigned_url": ("/presign_multipart_upload_url", 1 + 2),
    "auto": ("/presign_upload_url", 2),
    "proxy": ("/upload", 2),
}

every_way = pytest.mark.parametrize("transmission", [*ROUTES_TAKEN])


def check_the_way(registry):
    taken = {way: registry.requests.count(route) for way, (route, _) in ROUTES_TAKEN.items()}
    assert taken == {way: count if way == registry.transmission else 0 for way, (_, count) in ROUTES_TAKEN.items()}


def check_both(got, sent, *, modes):
    for tag in (SMALL, LARGE):
        path = f"models/{tag.replace(':', '/')}"
        expected = tree(sent.path / path, modes=modes)
        assert "model.yaml" in expected
        assert tree(got.path / path, modes=modes) == expected
    assert (got.path / "models" / "small" / "latest").read_text() == "m1"


@every_way
async def test_push_pulled_by_bentoml(with_bento, there, registry):
    async with with_bento.api(registry) as api:
        pushed = [await api.models.push(tag) for tag in (SMALL, LARGE)]
    check_the_way(registry)
    if registry.transmission == "presigned_url":
        assert [result.parts for result in pushed] == [1, 2]

    await there.bentoml("models", "pull", SMALL, registry=registry)
    await there.bentoml("models", "pull", "large", registry=registry)

    await asyncio.to_thread(check_both, there, with_bento, modes=False)  # BentoML drops modes


@every_way
async def test_pull_of_bentoml_push(with_bento, there, registry):
    await with_bento.calls(
        ["set_part_size", {"size": PART_SIZE}],
        *(["push_model", {"tag": tag, "threads": 2}] for tag in (SMALL, LARGE)),
        registry=registry,
    )
    check_the_way(registry)

    async with there.api(registry) as api:
        await api.models.pull(SMALL)
        await api.models.pull("large")

    await asyncio.to_thread(check_both, there, with_bento, modes=True)


async def test_list_of_bentoml_push(with_bento, registry):
    await with_bento.bentoml("models", "push", SMALL, registry=registry)
    await with_bento.bentoml("models", "push", LARGE, registry=registry)
    stored = await with_bento.calls(*(["get_model", {"tag": tag}] for tag in (SMALL, LARGE)))

    async with with_bento.api(registry) as api:
        listed = {record.repository.name: record for record in (await api.models.list()).items}
        gotten = [await api.models.get("small", "m1"), await api.models.get("large")]
        found = (await api.models.list(search="small")).items
        labelled = (await api.models.list(query="label:stage=prod")).items

    assert sorted(listed) == ["large", "small"]
    for model, got in zip(stored, gotten, strict=True):
        name, version = model["tag"].split(":")
        for record in (got, listed[name]):
            assert (record.version, record.upload_status) == (version, "success")
            assert {label.key: label.value for label in record.labels} == model["labels"]
            assert record.manifest.metadata == model["metadata"]
            assert record.manifest.size_bytes == model["size_bytes"]
            assert record.build_at == datetime.fromisoformat(model["creation_time"])
    assert [[record.uid for record in records] for records in (found, labelled)] == [[listed["small"].uid]] * 2


async def test_push_listed_by_bentoml(with_bento, registry):
    async with with_bento.api(registry) as api:
        for tag in (SMALL, LARGE):
            await api.models.push(tag)
        built = (await api.models.get(SMALL)).build_at

    stored, listed, gotten = await with_bento.calls(
        ["get_model", {"tag": SMALL}], ["list_remote", {}], ["get_remote_model", {"name": "small"}], registry=registry
    )

    assert built == datetime.fromisoformat(stored["creation_time"])
    (small,) = [record for record in listed["models"] if record["repository"]["name"] == "small"]
    for record in (small, gotten):
        assert (record["version"], record["upload_status"]) == ("m1", "success")
        assert {label["key"]: label["value"] for label in record["labels"]} == stored["labels"]
        assert record["manifest"]["metadata"] == stored["metadata"]
        assert record["manifest"]["size_bytes"] == stored["size_bytes"]

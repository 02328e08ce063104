"""async-bento and bentoml pull each other's pushes, with each transmission strategy."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_bento.registry import LocalRegistry
from tests.interop.homes import PART_SIZE, Home, tree

pytestmark = pytest.mark.interop

TAG = "my_service:v1"
MODELS = ["large:m2", "small:m1"]

ROUTES_TAKEN = {  # by strategy: the end of a route that only this strategy uses, and its requests for all items
    "presigned_url": ("/presign_multipart_upload_url", 3 + 2 + 1),
    "auto": ("/presign_upload_url", 3),
    "proxy": ("/upload", 3),
}

every_way = pytest.mark.parametrize("transmission", [*ROUTES_TAKEN])


def check_the_way(registry):
    """Check that all uploads used the transmission strategy of the test."""
    taken = {way: registry.requests.count(route) for way, (route, _) in ROUTES_TAKEN.items()}
    assert taken == {way: count if way == registry.transmission else 0 for way, (_, count) in ROUTES_TAKEN.items()}, (
        registry.requests.lines
    )


async def restart(registry):
    await registry.close()
    await registry.open()


def check_all(got, sent, *, modes):
    bento = Path("bentos", "my_service", "v1")
    assert tree(got.path / bento, modes=modes) == tree(sent.path / bento, modes=modes)
    for model in (Path("models", *tag.split(":")) for tag in MODELS):
        assert tree(got.path / model, modes=modes) == tree(sent.path / model, modes=modes)


def test_built_bento_has_edge_cases(built):
    inside = tree(built.bentos.get(TAG).path)

    assert inside["src/scripts/run.sh"][1] is True
    assert inside["src/scripts/start"] == ("link", "run.sh")
    assert inside["src/dïr/naïve ☃.txt"][1] is False
    assert inside["src/empty"][0] == "directory"
    assert not any(name.startswith("src/empty/") for name in inside)
    assert [str(model.tag) for model in built.bentos.get(TAG).models] == MODELS


@every_way
async def test_push_pulled_by_bentoml(with_bento, there, registry, tmp_path):
    async with with_bento.api(registry) as api:
        pushed = await api.push(TAG)
    check_the_way(registry)
    if registry.transmission == "presigned_url":
        assert (pushed.parts, [model.parts for model in pushed.models]) == (3, [2, 1])

    await there.calls(["pull", {"tag": TAG, "with_models": True}], registry=registry)

    check_all(there, with_bento, modes=False)  # BentoML drops modes: every pulled file is 0644
    await restart(registry)
    later = Home(tmp_path / "later")
    await later.bentoml("pull", TAG, "--with-models", registry=registry)
    check_all(later, with_bento, modes=False)


@every_way
async def test_pull_of_bentoml_push(with_bento, there, registry, tmp_path):
    await with_bento.calls(
        ["set_part_size", {"size": PART_SIZE}], ["push", {"tag": TAG, "threads": 2}], registry=registry
    )
    check_the_way(registry)
    for home in (there, Home(tmp_path / "later")):
        async with home.api(registry) as api:
            await api.pull(TAG, with_models=True)
        check_all(home, with_bento, modes=True)
        await restart(registry)


@every_way
async def test_pull_of_own_push(with_bento, there, registry, tmp_path):
    async with with_bento.api(registry) as api:
        await api.push(TAG)
    check_the_way(registry)
    for home in (there, Home(tmp_path / "later")):
        async with home.api(registry) as api:
            await api.pull("my_service", with_models=True)
        check_all(home, with_bento, modes=True)
        await restart(registry)


async def test_copy_pulled_by_bentoml(with_bento, there, registry, tmp_path):
    await with_bento.bentoml("push", TAG, registry=registry)
    async with LocalRegistry(tmp_path / "other-registry") as other:
        async with there.api(registry) as source, there.api(other) as target:
            result = await source.copy(TAG, target)
            assert not result.skipped
            assert result.models
        await there.bentoml("pull", TAG, "--with-models", registry=other)
    check_all(there, with_bento, modes=False)


async def test_verify_of_bentoml_push(with_bento, there, registry):
    await with_bento.calls(["push", {"tag": TAG}], registry=registry)

    async with there.api(registry) as api, with_bento.api(registry) as author:
        await api.pull(TAG, with_models=True)
        for client in (api, author):
            results = [await client.verify(TAG), *[await client.models.verify(tag) for tag in MODELS]]
            assert {(each.method, each.differences) for each in results} == {("index", ())}
            assert (await client.verify(TAG, full=True)).is_same


async def test_verify_of_bentoml_pull_differs(with_bento, there, registry):
    async with with_bento.api(registry) as api:
        await api.push(TAG)
    await there.calls(["pull", {"tag": TAG}], registry=registry)

    async with there.api(registry) as api:
        by_list, by_content = await api.verify(TAG), await api.verify(TAG, full=True)
    assert {change for each in by_list.differences for change in each.changes} == {"time", "mode"}
    assert {each.changes for each in by_content.differences} == {("mode",)}


async def test_bentoml_commands_round_trip(with_bento, there, registry):
    await with_bento.bentoml("push", TAG, registry=registry)

    await there.bentoml("pull", TAG, "--with-models", registry=registry)

    check_all(there, with_bento, modes=False)
